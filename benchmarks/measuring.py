"""What every benchmark does: take turns, summarise, write down with machine and versions."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from crosspair.atomic import write_atomically
from crosspair.evaluation.origin import provenance

Ways = Mapping[str, Callable[[Any], object]]


@dataclass(frozen=True)
class Spread:
    """A median, and the quartiles on its two sides."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Summarise two values or more.

    >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
    Spread(median=3.0, low=2.0, high=4.0)
    """
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def rounds_of_turns(
    ways: Ways,
    jobs: Sequence[Any],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[list[float]]]:
    """Do every job in every way, taking turns, so that whatever slows the machine slows all ways.

    Args:
        ways: from their names to functions of a job.
        jobs: what they are given.
        rounds: how many times all is done, after a round that does not count.
        clock: what tells seconds: the processor's, in which other processes do not count, or
            `time.perf_counter`.

    Returns:
        For each way and round, the seconds of each job.
    """
    seconds: dict[str, list[list[float]]] = {name: [] for name in ways}
    for count in range(-1, rounds):
        this_round: dict[str, list[float]] = {name: [] for name in ways}
        for number, job in enumerate(jobs):
            names = list(ways)
            turn = (number + count) % len(names)  # no way always comes after the same other
            for name in names[turn:] + names[:turn]:
                begun = clock()
                ways[name](job)
                this_round[name].append(clock() - begun)
        if count >= 0:
            for name, taken in this_round.items():
                seconds[name].append(taken)
    return seconds


def compared(seconds: Mapping[str, Sequence[Sequence[float]]], base: str) -> dict[str, Any]:
    """Milliseconds a job of each way, and how many times faster it is than ``base``.

    The ratio is of the medians of one round; its spread is over the rounds.
    """
    medians = {name: [statistics.median(each) for each in of] for name, of in seconds.items()}
    return {
        name: {
            "ms": asdict(spread([1e3 * each for one_round in of for each in one_round])),
            "times_faster": asdict(
                spread([a / b for a, b in zip(medians[base], medians[name], strict=True)])
            ),
        }
        for name, of in seconds.items()
    }


def print_comparison(title: str, results: Mapping[str, Any]) -> None:
    """Show what `compared` returns."""
    table = Table("way", title=title, box=None, header_style="bold", title_justify="left")
    for column in ("ms", "quartiles", "times faster", "quartiles"):
        table.add_column(column, justify="right")
    for name, result in results.items():
        ms, faster = result["ms"], result["times_faster"]
        table.add_row(
            name,
            f"{ms['median']:.1f}", f"{ms['low']:.1f} to {ms['high']:.1f}",
            f"{faster['median']:.2f}", f"{faster['low']:.2f} to {faster['high']:.2f}",
        )  # fmt: skip
    Console().print(table)


def write_results(
    path: Path, results: Mapping[str, Any], *, seed: int, packages: Sequence[str]
) -> None:
    """Write results as JSON, with the machine, the commit and the versions they hang on."""
    origin = asdict(provenance(recipe="", model="", manifest="", seed=seed))
    content = {
        **results,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        **{name: origin[name] for name in ("commit", "machine", "seed", "created")},
    }
    write_atomically(path, json.dumps(content, indent=2) + "\n")
