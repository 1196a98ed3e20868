"""Where the pixels of one pair are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Clip:
    """A video, or a part of it.

    Attributes:
        path: of the file, or any fsspec URL.
        start: where the part begins, in s; from the beginning where it is None.
        end: where the part ends, in s; at the end where it is None.
    """

    path: str
    start: float | None = None
    end: float | None = None
