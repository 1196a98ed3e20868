"""Tables of committed results, made while the pages are built: no number is typed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from crosspair.evaluation import read_results
from crosspair.reporting.table import markdown_table
from crosspair.reporting.tabular import markdown_rows

PLACE = re.compile(r"^<!-- (\w+): (\S+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Put a table in the place of each ``<!-- KIND: FILE -->``, FILE relative to docs/."""
    folder = Path(config["docs_dir"])

    def table(place: re.Match[str]) -> str:
        if place[1] not in TABLES:  # another hook's
            return place[0]
        return TABLES[place[1]](folder / place[2])

    return PLACE.sub(table, markdown)


def _results(file: Path) -> str:
    results, _ = read_results(file)
    return markdown_table([each for each in results if "official split" not in each.settings])


def _conclusion(file: Path) -> str:
    """What the report of an ablation says first."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("- "))


def _classes(file: Path) -> str:
    """P@10 by class, of benchmarks.library."""
    of = _measured(file)["classes"]
    lines = [(label, [of[label][among] for among in ("all", "test")]) for label in of]
    means = [
        {name: sum(found[i][name] for _, found in lines) / len(lines) for name in lines[0][1][i]}
        for i in range(2)
    ]
    lines.append(("**mean**", means))
    head = ("class", "all clips", "chance", "unseen clips", "chance")
    return markdown_rows(
        head, [(label, *(f"{each:.2f}" for of in both for each in of.values()))
               for label, both in lines],
    )  # fmt: skip


def _moments(file: Path) -> str:
    """How often the right second was found, of benchmarks.library."""
    of = _measured(file)["long videos"]
    rows = [(name, f"{each['queries']}", f"{each['right']:.2f}", f"{each['chance']:.3f}")
            for name, each in of.items()]  # fmt: skip
    return markdown_rows(("asked", "queries", "right", "chance"), rows)


def _indexing(file: Path) -> str:
    """What indexing took, of benchmarks.library."""
    of = _measured(file)["index"]
    names = ("videos", "video_s", "windows", "s", "windows_a_s", "video_s_a_s", "MB")
    head = ("videos", "seconds of them", "windows", "took, s", "windows/s", "video s/s", "disk, MB")
    return markdown_rows(head, [[f"{of[name]:,.0f}" for name in names]], names=0)


def _making(file: Path) -> str:
    """What a large library takes, of benchmarks.search."""
    of = _measured(file)
    made = of["making"]
    memory = (made["GiB_of_memory"], of["index"]["GiB_of_memory"])
    cells = (f"{made['add_s']:.0f}", f"{made['index_s']:.0f}", f"{made['GB']:.1f}",
             *(f"{each:.1f}" for each in memory))  # fmt: skip
    head = ("adding, s", "its index, s", "disk, GB", "memory for making, GiB", "searching, GiB")
    return markdown_rows(head, [cells], names=0)


def _search(file: Path) -> str:
    """Times and recall, of benchmarks.search."""
    of = _measured(file)
    of.pop("making")
    rows = [(name, *(f"{each[time]:.0f}" for time in ("p50_ms", "p95_ms", "cpu_ms")),
             f"{each.get('recall@10', 1.0):.3f}") for name, each in of.items()]  # fmt: skip
    return markdown_rows(("way", "p50, ms", "p95, ms", "processor, ms", "recall@10"), rows)


def _export(file: Path) -> str:
    """Size, difference and time of exported towers, of benchmarks.export."""
    rows = []
    for network, of in _measured(file).items():
        for name, each in of["latency"].items():
            written = of["files"].get(name)
            about = (
                (f"{written['MiB']:.0f}", f"{written['largest_difference']:.0e}")
                if written
                else ("", "")
            )
            rows.append(
                (
                    f"{network}, 8×{of['size']}²",
                    name,
                    *about,
                    f"{each['ms']['median']:.0f}",
                    f"{each['times_faster']['median']:.2f}",
                )
            )
    head = ("network", "way", "MiB", "difference", "ms a clip", "times faster")
    return markdown_rows(head, rows, names=2)


def _memory(file: Path) -> str:
    """The bank on each GPU, of benchmarks.traffic."""
    of = _measured(file)["computed"]["memory"]["fp32"]
    head = ("pairs", *(f"{gpus} GPU{'s' * (gpus != '1')}" for gpus in next(iter(of.values()))))
    rows = [
        (f"{int(pairs):,}", *(f"{size / 1e9:.3g}" for size in by_gpus.values()))
        for pairs, by_gpus in of.items()
    ]
    return markdown_rows(head, rows)


def _traffic(file: Path) -> str:
    """What a GPU sends in a step, of benchmarks.traffic."""
    of = _measured(file)["computed"]["sent"]
    names = ("fp32", "bf16", "gradients")
    rows = [(gpus, *(f"{each[name] / 1e6:.1f}" for name in names)) for gpus, each in of.items()]
    return markdown_rows(("GPUs", "bank in fp32", "bank in bf16", "gradients"), rows)


def _counted(file: Path) -> str:
    """What two processes handed over, of benchmarks.traffic."""
    rows = [
        (
            each["settings"].get("bank_precision", "fp32"),
            f"{each['pairs']:,}",
            f"{each['all_reduce']:,}",
            f"{each['all_gather']:,}",
        )
        for each in _measured(file)["counted"]
    ]
    return markdown_rows(("bank", "pairs", "to all-reduce", "to all-gather"), rows)


def _measured(file: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["results"]
    return results


TABLES = {
    "results": _results, "conclusion": _conclusion, "classes": _classes, "moments": _moments, "indexing": _indexing,
    "making": _making, "search": _search, "export": _export, "memory": _memory,
    "traffic": _traffic, "counted": _counted,
}  # fmt: skip
