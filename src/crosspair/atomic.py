"""Files that are written in one step: a reader sees the old file or the new one, never half."""

from __future__ import annotations

import os
from pathlib import Path

from crosspair.errors import RunError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside ``path``, then rename; folders on the way are made.

    Raises:
        RunError: the folder or the file cannot be written; an old file is left as it was.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if partial.is_file():
            partial.unlink()
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error
