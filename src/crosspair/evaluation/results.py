"""Results of an evaluation: their file format, intervals, and means over official splits."""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from crosspair.errors import RunError
from crosspair.files import write_atomically
from crosspair.provenance import Machine, Provenance

SUBJECTS = ("trained", "random weights", "chance")
Subject: TypeAlias = str
"""One of `SUBJECTS`, or the name of another model that is compared with the trained one."""
MEDIAN_RANK = "median rank"
PLACE = "{}"  # placeholder of the split's number in names of manifests, models and folders
ROUNDS = 1000  # bootstrap resamples
LEVEL = 0.95  # of intervals


@dataclass(frozen=True)
class RecordingCounts:
    """Numbers of correctly classified and of all videos of R recordings in D tests, whose accuracies are averaged.

    Clips that are cut from one recording (see `crosspair.corpora.ucf_hmdb.recording_ids`) are alike, so that fewer
    than their number are independent.
    """

    recordings: list[str]  # R names
    correct: list[list[int]]  # (D, R)
    tested: list[list[int]]  # (D, R)

    @classmethod
    def count(
        cls, correct: torch.Tensor, recordings: Sequence[str], counted: torch.Tensor | None = None
    ) -> RecordingCounts:
        """Count the videos of each recording.

        Args:
            correct: (V,) or (D, V) bool, whether a video is classified correctly.
            recordings: recording of each video, V.
            counted: (D, V) bool, videos that belong to each test; None for all.
        """
        rows = correct.view(-1, correct.shape[-1])
        mask = torch.ones_like(rows) if counted is None else counted
        places = {name: place for place, name in enumerate(dict.fromkeys(recordings))}
        columns = torch.tensor([places[name] for name in recordings])
        zeros = torch.zeros(len(rows), len(places), dtype=torch.long)
        hits, tested = (zeros.index_add(1, columns, each.long()).tolist() for each in (rows & mask, mask))
        return cls(list(places), hits, tested)

    @classmethod
    def join(cls, parts: Sequence[RecordingCounts]) -> RecordingCounts:
        """Join the tests of several splits; a recording of several splits becomes one."""
        names = list(dict.fromkeys(name for part in parts for name in part.recordings))
        rows: list[list[list[int]]] = [[], []]
        for part in parts:
            for joined, own in zip(rows, (part.correct, part.tested), strict=True):
                for row in own:
                    values = dict(zip(part.recordings, row, strict=True))
                    joined.append([values.get(name, 0) for name in names])
        return cls(names, *rows)


@dataclass(frozen=True)
class Result:
    """A measured value and the protocol that it was measured by.

    Attributes:
        protocol: Such as "kNN", "zero-shot", "retrieval text→video".
        metric: Such as "top-1", "R@1", "R@5", "R@10", "median rank".
        value: A fraction, 0 to 1; for "median rank" a rank, from 1.
        of: Measured model, see `Subject`; "chance" is the expected value of random guesses.
        split: Test split of the manifest.
        feature: "visual" (before the projection head), "embedding" (after it), or empty.
        count: Number of test items.
        settings: Other settings of the protocol, such as ``{"k": 25, "clips": 10}``.
        interval: 95 % bootstrap interval over the recordings of the test videos, or None.
        details: ``per_class`` and ``confusion`` of a top-1 accuracy, see `class_details`; the single ``draws`` and
            their standard deviation, ``spread``, of a mean; the number of ``tokens`` of a video.
        by_recording: What the interval is estimated from, for means over official splits.
    """

    protocol: str
    metric: str
    value: float
    of: Subject
    split: str = "test"
    feature: str = ""
    count: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    by_recording: RecordingCounts | None = None

    @property
    def smaller_is_better(self) -> bool:
        """Whether the value is a rank rather than a fraction."""
        return self.metric == MEDIAN_RANK


def chance_result(result: Result, value: float) -> Result:
    """Return a copy of a result for random guesses: the given value, no interval and details."""
    return replace(result, of="chance", value=value, interval=None, details={}, by_recording=None)


def write_results(
    path: str | os.PathLike[str], results: Sequence[Result], provenance: Provenance, *, by_recording: bool = False
) -> None:
    """Write results as JSON, atomically; an existing file is replaced.

    Args:
        by_recording: also write `Result.by_recording`, which takes a few bytes per video.

    Raises:
        RunError: a value is not finite, or the file cannot be written.
    """
    entries = []
    optional = ("interval", "details", "by_recording")
    for result in results:
        if not math.isfinite(result.value):
            raise RunError(
                f"{path}: {result.protocol} {result.metric} of {result.of} is {result.value}; results must be finite"
            )
        result = result if by_recording else replace(result, by_recording=None)
        entry = {name: value for name, value in asdict(result).items() if value or name not in optional}
        # One line per result: with indentation, details of many classes would fill pages.
        entries.append(f"    {json.dumps(entry, ensure_ascii=False)}")
    origin = json.dumps(asdict(provenance), indent=2, ensure_ascii=False).replace("\n", "\n  ")
    lines = ",\n".join(entries)
    write_atomically(Path(path), f'{{\n  "provenance": {origin},\n  "results": [\n{lines}\n  ]\n}}\n')


def read_results(path: str | os.PathLike[str]) -> tuple[list[Result], Provenance]:
    """Read a file written by `write_results`.

    Raises:
        RunError: the file does not exist or is not a results file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        machine = Machine(**content["provenance"]["machine"])
        origin = Provenance(**{**content["provenance"], "machine": machine})
        return [_result_from_json(values) for values in content["results"]], origin
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist; evaluate the run to write it") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path} is not a results file ({type(error).__name__}: {error}); evaluate the run again to regenerate it"
        ) from error


def _result_from_json(values: dict[str, Any]) -> Result:
    """Build a result from its JSON object; raise ValueError or TypeError if it is invalid."""
    result = Result(**values)
    if not isinstance(result.of, str) or not result.of:
        raise ValueError(f"'of' must be the name of a model, not {result.of!r}")
    for name in ("settings", "details"):
        if not isinstance(mapping := getattr(result, name), dict):
            raise TypeError(f"'{name}' must be a JSON object, not {mapping!r}")
    if not math.isfinite(result.value):
        raise ValueError(f"'value' is {result.value}")
    if counts := values.get("by_recording"):
        result = replace(result, by_recording=RecordingCounts(**counts))
    if result.interval is None:
        return result
    low, high = map(float, result.interval)
    return replace(result, interval=(low, high))


def bootstrap_interval(counts: RecordingCounts, *, seed: int, rounds: int = ROUNDS) -> tuple[float, float] | None:
    """Estimate the 95 % interval of the mean accuracy by resampling the recordings with replacement.

    All tests have the same resamples, since a recording may be in several.

    Returns:
        The 2.5th and the 97.5th percentile of the accuracy, 0 to 1; None if there is only one recording.
    """
    if len(counts.recordings) < 2:
        return None
    hits, tested = (torch.tensor(rows).double() for rows in (counts.correct, counts.tested))  # (D, R)
    generator = torch.Generator().manual_seed(seed)
    recordings = hits.shape[1]
    accuracies = []
    for _ in range(rounds):
        drawn = torch.randint(recordings, (recordings,), generator=generator)
        times = torch.bincount(drawn, minlength=recordings).double()
        # A test without a drawn video has accuracy NaN and is excluded from the mean.
        accuracies.append((hits @ times / (tested @ times)).nanmean())
    tail = (1 - LEVEL) / 2
    low, high = torch.stack(accuracies).nanquantile(torch.tensor([tail, 1 - tail]).double()).tolist()
    return low, high


def class_details(classes: Sequence[str], truth: torch.Tensor, predicted: torch.Tensor) -> dict[str, Any]:
    """Compute accuracies and confusions by class, for `Result.details`, from true and predicted classes (V,) int64.

    Returns:
        ``per_class``: accuracy by name, of classes that have videos; ``confusion``: for each of
        these, the number of its videos by predicted name.

    >>> found = class_details(["cat", "dog"], torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    >>> found["per_class"], found["confusion"]["cat"]
    ({'cat': 0.5, 'dog': 1.0}, {'cat': 1, 'dog': 1})
    """
    predictions: dict[str, list[str]] = defaultdict(list)
    for label, prediction in zip(truth.tolist(), predicted.tolist(), strict=True):
        predictions[classes[label]].append(classes[prediction])
    confusion = {name: dict(sorted(Counter(predictions[name]).items())) for name in sorted(predictions)}
    per_class = {name: row.get(name, 0) / sum(row.values()) for name, row in confusion.items()}
    return {"per_class": per_class, "confusion": confusion}


# --- official splits ----------------------------------------------------------------------------


def fill_split(name: str, split: int | None) -> str:
    """Replace ``{}`` in a name by the number of an official split; None leaves the name unchanged.

    >>> fill_split("ucf101/split{}.parquet", 2)
    'ucf101/split2.parquet'
    """
    return name.replace(PLACE, str(split)) if split else name


def check_manifest_name(name: str) -> None:
    """Raise RunError unless a manifest's name has the placeholder ``{}`` for the split's number."""
    if PLACE not in name:
        raise RunError(
            f"--splits needs a manifest name with {PLACE} for the split's number, such as "
            f"split{PLACE}.parquet, not {name}"
        )


def write_split_means(path: Path, found: Mapping[int, tuple[Sequence[Result], Provenance]]) -> list[Result]:
    """Write means over official splits, and the results of each except those of chance; return the means.

    The results and their provenance are given by the split's number.
    """
    results = [
        replace(result, settings={**result.settings, "official split": split})
        for split, (of_split, _) in found.items()
        for result in of_split
    ]
    means = mean_results(results)
    # Chance is equal for all splits; the means contain it.
    measured = [result for result in results if result.of != "chance"]
    origins = [origin for _, origin in found.values()]
    model, manifest, file = (
        "+".join(dict.fromkeys(getattr(origin, name) for origin in origins))
        for name in ("model", "manifest", "manifest_file")
    )
    compared = {name: "+".join(dict.fromkeys(each.compared[name] for each in origins)) for name in origins[0].compared}
    origin = replace(origins[-1], model=model, manifest=manifest, manifest_file=file, compared=compared)
    write_results(path, means + measured, origin)
    return means


def mean_results(results: Sequence[Result]) -> list[Result]:
    """Average results over official splits, by protocol, metric, feature and subject (`of`); their counts are summed.

    The single values are in ``details["draws"]``. The interval resamples each recording jointly in all splits, as the
    test splits of HMDB51 overlap. It is None for results without `Result.by_recording`.
    """
    groups: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for result in results:
        groups[result.protocol, result.metric, result.feature, result.of].append(result)
    means = []
    for members in groups.values():
        first, values = members[0], [member.value for member in members]
        common = {
            name: value
            for name, value in first.settings.items()
            if all(member.settings.get(name) == value for member in members)
        }
        splits = [member.settings["official split"] for member in members]
        counts = [member.by_recording for member in members if member.by_recording]
        known = len(counts) == len(members)
        means.append(
            replace(
                first,
                value=sum(values) / len(values),
                count=sum(member.count for member in members),
                settings={**common, "mean of splits": splits},
                interval=bootstrap_interval(RecordingCounts.join(counts), seed=0) if known else None,
                details={"draws": values},
                by_recording=None,
            )
        )
    return means
