"""What is to be seen when: windows of one video that are of the same class, joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np


@dataclass(frozen=True)
class Stretch:
    """Some seconds of a video that are of one class.

    Attributes:
        start, end: in s.
        label: of the class.
        score: mean of its windows' scores, 0 to 1.
    """

    start: float
    end: float
    label: str
    score: float


def timeline(
    spans: Sequence[tuple[float, float]], scores: np.ndarray, classes: Sequence[str]
) -> list[Stretch]:
    """Join neighbouring windows whose best class is the same.

    Args:
        spans: start and end of each window in s, ascending; they may overlap.
        scores: (n, C), of each window and class.
        classes: C names.

    Returns:
        One after the other; where windows overlap, the later one begins what is next.

    >>> scores = np.array([[1, 0], [1, 0], [0, 1]])
    >>> first, second = timeline([(0, 4), (2, 6), (4, 8)], scores, ["dog", "cat"])
    >>> first, second.start
    (Stretch(start=0, end=4, label='dog', score=1.0), 4)
    """
    best = scores.argmax(axis=1)
    apart = [start > end for (_, end), (start, _) in pairwise(spans)]
    gaps = np.cumsum([False, *apart])  # before each window; what could not be read has no class
    stretches = []
    for (_, label), members in groupby(range(len(spans)), key=lambda i: (gaps[i], int(best[i]))):
        rows = list(members)
        following = rows[-1] + 1
        end = spans[rows[-1]][1]
        if following < len(spans):
            end = min(end, spans[following][0])
        score = float(scores[rows, label].mean())
        stretches.append(Stretch(spans[rows[0]][0], end, classes[label], score))
    return stretches


def clock(seconds: float) -> str:
    """Seconds as a player shows them.

    >>> clock(3725.9), clock(61)
    ('1:02:05', '1:01')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
