"""A small run of the objectives benchmark: both implementations update the bank equally."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from benchmarks import objectives
from benchmarks.objectives import BASE, CROSS_PAIR, OTHERS

from crosspair.config import ObjectiveConfig
from crosspair.distributed import World
from crosspair.objectives import MemoryBank


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "cores", lambda: 1)
    for name, value in {"DIMENSIONS": 16, "BATCH": 4, "PAPER_BATCH": 8, "ALL_AT": 300}.items():
        monkeypatch.setattr(objectives, name, value)


@pytest.mark.usefixtures("one_thread", "small")
def test_it_runs_and_skips_banks_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(objectives, "BF16_FROM", 1000)
    monkeypatch.setattr(objectives, "free_memory", lambda: 1 << 20)
    out = tmp_path / "objectives.json"
    sizes = ["--pairs", "300", "2000", "10000000", "--rounds", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["objectives", *sizes])
    objectives.main()
    results = json.loads(out.read_text())["results"]
    assert list(results) == ["300", "300 in batches of 8", "2000"]
    assert list(results["300"]["ways"]) == [BASE, *CROSS_PAIR, *OTHERS]
    assert list(results["2000"]["ways"]) == [BASE, *CROSS_PAIR]
    assert [of["bank"]["dtype"] for of in results.values()] == ["float32", "float32", "bfloat16"]
    shared = results["300"]["ways"]["cross-pair, NCE, noise of the batch"]
    assert shared["MiB"] < results["300"]["ways"][BASE]["MiB"]
    assert "10,000,000" in capsys.readouterr().out


def test_peak_memory_counts_tensors_that_live_at_the_same_time() -> None:
    def step(_: object) -> None:
        for _ in range(3):
            kept = torch.ones(1000)
            kept.add(1)

    assert 8000 <= objectives.peak_memory(step) < 8100  # two at a time


@pytest.mark.usefixtures("one_thread", "small")
def test_both_implementations_update_the_bank_equally() -> None:
    def bank() -> MemoryBank:
        return MemoryBank(50, 16, 0.5, 0, World())

    torch.manual_seed(0)
    embeddings = F.normalize(torch.randn(2, 4, 16), dim=2)
    index = torch.tensor([3, 9, 20, 49])
    ours, theirs = bank(), bank()
    objectives.our_step(ObjectiveConfig(), ours, embeddings, index, 0)(None)
    objectives.authors_step(theirs, embeddings, index)(None)
    assert not torch.equal(ours.video, bank().video)
    torch.testing.assert_close((ours.video, ours.text), (theirs.video, theirs.text))
