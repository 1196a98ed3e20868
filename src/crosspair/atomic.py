"""Files that are written in one step: a reader sees the old file or the new one, never half."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from crosspair.errors import CrosspairError, RunError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file, see `written`."""
    with written(path) as partial:
        partial.write_bytes(
            content.encode(errors="backslashreplace") if isinstance(content, str) else content
        )


@contextmanager
def written(path: Path, fault: type[CrosspairError] = RunError) -> Iterator[Path]:
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
