"""Results: every number with the protocol it was measured by, and where it comes from."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
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
    content = _json(Path(path))
    origin = _keys(content, "provenance", f"{path}")
    machine = Machine(**_checked(Machine, origin.get("machine"), f"{path}: machine"))
    values = _checked(Provenance, origin, f"{path}: provenance")
    listed = content.get("results")
    if not isinstance(listed, list):
        raise RunError(f"{path}: 'results' is no list; evaluate the run again to write it anew")
    results = [_result(each, f"{path}: result {i}") for i, each in enumerate(listed)]
    return results, Provenance(**{**values, "machine": machine})


def _told(result: Result) -> dict[str, Any]:
    told = asdict(result)
    for name in ("interval", "details"):
        if not told[name]:
            del told[name]
    return told


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist; evaluate the run to write it") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RunError(f"{path} is not JSON ({error}); evaluate the run again") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: a file of results is a JSON object, not {type(content).__name__}")
    return content


def _keys(content: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    found = content.get(key)
    if not isinstance(found, dict):
        raise RunError(f"{where}: {key!r} is missing; evaluate the run again to write it anew")
    return found


_KINDS = (
    ("value", int | float, "number"),
    ("count", int, "whole number"),
    *((name, str, "text") for name in ("protocol", "metric", "split", "feature")),
    *((name, dict, "JSON object") for name in ("settings", "details")),
)


def _result(found: Any, where: str) -> Result:
    result = Result(**_checked(Result, found, where))
    if result.of not in get_args(Subject):
        raise RunError(f"{where}: {result.of!r} is none of {', '.join(get_args(Subject))}")
    for name, kind, called in _KINDS:
        if not isinstance(getattr(result, name), kind):
            raise RunError(f"{where}: {name} {getattr(result, name)!r} is no {called}")
    if result.interval is None:
        return result
    match result.interval:
        case [int() | float() as low, int() | float() as high]:
            return replace(result, interval=(low, high))
    raise RunError(f"{where}: interval {result.interval!r} is no pair of numbers")


def _checked(kind: type, found: Any, where: str) -> dict[str, Any]:
    names = [each.name for each in fields(kind)]
    # What has a default may be absent, as in files of earlier versions.
    needed = {f.name for f in fields(kind) if f.default is f.default_factory is MISSING}
    if not isinstance(found, dict) or not needed <= set(found) <= set(names):
        given = ", ".join(found) if isinstance(found, dict) else repr(found)
        raise RunError(f"{where} has {given}; expected {', '.join(names)}")
    return found
