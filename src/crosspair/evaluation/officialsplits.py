"""Official splits: the same test on each of them, and the means (Section 4.2)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from crosspair.errors import RunError
from crosspair.evaluation.origin import Provenance
from crosspair.evaluation.results import Result, write_results

PLACE = "{}"  # of a split's number, in the names of manifests, models and folders


def name_of_split(name: str, split: int | None) -> str:
    """The name with the split's number in its place, if there are such.

    >>> name_of_split("ucf101/split{}.parquet", 2)
    'ucf101/split2.parquet'
    """
    return name.replace(PLACE, str(split)) if split else name


def check_manifest_name(name: str) -> None:
    """See that a manifest's name differs between splits.

    Raises:
        RunError: it has no place for a number.
    """
    if PLACE not in name:
        raise RunError(f"--splits needs a manifest for each, as split{PLACE}.parquet: {name}")


def write_over_splits(
    path: Path, found: Mapping[int, tuple[Sequence[Result], Provenance]]
) -> list[Result]:
    """Write the means over splits, then the results of each.

    Args:
        path: the file.
        found: for each split's number, its results and their origin.

    Returns:
        The means.
    """
    each = [
        dataclasses.replace(result, settings={**result.settings, "official split": split})
        for split, (results, _) in found.items()
        for result in results
    ]
    means = mean_results(each)
    # Chance is the same for every split, and stands beside the means.
    measured = [result for result in each if result.of != "chance"]
    write_results(path, means + measured, _joined([origin for _, origin in found.values()]))
    return means


def mean_results(results: Sequence[Result]) -> list[Result]:
    """The mean over official splits of each protocol, metric and feature.

    Args:
        results: of single splits, which their settings name.

    Returns:
        A result for each kind; its ``details`` hold the single values, in order. Its interval
        takes those of the splits for symmetric, and independent of one another, as their tested
        videos are others.
    """
    kinds: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        kind = (result.protocol, result.metric, result.feature, result.of)
        kinds.setdefault(kind, []).append(result)
    means = []
    for members in kinds.values():
        first, values = members[0], [member.value for member in members]
        settings = {
            name: value
            for name, value in first.settings.items()
            if all(member.settings.get(name) == value for member in members)
        }
        splits = [member.settings["official split"] for member in members]
        mean = sum(values) / len(values)
        means.append(
            dataclasses.replace(
                first,
                value=mean,
                count=sum(member.count for member in members),
                settings={**settings, "mean of splits": splits},
                interval=_interval(mean, members),
                details={"draws": values},
            )
        )
    return means


def _interval(mean: float, members: Sequence[Result]) -> tuple[float, float] | None:
    widths = [member.interval[1] - member.interval[0] for member in members if member.interval]
    if len(widths) < len(members):
        return None
    half = math.hypot(*widths) / 2 / len(widths)
    return max(0.0, mean - half), min(1.0, mean + half)


def _joined(origins: Sequence[Provenance]) -> Provenance:
    """That of the last, with the models and manifests of all."""
    model, manifest, file = (
        "+".join(dict.fromkeys(getattr(origin, name) for origin in origins))
        for name in ("model", "manifest", "manifest_file")
    )
    return dataclasses.replace(origins[-1], model=model, manifest=manifest, manifest_file=file)
