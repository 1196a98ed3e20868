"""Tables of what benchmarks measured, made while the pages are built: no number is typed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from crosspair.reporting.tabular import markdown_rows

PLACE = re.compile(r"^<!-- (network|objective|every|epoch|curves): (\S+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Put a table in the place of each ``<!-- KIND: FILE -->``, FILE relative to docs/."""
    folder = Path(config["docs_dir"])

    def table(place: re.Match[str]) -> str:
        content = json.loads((folder / place[2]).read_text(encoding="utf-8"))
        return TABLES[place[1]](content["results"])

    return PLACE.sub(table, markdown)


def _network(results: dict[str, Any]) -> str:
    rows = []
    for network, of in results.items():
        for doing in ("training", "inference"):
            for way, each in of[doing]["ways"].items():
                ours = way == "crosspair"
                rows.append((
                    f"{network}, 8×{of['size']}²", doing, way,
                    f"{each['ms']['median'] / of['batch']:.0f}",
                    f"{each['times_faster']['median']:.2f}",
                    f"{each['times_faster']['low']:.2f}–{each['times_faster']['high']:.2f}",
                    f"{of[doing]['share_of_the_rate']:.2f}" if ours else "",
                ))  # fmt: skip
    head = ("network", "doing", "way", "ms a clip", "times faster", "quartiles", "of the rate")
    return markdown_rows(head, rows, names=3)


def _objective(results: dict[str, Any]) -> str:
    """The authors' way and three of ours, by number of pairs."""
    rows = []
    for of in results.values():
        base, *_ = of["ways"].values()
        for way, each in list(of["ways"].items())[:4]:
            less = base["MiB"] / each["MiB"]
            rows.append((
                f"{of['pairs']:,} × {of['batch']}", way, f"{each['ms']['median']:.1f}",
                f"{each['times_faster']['median']:.2f}", f"{each['MiB']:.1f}", f"{less:.1f}",
            ))  # fmt: skip
    head = ("pairs × batch", "a step", "ms", "times faster", "MiB", "times less")
    return markdown_rows(head, rows, names=2)


def _every(results: dict[str, Any]) -> str:
    """Every objective, where all were measured."""
    of = max(results.values(), key=lambda each: len(each["ways"]))
    rows = [(way, f"{each['ms']['median']:.1f}", f"{each['MiB']:.1f}")
            for way, each in of["ways"].items()]  # fmt: skip
    return markdown_rows(("a step", "ms", "MiB"), rows)


def _epoch(results: dict[str, Any]) -> str:
    parts = list(dict.fromkeys(part for of in results.values() for part in of["parts"]))
    rows = []
    for part in parts:
        every = [of["parts"].get(part, {"ms": 0.0, "share": 0.0}) for of in results.values()]
        rows.append((part, *(f"{x['ms']:.1f} ({x['share']:.1%})" for x in every)))
    rows.append(("**a step**", *(f"{of['ms_a_step']:.1f}" for of in results.values())))
    rows.append(("**the network**", *(f"{of['network']:.1%}" for of in results.values())))
    rows.append(("clips/s", *(f"{of['clips_per_s']:.0f}" for of in results.values())))
    rows.append(("memory at most, MiB", *(f"{of['most_MiB']:.0f}" for of in results.values())))
    return markdown_rows(("part, ms", *results), rows)


def _curves(results: dict[str, Any]) -> str:
    rows = [
        (
            way,
            f"{of['last']:.3f}",
            f"{of['largest_difference']:.2%}",
            f"{of['last_difference']:+.2%}",
        )
        for way, of in results.items()
    ]
    return markdown_rows(("way", "last loss", "largest difference", "last difference"), rows)


TABLES = {
    "network": _network, "objective": _objective, "every": _every, "epoch": _epoch,
    "curves": _curves,
}  # fmt: skip
