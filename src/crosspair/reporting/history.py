"""What happened in a training: the lines of a run's ``metrics.jsonl``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from crosspair.errors import RunError
from crosspair.journal import entries

Line = dict[str, Any]
_STAGE_2 = "stage II begins"
_KINDS = ("train", "validation", "event")


@dataclass(frozen=True)
class History:
    """Lines by kind, in the order of steps.

    Attributes:
        train: means over the last steps: loss, posteriors, learning rate, speed.
        validation: retrieval on the validation pairs.
        events: what changed the course of the training.
    """

    train: Sequence[Line] = ()
    validation: Sequence[Line] = ()
    events: Sequence[Line] = ()

    @property
    def stage2_epoch(self) -> float | None:
        """Where the language model began to be trained; ``None`` if it never did, or always."""
        begun = [line["epoch"] for line in self.events if line.get("event") == _STAGE_2]
        return float(begun[0]) if begun else None


def read_history(run: str | os.PathLike[str]) -> History:
    """Read the history of a run.

    Lines that a kill cut short are left out. A run that was killed and resumed may repeat steps;
    the last line of each step counts.

    Args:
        run: the run's folder, or its ``metrics.jsonl``.

    Raises:
        RunError: there is no such file, or it cannot be read.
    """
    path = Path(run)
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise RunError(f"{path} does not exist; has the training begun?")
    last = {
        (line["kind"], line["step"], line.get("event")): line
        for line in entries(path)
        if isinstance(line, dict) and {"kind", "step", "epoch"} <= line.keys()
    }
    lines = sorted(last.values(), key=lambda line: float(line["step"]))
    return History(*([line for line in lines if line["kind"] == kind] for kind in _KINDS))


def series(lines: Sequence[Line], name: str) -> tuple[list[float], list[float]]:
    """Epochs and values of one quantity, from the lines that have it as a finite number.

    >>> series([{"epoch": 0.5, "loss": 9.0}, {"epoch": 1.0}], "loss")
    ([0.5], [9.0])
    """
    found = [(line["epoch"], line.get(name)) for line in lines]
    finite = [(float(x), float(y)) for x, y in found if isinstance(y, int | float) and isfinite(y)]
    return [x for x, _ in finite], [y for _, y in finite]
