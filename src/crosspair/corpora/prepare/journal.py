"""What is done in a folder: a line for each prepared file, so that a later run does the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crosspair.atomic import write_atomically
from crosspair.errors import RunError

JOURNAL = "prepared.jsonl"


class Journal:
    """The journal of a folder, read from its file if there is one.

    A line holds the file's name, the key of the request that it answers, its size in bytes and
    the manifest's columns that probing it fills. Of two lines for one file the later counts; what
    is no line, as the torn end that a kill may leave, does not.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self._entries: dict[str, dict[str, Any]] = {}
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            lines = []
        except OSError as error:
            raise RunError(f"{self.path} cannot be read: {error.strerror}") from error
        for line in lines:
            try:
                entry = json.loads(line)
                self._entries[entry["file"]] = {
                    name: entry[name] for name in ("file", "key", "size", "probed")
                }
            except (ValueError, TypeError, KeyError):
                continue

    def probed(self, file: Path, key: str) -> dict[str, Any] | None:
        """What probing found, if the file is there, whole, and the answer to that request."""
        entry = self._entries.get(file.name)
        if entry is None or entry["key"] != key:
            return None
        try:
            whole = file.stat().st_size == entry["size"]
        except OSError:
            return None
        found: dict[str, Any] = entry["probed"]
        return found if whole else None

    def start(self) -> None:
        """Write what was read, without torn and outdated lines; later notes come after it."""
        lines = [json.dumps(entry) + "\n" for entry in self._entries.values()]
        write_atomically(self.path, "".join(lines))

    def note(self, file: Path, key: str, size: int, probed: dict[str, Any]) -> None:
        """Add a file that now stands under its name."""
        entry = {"file": file.name, "key": key, "size": size, "probed": probed}
        self._entries[file.name] = entry
        try:
            with self.path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror}") from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the system lets go of it however the process ends.

    Raises:
        RunError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"another run prepares into {folder}; wait until it ends") from error
        except OSError:
            pass  # file systems without locks
        yield
    finally:
        os.close(descriptor)
