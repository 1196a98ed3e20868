"""The README's numbers are those of the committed results; its links lead somewhere."""

import re
from pathlib import Path

from crosspair.evaluation import Result, read_results
from crosspair.recipes import recipe_names
from crosspair.reporting.table import markdown_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


TRANSFER = {
    "from CPD, all labels": "cpd",
    "from scratch, all labels": "scratch",
    "from CPD, 10 % of the labels": "cpd-10",
    "from scratch, 10 % of the labels": "scratch-10",
}

REAL = {
    ("retrieval text→video", "R@10"), ("kNN", "top-1"), ("linear", "top-1"),
    ("low-shot 1 %", "top-1"), ("zero-shot", "top-1"),
}  # fmt: skip


def means_of(results: list[Result]) -> list[Result]:
    """The results without those of single official splits."""
    return [result for result in results if "official split" not in result.settings]


def of_real_videos(results: list[Result]) -> list[Result]:
    """The rows of them that the README has room for."""
    return [r for r in means_of(results) if (r.protocol, r.metric) in REAL]


def transfer_table() -> str:
    """Fine-tuned networks: a row each, split by split and in the mean."""
    lines = [
        "| fine-tuned, 30 views, top-1 | split 1 | split 2 | split 3 | mean |",
        "| --- | --: | --: | --: | --: |",
    ]
    for name, folder in TRANSFER.items():
        results, _ = read_results(ROOT / "docs/results/ucf10" / folder / "results.json")
        mean = next(r for r in results if (r.metric, r.of) == ("top-1", "trained"))
        low, high = mean.interval
        cells = [f"{100 * value:.1f} %" for value in [*mean.details["draws"], mean.value]]
        lines.append(f"| {name} | {' | '.join(cells)} ({100 * low:.1f}–{100 * high:.1f}) |")
    return "\n".join(lines)


def test_tables_are_those_of_the_results() -> None:
    tables = dict(re.findall(r"<!-- results: (\S+) -->\n(.*?)<!-- end -->", README, re.DOTALL))
    assert tables.pop("docs/results/ucf10").strip() == transfer_table()
    for file, shown in {
        "docs/results/quickstart.json": means_of,
        "docs/results/ucf10/frozen/results.json": of_real_videos,
    }.items():
        results, _ = read_results(ROOT / file)
        assert tables.pop(file).strip() == markdown_table(shown(results)).strip()
    assert not tables


def test_every_recipe_is_told() -> None:
    assert set(re.findall(r"^\| `([\w-]+)` \|", README, re.MULTILINE)) == set(recipe_names())


def test_links_and_files_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    named = re.findall(r"`((?:src|docs|tests)/[\w/.-]+)`", README)
    assert links
    assert all((ROOT / path).exists() for path in [*links, *named])
