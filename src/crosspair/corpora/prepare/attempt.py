"""One request answered, whatever happens: what a worker of any engine runs."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crosspair.atomic import write_atomically
from crosspair.corpora.prepare.request import Outcome, Request
from crosspair.corpora.prepare.transcode import transcode
from crosspair.errors import RunError, VideoError
from crosspair.video.container import probe


def attempt(form: list[Any]) -> dict[str, Any]:
    """Make a file, in one step.

    Args:
        form: `Request.to_json`.

    Returns:
        The fields of `Outcome`.
    """
    return asdict(_outcome(Request.from_json(form)))


def _outcome(request: Request) -> Outcome:
    begun = time.perf_counter()
    try:
        content = transcode(request.clip, request.settings)
        probed = _written(content, request.target)
    except VideoError as error:
        return Outcome(time.perf_counter() - begun, error=_one_line(str(error)))
    except RunError as error:
        return Outcome(
            fatal=f"{_one_line(str(error))}; what is done is kept, and the same command goes on "
            "from there"
        )
    except Exception as error:  # of 240,000 files from the web, one will show a fault unknown yet
        told = f"{request.clip.path}: cannot be prepared ({type(error).__name__}: {error})"
        return Outcome(time.perf_counter() - begun, error=_one_line(told))
    return Outcome(time.perf_counter() - begun, len(content), probed)


def _written(content: bytes, target: Path | None) -> dict[str, Any]:
    if target is None:
        with tempfile.TemporaryDirectory() as folder:
            return _written(content, Path(folder) / "sample.mp4")
    write_atomically(target, content)
    return asdict(probe(str(target)))


def _one_line(text: str) -> str:
    return " ".join(text.split())
