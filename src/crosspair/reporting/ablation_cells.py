"""An ablation's folder, read: its plan, and what each cell came to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosspair.errors import RunError
from crosspair.evaluation.results import Result, read_results
from crosspair.reporting.history import History, read_history

ABLATION = "ablation.json"
DONE = "done"


@dataclass(frozen=True)
class Cell:
    """One row of the plan with one seed.

    Attributes:
        row: axis to the name of its value.
        path: the cell's folder.
        status: "done", "failed" or "missing".
        error: of a failed cell, its log's last line.
        seconds: "pretrain", "evaluate" and "finetune", those that were done.
        clips: seen in pre-training.
    """

    row: Mapping[str, str]
    seed: int
    path: Path
    status: str
    error: str
    seconds: Mapping[str, float]
    clips: int
    results: Sequence[Result]
    history: History

    @property
    def name(self) -> str:
        """Its row's name, as "words / frozen"."""
        return " / ".join(self.row.values())

    @property
    def speed(self) -> float | None:
        """Clips a second in pre-training, as a whole."""
        taken = self.seconds.get("pretrain")
        return self.clips / taken if taken and self.status == DONE else None


@dataclass(frozen=True)
class Ablation:
    """What there is of an ablation.

    Attributes:
        table: the paper's table that it answers, as "1a"; empty where there is none.
        first: name of the row that the others are compared with.
        published: what the paper says: name of the row, source, protocol, metric; value,
            difference or note.
        cells: in the plan's order.
    """

    folder: Path
    title: str
    table: str
    first: str
    published: Sequence[Mapping[str, Any]]
    axes: Sequence[str]
    cells: Sequence[Cell]

    @property
    def rows(self) -> dict[str, list[Cell]]:
        """Cells by the names of rows, the first row first, then in the plan's order."""
        rows: dict[str, list[Cell]] = {self.first: []}
        for cell in self.cells:
            rows.setdefault(cell.name, []).append(cell)
        return rows

    @property
    def seeds(self) -> int:
        """How many seeds a row is to have."""
        return len({cell.seed for cell in self.cells})

    def count(self, status: str) -> int:
        """Of cells of a status."""
        return sum(cell.status == status for cell in self.cells)


def read_ablation(folder: Path) -> Ablation:
    """Read the folder that ``crosspair ablate`` writes.

    A cell that is called done but has no results that can be read counts as failed.

    Raises:
        RunError: there is no ``ablation.json``, or it is damaged.
    """
    path = folder / ABLATION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        plan = content["plan"]
        ablation = Ablation(
            folder,
            plan["title"],
            plan.get("table", ""),
            _name(plan["first"], plan["axes"]),
            [{**each, "name": _name(each["row"], plan["axes"])} for each in plan["published"]],
            list(plan["axes"]),
            [_cell(folder, each) for each in content["cells"]],
        )
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} is damaged ({type(error).__name__}: {error}); run the same crosspair ablate "
            "again to write it anew"
        ) from error
    if ablation.first not in {cell.name for cell in ablation.cells}:
        raise RunError(f"{path}: no cell is of the first row, {ablation.first!r}")
    return ablation


def _name(row: Mapping[str, str], axes: Sequence[str]) -> str:
    return " / ".join(row[axis] for axis in axes)


def _cell(folder: Path, told: Mapping[str, Any]) -> Cell:
    path, status, error = folder / told["folder"], told["status"], told["error"] or ""
    results: Sequence[Result] = ()
    if status == DONE:
        try:
            results, _ = read_results(path / "results.json")
        except RunError as fault:
            status, error = "failed", str(fault)
    history = read_history(path) if (path / "metrics.jsonl").is_file() else History()
    return Cell(
        told["row"], told["seed"], path, status, error, told["seconds"], told["clips"],
        results, history,
    )  # fmt: skip
