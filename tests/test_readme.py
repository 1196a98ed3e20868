"""The README's numbers are those of the committed results; its links lead somewhere."""

import re
from pathlib import Path
from typing import Any

from crosspair.evaluation import Result, read_results
from crosspair.markdown import markdown_rows
from crosspair.reporting.tables import compare_with_baselines, format_interval, format_value

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/results"
README = (ROOT / "README.md").read_text(encoding="utf-8")

# The rows that the README has room for, and what it calls them.
FROZEN = {
    ("retrieval text→video", "R@10", "embedding"): "text→video retrieval, R@10",
    ("kNN", "top-1", "visual"): "kNN, top-1",
    ("zero-shot", "top-1", "embedding"): "zero-shot, top-1",
}
HEADS = {  # the last two are of the embedding: the visual feature is that of the frozen encoder
    ("retrieval text→video", "R@10", "embedding"): "text→video retrieval, R@10",
    ("kNN", "top-1", "embedding"): "kNN, top-1",
    ("zero-shot", "top-1", "embedding"): "zero-shot, top-1",
}
FINE_TUNED = {"": "all labels", "-10": "10 % of the labels"}


def means(file: Path) -> list[Result]:
    """The results without those of single official splits."""
    results, _ = read_results(file)
    return [result for result in results if "official split" not in result.settings]


def frozen(videos: str, file: Path, names: dict[tuple[str, str, str], str] = FROZEN) -> list[list[str]]:
    frame = compare_with_baselines(means(file))
    rows = {(row.protocol, row.metric, row.feature): row for row in frame.itertuples()}
    return [cells(f"{videos}: {name}", rows[key], format_value(rows[key].random)) for key, name in names.items()]


def fine_tuned(suffix: str, labels: str) -> list[str]:
    begun: dict[str, Any] = {}
    for name in ("cpd", "scratch"):
        frame = compare_with_baselines(means(RESULTS / f"ucf10/{name}{suffix}/results.json"))
        begun[name] = next(frame[frame.metric == "top-1"].itertuples())
    scratch = f"{format_value(begun['scratch'].trained)}{interval(begun['scratch'])}"
    return cells(f"real: fine-tuned with {labels}, top-1", begun["cpd"], scratch)


def cells(name: str, row: Any, random: str) -> list[str]:
    return [name, format_value(row.chance), random, f"{format_value(row.trained)}{interval(row)}"]


def interval(row: Any) -> str:
    return "" if row.low is None else f" ({format_interval((row.low, row.high))})"


def test_the_table_is_that_of_the_results() -> None:
    rows = [
        *frozen("rendered", RESULTS / "quickstart.json"),
        *frozen("real", RESULTS / "ucf10/frozen/results.json"),
        *frozen("real, heads on pretrained encoders", RESULTS / "ucf10/pretrained/results.json", HEADS),
        *frozen("real, with the encoder's last four blocks", RESULTS / "ucf10/pretrained/last4.json", HEADS),
        *(fine_tuned(suffix, labels) for suffix, labels in FINE_TUNED.items()),
    ]
    table = markdown_rows(("videos: test", "chance", "random weights", "trained"), rows)
    assert README.count("\n| ---") == 1, "a table that is not tested here"
    (told,) = re.findall(r"<!-- results: docs/results -->\n(.*?)\n<!-- end -->", README, re.DOTALL)
    assert told == table


def test_links_and_files_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    named = re.findall(r"`((?:src|docs|tests)/[\w/.-]+)`", README)
    assert links
    assert all((ROOT / path.partition("#")[0]).exists() for path in [*links, *named])
