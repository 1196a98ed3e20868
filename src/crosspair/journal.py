"""Journals: a line for what is done, so that work that was killed goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from crosspair.errors import RunError


class Journal:
    """A file of JSON lines, open for more; see `entries` for what it holds already.

    Args:
        path: made, with its folder, where there is none.

    Raises:
        RunError: it cannot be written; so does `add`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+")
            if self._file.tell():
                self._file.seek(-1, os.SEEK_END)
                if self._file.read() != b"\n":  # a kill has torn the last line
                    self._file.write(b"\n")
        except OSError as error:
            raise _fault(path, "written", error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what could not be written was told by `add`
            self._file.close()

    def add(self, *entries: Any) -> None:
        """Write what is done, each a line of what JSON holds."""
        try:
            self._file.write("".join(json.dumps(entry) + "\n" for entry in entries).encode())
            self._file.flush()
        except OSError as error:
            raise _fault(self.path, "written", error) from error


def entries(path: Path) -> Iterator[Any]:
    """All that a journal holds, the oldest first; nothing where there is no file.

    Raises:
        RunError: it cannot be read.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                except ValueError:  # torn
                    continue
                yield entry
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise _fault(path, "read", error) from error


def _fault(path: Path, done: str, error: OSError) -> RunError:
    return RunError(f"{path} cannot be {done}: {error.strerror}")
