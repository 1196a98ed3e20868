"""The list of videos that an index could not read, so that they are named and not tried again."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from crosspair.atomic import write_atomically
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
    with suppress(OSError, ValueError, KeyError, csv.Error):
        text = (folder / BROKEN_FILE).read_text(encoding="utf-8")
        for line in csv.DictReader(io.StringIO(text, newline="")):
            state = int(line["size"]), int(line["modified"])
            broken[line["video"]] = Broken(state, line["reason"], int(line["windows"]))
    return broken


def write_broken(folder: Path, broken: Mapping[str, Broken]) -> None:
    """Write the list; where there is nothing to tell, no file is."""
    if not broken:
        (folder / BROKEN_FILE).unlink(missing_ok=True)
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for name, each in sorted(broken.items()):
        writer.writerow((name, each.reason, each.windows, *each.state))
    write_atomically(folder / BROKEN_FILE, text.getvalue())
