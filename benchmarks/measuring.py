"""Shared by all benchmarks: run implementations in turns, summarise times, write results."""

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

from crosspair.files import write_atomically
from crosspair.provenance import provenance

Ways = Mapping[str, Callable[[Any], object]]


@dataclass(frozen=True)
class Quartiles:
    """Median, and lower and upper quartile."""

    median: float
    low: float
    high: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Compute the quartiles of two or more values.

    >>> quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
    Quartiles(median=3.0, low=2.0, high=4.0)
    """
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Quartiles(median, low, high)


def run_in_turns(
    ways: Ways, jobs: Sequence[Any], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[list[float]]]:
    """Time every job in every way, in turns, so that other load affects all ways alike.

    Args:
        ways: functions of a job, by name.
        jobs: arguments of the functions.
        rounds: number of repetitions, after one warm-up round.
        clock: returns seconds; CPU time by default, or `time.perf_counter` for wall-clock time.

    Returns:
        For each way and round, the time of each job in seconds.
    """
    seconds: dict[str, list[list[float]]] = {name: [] for name in ways}
    for count in range(-1, rounds):
        this_round: dict[str, list[float]] = {name: [] for name in ways}
        for number, job in enumerate(jobs):
            names = list(ways)
            turn = (number + count) % len(names)  # rotate the order
            for name in names[turn:] + names[:turn]:
                start = clock()
                ways[name](job)
                this_round[name].append(clock() - start)
        if count >= 0:
            for name, times in this_round.items():
                seconds[name].append(times)
    return seconds


def compare_times(seconds: Mapping[str, Sequence[Sequence[float]]], base: str) -> dict[str, Any]:
    """Summarise the time per job in ms of each way, and its speed-up over ``base``.

    The speed-up is the ratio of the medians of a round; its quartiles are over the rounds.
    """
    medians = {name: [statistics.median(each) for each in rounds] for name, rounds in seconds.items()}
    return {
        name: {
            "ms": asdict(quartiles([1e3 * each for one_round in rounds for each in one_round])),
            "times_faster": asdict(quartiles([a / b for a, b in zip(medians[base], medians[name], strict=True)])),
        }
        for name, rounds in seconds.items()
    }


def print_comparison(title: str, results: Mapping[str, Any]) -> None:
    """Print the result of `compare_times` as a table."""
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


def write_results(path: Path, results: Mapping[str, Any], *, seed: int, packages: Sequence[str]) -> None:
    """Write results as JSON, with the machine, the commit and the package versions."""
    origin = asdict(provenance(recipe="", model="", manifest="", seed=seed))
    content = {
        **results,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        **{name: origin[name] for name in ("commit", "machine", "seed", "created")},
    }
    write_atomically(path, json.dumps(content, indent=2) + "\n")
