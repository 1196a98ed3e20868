"""The list of videos that an index could not read, so that they are named and not tried again."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from crosspair.atomic import write_atomically
from crosspair.corpora.table import csv_text
from crosspair.library.store import State

BROKEN_FILE = "broken.csv"
_COLUMNS = ("video", "reason", "windows", "size", "modified")


@dataclass(frozen=True)
class Broken:
    """A video that could not be read, all of it or in part.

    Attributes:
        state: of its file, then; it is tried again once that has changed.
        reason: for people, in one line.
        windows: of it that could be read.
    """

    state: State
    reason: str
    windows: int = 0


def read_broken(folder: Path) -> dict[str, Broken]:
    """The list of a library by its videos' names; empty where there is none, or not a whole one."""
    broken = {}
    with (
        suppress(OSError, ValueError, KeyError, csv.Error),
        (folder / BROKEN_FILE).open(encoding="utf-8", newline="") as lines,
    ):
        for line in csv.DictReader(lines):
            state = int(line["size"]), int(line["modified"])
            broken[line["video"]] = Broken(state, line["reason"], int(line["windows"]))
    return broken


def write_broken(folder: Path, broken: Mapping[str, Broken]) -> None:
    """Write the list; where there is nothing to tell, no file is."""
    if not broken:
        (folder / BROKEN_FILE).unlink(missing_ok=True)
        return
    rows = [(name, each.reason, each.windows, *each.state) for name, each in sorted(broken.items())]
    write_atomically(folder / BROKEN_FILE, csv_text(_COLUMNS, rows))
