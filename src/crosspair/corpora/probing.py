"""What is found in many video files, whatever state the files are in.

Files are looked at in other processes (`crosspair.isolation`): one that crashes the decoder, or
makes it hang, is told as such, and the rest goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeAlias

from crosspair.faults import Kind, Verdict
from crosspair.isolation import Lost, isolated

HEADER_SECONDS, DECODE_SECONDS = 20.0, 60.0  # for one file; decoding has its own length besides
HEADER_WINDOW, DECODE_WINDOW = 32, 1  # files that a process is handed at once

Part: TypeAlias = "tuple[float | None, float | None]"
WHOLE: Part = (None, None)


@dataclass(frozen=True)
class Found:
    """What was found in a video.

    Attributes:
        columns: the manifest's columns of that name; empty where the header cannot be read.
        verdicts: one for each part that was asked for.
    """

    columns: dict[str, Any]
    verdicts: list[Verdict]


def probe_all(
    paths: Sequence[str],
    *,
    progress: Callable[[int], None] = lambda _: None,
    decode: bool = False,
) -> list[dict[str, Any]]:
    """Probe files or URLs in parallel; one that stands several times is looked at once.

    Args:
        paths: as in `Clip.path`.
        progress: told how many are done.
        decode: decode every frame, too.

    Returns:
        For each path, in order, the manifest's columns that probing fills: those of `VideoInfo`,
        or ``error`` alone, one line that says what is wrong.

    Raises:
        CrosspairError: processes cannot be started.
    """
    times = Counter(paths)
    jobs = [(path, [WHOLE]) for path in times]
    columns: dict[str, dict[str, Any]] = {}
    done = 0
    with closing(find_all(jobs, decode=decode)) as all_found:
        for job, found in all_found:
            path, verdict = jobs[job][0], found.verdicts[0]
            broken = {"error": f"{path}: {verdict.reason}"}
            columns[path] = broken if verdict.kind.broken else found.columns
            done += times[path]
            progress(done)
    return [dict(columns[path]) for path in paths]


def find_all(
    jobs: Sequence[tuple[str, Sequence[Part]]],
    *,
    decode: bool = False,
    workers: int | None = None,
    seconds: float | None = None,
) -> Generator[tuple[int, Found]]:
    """Look at parts of files or URLs in parallel.

    Args:
        jobs: paths, each with the parts of it that are wanted: (start, end) in s, as in `Clip`.
        decode: decode every frame of the parts, too.
        workers: processes; one a core where it is None.
        seconds: for one file (default: 20, and 60 and the video's own length for decoding).

    Yields:
        (index of the job, `Found`), in the order in which they are done.

    Raises:
        CrosspairError: processes cannot be started.
    """
    limit = seconds or (DECODE_SECONDS if decode else HEADER_SECONDS)
    answers = isolated(
        "crosspair.video.integrity:inspect_job",
        [(path, parts, decode) for path, parts in jobs],
        seconds=limit,
        workers=workers,
        window=DECODE_WINDOW if decode else HEADER_WINDOW,
    )
    with closing(answers):
        for job, answer in answers:
            if isinstance(answer, Lost):
                yield job, _lost(answer, decode, len(jobs[job][1]))
            else:
                yield job, Found(*answer)


def _lost(answer: Lost, decode: bool, parts: int) -> Found:
    if answer.hung:
        own = " and its own length" if decode else ""
        verdict = Verdict(Kind.HANG, f"{answer.reason}{own}; left out")
    else:
        verdict = Verdict(Kind.CRASH, answer.reason)
    return Found({}, [verdict] * parts)
