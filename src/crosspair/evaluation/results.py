"""Results: every number with the protocol it was measured by, and where it comes from."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from crosspair.atomic import write_atomically
from crosspair.errors import RunError
from crosspair.evaluation.origin import Machine, Provenance

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


def of_chance(result: Result, value: float) -> Result:
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
