"""What is asked of a worker of any engine, and what it answers, whatever happens."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crosspair.atomic import write_atomically
from crosspair.clip import Clip
from crosspair.corpora.prepare.settings import Settings
from crosspair.corpora.prepare.transcode import transcode
from crosspair.errors import RunError, VideoError
from crosspair.video.container import probe


@dataclass(frozen=True)
class Request:
    """One file to be made.

    Attributes:
        clip: the source, and the part of it to take.
        settings: of the file.
        target: where the file is to stand.
        key: of the settings, the clip, and the state in which its source was found.
    """

    clip: Clip
    settings: Settings
    target: Path
    key: str


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Attributes:
        seconds: how long it took.
        size: of the file, in bytes.
        probed: the manifest's columns that probing the file fills.
        error: what is wrong with the source, in one line; empty where nothing is.
        fatal: why no other request can do better, in one line; empty where others can.
    """

    seconds: float = 0.0
    size: int = 0
    probed: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    fatal: str = ""


def attempt(request: Request) -> Outcome:
    """Make a file, in one step."""
    begun = time.perf_counter()
    try:
        content = transcode(request.clip, request.settings)
        write_atomically(request.target, content)
        probed = asdict(probe(str(request.target)))
        return Outcome(time.perf_counter() - begun, len(content), probed)
    except VideoError as error:
        fault = str(error)
    except RunError as error:
        kept = "; what is done is kept, and the same command goes on from there"
        return Outcome(fatal=_one_line(str(error)) + kept)
    except Exception as error:  # of 240,000 files from the web, one will show a fault unknown yet
        fault = f"{request.clip.path}: cannot be prepared ({type(error).__name__}: {error})"
    return Outcome(time.perf_counter() - begun, error=_one_line(fault))


def _one_line(text: str) -> str:
    return " ".join(text.split())
