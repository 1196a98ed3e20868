"""Losses and gradients on two processes equal those of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.objective_step import OBJECTIVES
from tests.distributed.test_processes import run

SCRIPT = Path(__file__).with_name("objective_step.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, list]]]:
    """Results of one and of two processes for every objective."""
    folder = tmp_path_factory.mktemp("objectives")
    for processes in (1, 2):
        run(SCRIPT, processes, str(folder / f"{processes}.pt"))
    return [torch.load(folder / f"{n}.pt", weights_only=True) for n in (1, 2)]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_match_one(found, objective: str) -> None:
    one, two = (each[objective] for each in found)
    for what in ("losses", "bank"):
        torch.testing.assert_close(two[what], one[what], rtol=1e-5, atol=1e-5, msg=what)
    learned = {"weights": 1, "siglip": 2}.get(objective.split(",")[0], int("learned" in objective))
    assert len(one["gradients"]) == 2 * (4 + learned)
    for of_one, of_two in zip(one["gradients"], two["gradients"], strict=True):
        largest = float(of_one.abs().max())
        assert largest > 0
        torch.testing.assert_close(of_two, of_one, rtol=1e-4, atol=1e-5 * largest)


def test_objectives_differ(found) -> None:
    # At the second step, since a learned temperature starts as a constant one.
    losses = {round(float(each["losses"][1]), 6) for each in found[0].values()}
    assert len(losses) == len(OBJECTIVES)
