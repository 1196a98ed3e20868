"""A folder that one process at a time writes to."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crosspair.errors import RunError


@contextmanager
def alone_in(folder: Path, does: str) -> Iterator[None]:
    """Hold a folder for this process; the system lets go of it however the process ends.

    On file systems without locks nothing is held.

    Args:
        folder: it is there.
        does: what another process would be doing, for the message, as "trains".

    Raises:
        RunError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"another process {does} in {folder}; wait until it ends") from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)
