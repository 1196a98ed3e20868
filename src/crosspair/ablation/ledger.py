"""What is known of the cells: ``ablation.json``, which is written anew after each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from crosspair.ablation.cells import Cell
from crosspair.ablation.plan import Plan, plain
from crosspair.atomic import write_atomically

DONE, FAILED, MISSING = "done", "failed", "missing"
STATE, RESULTS = "cell.json", "results.json"


def read_state(folder: Path) -> dict[str, Any]:
    """What a cell's folder says of it: status, seconds, clips, pairs, error; empty at first."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Keep what is known of a cell."""
    write_atomically(folder / STATE, json.dumps(state, indent=2, ensure_ascii=False) + "\n")


def status(folder: Path) -> str:
    """Whether a cell is done, failed, or missing still."""
    state = read_state(folder)
    if state.get("status") == DONE and (folder / RESULTS).is_file():
        return DONE
    return FAILED if state.get("status") == FAILED else MISSING


class Ledger:
    """Writes ``plan.yaml`` and ``ablation.json``.

    Args:
        out: the ablation's folder.
        plan: as it was resolved.
        cells: all of the plan, whether they are to be run now or not.
    """

    def __init__(self, out: Path, plan: Plan, cells: Sequence[Cell]) -> None:
        self.out, self.plan, self.cells = out, plan, cells

    def write(self) -> None:
        """Both files, of this moment."""
        settings = plain(self.plan)
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        write_atomically(self.out / "plan.yaml", text)
        content = {"plan": settings, "cells": [self._entry(cell) for cell in self.cells]}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.out / "ablation.json", text)

    def _entry(self, cell: Cell) -> dict[str, Any]:
        folder = self.out / cell.folder
        state, now = read_state(folder), status(folder)
        return {
            "row": cell.row,
            "seed": cell.seed,
            "hash": cell.hash,
            "folder": cell.folder,
            "status": now,
            "error": state.get("error") if now == FAILED else None,  # not of an earlier trial
            "seconds": state.get("seconds", {}),
            "clips": state.get("clips", cell.clips),
            "pairs": state.get("pairs", cell.pairs),
        }
