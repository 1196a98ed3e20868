"""Results: every number with the protocol it was measured by, and where it comes from."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from crosspair.errors import RunError
from crosspair.files import write_atomically
from crosspair.provenance import Machine, Provenance

Subject = Literal["trained", "random weights", "chance"]
MEDIAN_RANK = "median rank"


@dataclass(frozen=True)
class Result:
    """One number.

    >>> Result("kNN", "top-1", 0.5, "trained", feature="visual", count=500).smaller_is_better
    False
    """

    protocol: str
    """As "kNN", "zero-shot", "retrieval text→video"."""
    metric: str
    """As "top-1", "R@1", "R@5", "R@10", "median rank"."""
    value: float
    """A fraction, 0 to 1; a median rank is a rank, from 1."""
    of: Subject
    """What was measured; "chance" is what guessing gives."""
    split: str = "test"
    """Split of the manifest that was tested."""
    feature: str = ""
    """"visual" (before the mapping layer), "embedding" (after it), or none."""
    count: int = 0
    """Items tested."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What else the protocol depends on, as ``{"k": 25, "clips": 10}``."""
    interval: tuple[float, float] | None = None
    """Where the value lies with 95 % of resamples of the tested videos; None where not computed."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """``per_class`` accuracies and ``confusion`` of a top-1 accuracy, see
    `crosspair.evaluation.class_details`; the single ``draws`` and their ``spread`` of a mean."""

    @property
    def smaller_is_better(self) -> bool:
        """Whether this is a rank rather than a fraction."""
        return self.metric == MEDIAN_RANK


def chance_result(result: Result, value: float) -> Result:
    """What guessing gives, beside a result."""
    return replace(result, of="chance", value=value, interval=None, details={})


def write_results(
    path: str | os.PathLike[str], results: Sequence[Result], provenance: Provenance
) -> None:
    """Write the results of one command as JSON, in one step; an old file is replaced.

    Raises:
        RunError: a value is not a finite number, or the file cannot be written.
    """
    for result in results:
        if not math.isfinite(result.value):
            raise RunError(
                f"{path}: {result.protocol} {result.metric} of {result.of} is {result.value}; "
                "only finite numbers are kept, so look for the fault where it was computed"
            )
    origin = json.dumps(asdict(provenance), indent=2, ensure_ascii=False).replace("\n", "\n  ")
    # A line for each result: details of many classes would fill pages otherwise.
    lines = ",\n".join(f"    {json.dumps(_told(each), ensure_ascii=False)}" for each in results)
    text = f'{{\n  "provenance": {origin},\n  "results": [\n{lines}\n  ]\n}}\n'
    write_atomically(Path(path), text)


def read_results(path: str | os.PathLike[str]) -> tuple[list[Result], Provenance]:
    """Read what `write_results` wrote.

    Raises:
        RunError: there is no such file, or it is not a file of results.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"it is a JSON {type(content).__name__}, no JSON object")
        machine = Machine(**content["provenance"]["machine"])
        origin = Provenance(**{**content["provenance"], "machine": machine})
        return [_result(each) for each in content["results"]], origin
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist; evaluate the run to write it") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path} is no file of results ({type(error).__name__}: {error}); "
            "evaluate the run again to write it anew"
        ) from error


def _told(result: Result) -> dict[str, Any]:
    told = asdict(result)
    for name in ("interval", "details"):
        if not told[name]:
            del told[name]
    return told


def _result(told: dict[str, Any]) -> Result:
    result = Result(**told)
    if result.of not in get_args(Subject):
        raise ValueError(f"{result.of!r} is none of {', '.join(get_args(Subject))}")
    for name in ("settings", "details"):
        if not isinstance(found := getattr(result, name), dict):
            raise TypeError(f"its {name} are {found!r}, no JSON object")
    if not math.isfinite(result.value):
        raise ValueError(f"its value is {result.value}")
    if result.interval is None:
        return result
    low, high = map(float, result.interval)
    return replace(result, interval=(low, high))


PLACE = "{}"  # of a split's number, in the names of manifests, models and folders


def fill_split(name: str, split: int | None) -> str:
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


def write_split_means(
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


ROUNDS = 1000  # resamples of the tested videos
LEVEL = 0.95


def bootstrap_interval(
    correct: torch.Tensor,
    counted: torch.Tensor | None = None,
    *,
    seed: int,
    rounds: int = ROUNDS,
) -> tuple[float, float]:
    """The 95 % interval of an accuracy, by drawing the tested videos again, with replacement.

    Args:
        correct: (V,) or (D, V) bool, which videos are classified rightly; accuracies of D tests of
            the same videos are averaged.
        counted: (D, V) bool, which videos each test is about; all where it is None.
        seed: of the draws.
        rounds: how many draws of V videos.

    Returns:
        The 2.5th and the 97.5th percentile of the accuracies, 0 to 1.
    """
    right = correct.view(-1, correct.shape[-1]).double()
    about = torch.ones_like(right) if counted is None else counted.double()
    generator = torch.Generator().manual_seed(seed)
    videos = right.shape[1]
    accuracies = []
    for _ in range(rounds):
        drawn = torch.randint(videos, (videos,), generator=generator)
        times = torch.bincount(drawn, minlength=videos).double()
        # A test none of whose videos was drawn has no accuracy, and is no part of the mean.
        accuracies.append(((right * about) @ times / (about @ times)).nanmean())
    tail = (1 - LEVEL) / 2
    ends = torch.tensor([tail, 1 - tail]).double()
    low, high = torch.stack(accuracies).nanquantile(ends).tolist()
    return low, high


def class_details(
    classes: Sequence[str], truth: torch.Tensor, predicted: torch.Tensor
) -> dict[str, Any]:
    """What became of each class, for `crosspair.evaluation.Result.details`.

    Args:
        classes: C names.
        truth: (V,) int64, the videos' classes.
        predicted: (V,) int64.

    Returns:
        ``per_class``: name to accuracy, of classes that have videos; ``confusion``: name to the
        names that its videos were given, each with how many were.

    >>> found = class_details(["cat", "dog"], torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    >>> found["per_class"], found["confusion"]["cat"]
    ({'cat': 0.5, 'dog': 1.0}, {'cat': 1, 'dog': 1})
    """
    confusion: dict[str, dict[str, int]] = {}
    for of, given in zip(truth.tolist(), predicted.tolist(), strict=True):
        row = confusion.setdefault(classes[of], {})
        row[classes[given]] = row.get(classes[given], 0) + 1
    ordered = {name: dict(sorted(confusion[name].items())) for name in sorted(confusion)}
    per_class = {name: row.get(name, 0) / sum(row.values()) for name, row in ordered.items()}
    return {"per_class": per_class, "confusion": ordered}
