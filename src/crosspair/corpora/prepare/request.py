"""What is asked of a worker of any engine, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crosspair.clip import Clip
from crosspair.corpora.prepare.settings import Settings


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
