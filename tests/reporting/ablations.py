"""Write ablation folders with known values."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from crosspair.evaluation import Machine, Provenance, Result, write_results

OBJECTIVES = ("cross-pair NCE", "ranking", "in-batch")
MACHINE = Machine("A processor", 2, 15.6, "2.13.0+cpu", "cpu")


def write_ablation(
    folder: Path,
    axes: Mapping[str, Sequence[str]],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    lost: Mapping[tuple[str, int], str] | None = None,
    claims: Sequence[dict[str, Any]] = (),
    shift: float = 0.02,
    **plan: Any,
) -> Path:
    """Write an ablation whose row number r has a known kNN accuracy with each seed s.

    It is 0.4 + s/100 + r · shift · (0.9 + s/10): 0.41 ± 0.01 in the first row, and differences to
    it of r · shift, with a standard deviation of a tenth of that.

    Args:
        folder: output folder.
        axes: values by axis; the first values are the baseline.
        seeds: of every row.
        lost: "failed" or "missing" by row name and seed.
        claims: as in the plan.
        shift: difference between rows.
        plan: other keys of the plan.
    """
    cells = []
    rows = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    for seed, (number, row) in itertools.product(seeds, enumerate(rows)):
        status = (lost or {}).get((" / ".join(row.values()), seed), "done")
        place = f"cells/{number:02}{seed}"
        if status != "missing":
            _write_cell(folder / place, number, seed, shift, done=status == "done")
        error = "RunError: the loss is not finite" if status == "failed" else None
        cells.append({
            "row": row, "seed": seed, "hash": f"{number:02}{seed}", "folder": place,
            "status": status, "error": error, "clips": 16000, "pairs": 1472, "tuning": False, "grid": {},
            "seconds": {"pretrain": 80.0, "evaluate": 15.0} if status == "done" else {},
        })  # fmt: skip
    settings = {
        "title": "Objectives", "table": "1a", "first": rows[0], "seeds": list(seeds),
        "axes": {axis: {value: {} for value in values} for axis, values in axes.items()},
        "claims": list(claims), **plan,
    }  # fmt: skip
    content = json.dumps({"plan": settings, "cells": cells})
    (folder / "ablation.json").write_text(content, encoding="utf-8")
    (folder / "plan.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return folder


def _write_cell(cell: Path, number: int, seed: int, shift: float, *, done: bool) -> None:
    chance = random.Random(100 * number + seed)
    cell.mkdir(parents=True)
    (cell / "log.txt").write_text("...\nRunError: the loss is not finite\n")
    with (cell / "metrics.jsonl").open("w") as file:
        for step in range(1, 41 if done else 21):
            line = {"step": step, "epoch": step / 10}
            loss = 9 / (1 + 0.05 * step) + chance.gauss(0, 0.1)
            file.write(json.dumps({"kind": "train", **line, "pairs": 400 * step, "loss": loss}))
            file.write("\n")
            if step % 5 == 0:
                found = (0.3 + number * shift) * (1 - 0.9**step) + chance.gauss(0, 0.01)
                scores = {"text_to_video_R@10": max(0.0, found)}
                file.write(json.dumps({"kind": "validation", **line, "pairs": 150, **scores}))
                file.write("\n")
    if done:
        origin = Provenance("r", "m", "ba98", "", seed, MACHINE, "2026-01-02T03:04:05Z")
        write_results(cell / "results.json", _results(number, seed, shift, chance), origin)


def _results(number: int, seed: int, shift: float, chance: random.Random) -> list[Result]:
    knn, views = {"k": 25, "classes": 16}, {"classes": 16, "labels": 1.0}
    value = 0.4 + seed / 100 + number * shift * (0.9 + seed / 10)
    noisy = value + chance.gauss(0.1, 0.01)
    results = [
        Result("kNN", "top-1", value, "trained", feature="visual", count=300, settings=knn),
        Result("kNN", "top-1", 1 / 16, "chance", feature="visual", count=300, settings=knn),
        Result("kNN", "top-1", value - 0.1, "trained", feature="embedding", settings=knn),
        Result("linear", "top-1", noisy, "trained", feature="visual", settings=knn),
        Result("3 views", "top-1", noisy + 0.2, "trained", settings=views),
        Result("retrieval text→video", "R@10", noisy - 0.3, "trained", feature="embedding"),
        Result("retrieval text→video", "median rank", 30.0 - number, "trained"),
    ]
    if number == 0:
        results += [
            Result("kNN", "top-1", 0.2 + seed / 50, "random weights", feature="visual",
                   settings=knn),
            Result("3 views", "top-1", 0.5 + seed / 50, "random weights", settings=views),
        ]  # fmt: skip
    return results
