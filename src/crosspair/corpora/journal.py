"""What a check has found so far, so that one that was killed goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from crosspair.corpora.probing import Found, Part
from crosspair.errors import ManifestError
from crosspair.faults import Kind, Verdict


class Journal:
    """A file with a line for each video that was looked at, open for more.

    A line counts for as long as its video's size and time of change are what they were. A remote
    video is taken to be what it was.

    Args:
        path: of the file; made, with its folder, where there is none.

    Raises:
        ManifestError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Found] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                self._read()
            self._file = path.open("a", encoding="utf-8")
            self._file.write("\n" if self._known else "")  # whatever the last line was
        except OSError as error:
            raise ManifestError(f"{path} cannot be written: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):  # what could not be written was told by `add`
            self._file.close()

    def known(self, path: str, parts: Sequence[Part]) -> Found | None:
        """What is written of these parts of a video, if it has not changed since."""
        return self._known.get(_key(path, parts))

    def add(self, path: str, parts: Sequence[Part], found: Found) -> None:
        """Write what was found.

        Raises:
            ManifestError: it cannot be written.
        """
        verdicts = [[verdict.kind.name, verdict.reason] for verdict in found.verdicts]
        try:
            self._file.write(json.dumps([_key(path, parts), found.columns, verdicts]) + "\n")
            self._file.flush()
        except OSError as error:
            raise ManifestError(f"{self.path} cannot be written: {error.strerror}") from error

    def remove(self) -> None:
        """All is done, and told elsewhere."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        with self.path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with suppress(ValueError, KeyError, TypeError):  # a kill cut it short
                    key, columns, verdicts = json.loads(line)
                    self._known[key] = Found(columns, [Verdict(Kind[k], r) for k, r in verdicts])


def _key(path: str, parts: Sequence[Part]) -> str:
    state: Any = None
    with suppress(OSError, ValueError):
        status = Path(path).stat()
        state = status.st_size, status.st_mtime_ns
    return json.dumps([path, state, list(parts)])
