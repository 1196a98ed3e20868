"""What the headers of many video files say, whatever state the files are in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from crosspair.errors import VideoError
from crosspair.video.decode import probe


def probe_all(
    paths: Sequence[str], *, progress: Callable[[int], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Probe files or URLs in parallel.

    Args:
        paths: as in `Clip.path`.
        progress: told how many are done.

    Returns:
        For each path, in order, the manifest's columns that probing fills: those of `VideoInfo`,
        or ``error`` alone, one line that says what is wrong.
    """
    found = []
    with ThreadPoolExecutor() as pool:
        for result in pool.map(_probed, paths):
            found.append(result)
            progress(len(found))
    return found


def _probed(path: str) -> dict[str, Any]:
    try:
        return asdict(probe(path))
    except VideoError as error:
        return {"error": str(error)}
