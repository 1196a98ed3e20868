"""Files that are written in one step: a reader sees the old file or the new one, never half."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from crosspair.errors import CrosspairError, RunError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file, see `written`."""
    with atomic_write(path) as partial:
        partial.write_bytes(
            content.encode(errors="backslashreplace") if isinstance(content, str) else content
        )


@contextmanager
def atomic_write(path: Path, fault: type[CrosspairError] = RunError) -> Iterator[Path]:
    """Write a file beside ``path`` that then takes its place; folders on the way are made.

    Args:
        path: of the file.
        fault: what is raised where it cannot be written.

    Yields:
        The file to write. It is gone if it does not come to its end.

    Raises:
        CrosspairError: the folder or the file cannot be written; an old file is left as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file() and not path.is_dir():  # a device
            raise fault(f"{path} cannot be written: it is no regular file")
        yield partial
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise fault(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


class JsonlWriter:
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


def read_jsonl(path: Path) -> Iterator[Any]:
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
