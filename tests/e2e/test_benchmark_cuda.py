"""The GPU benchmark needs only PyTorch and NumPy, and a failure affects only its row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import bare, cuda, cuda_networks
from benchmarks.cuda_device import Scale
from benchmarks.cuda_networks import TRAINING, Way, training_rate

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
# Hides packages as if they were not installed.
WITHOUT = """
import runpy, sys
from importlib.machinery import PathFinder

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        absent = name.partition(".")[0] in {absent}
        return None if absent else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
sys.argv[1:] = ["--device", "cpu", "--tiny", "--only", "step"]
runpy.run_module("benchmarks.cuda", run_name="__main__")
"""


def test_it_runs_where_only_pytorch_and_numpy_are(tmp_path: Path) -> None:
    absent = {name for name in bare.UNUSED if name != "fsspec"} | {"huggingface_hub", "matplotlib"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.replace("{absent}", repr(absent))],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": "src"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    content = json.loads((tmp_path / "cuda-tiny.json").read_text())
    assert set(content["absent"]) == absent & set(bare.UNUSED)
    parts = {row["part"]: row for row in content["rows"]}
    assert {"synchronisations in a step", "whole step, ResNet-50"} <= set(parts)
    assert not [row for row in content["rows"] if "failed" in row]
    assert parts["synchronisations in a step"]["skipped"] == "no GPU"
    assert len(parts["whole step, ResNet-50"]["clips_per_second"]) == 2
    assert "### whole step, ResNet-50" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["cuda"])
    with pytest.raises(SystemExit) as ended:
        cuda.main()
    assert ended.value.code == 2
    assert "--device cpu --tiny" in capsys.readouterr().err


def test_all_ways_compute_one_network() -> None:
    scale, found = Scale(width=4, shrink=16), []
    ways = [way for way in TRAINING if way.mode == "eager"]
    for way in ways:
        encoder, clips = cuda_networks._network(
            18, Way(way.name, channels_last=way.channels_last, images=way.images), CPU, scale
        )
        torch.manual_seed(1)
        clips.copy_(torch.randn(clips.shape))
        found.append(encoder.train()(clips))
    for each in found[1:]:
        torch.testing.assert_close(each, found[0], rtol=1e-4, atol=1e-4)


def test_multiplications_count_twice() -> None:
    """ResNet-50 at 8×224²: 84 billion operations a clip, as the paper's network has."""
    assert cuda_networks._flops(50, Scale()) == pytest.approx(84e9, rel=0.02)
    row = training_rate(18, TRAINING[0], CPU, Scale(width=4, repeats=2, shrink=16))
    assert row["network_tflops"] > 0


def test_a_failure_stays_in_its_row() -> None:
    def fails() -> dict:
        raise RuntimeError("CUDA error:\nout of memory")

    assert cuda.run_job(fails) == {"failed": "RuntimeError: CUDA error: out of memory"}
    assert cuda.format_row({"part": "a", "way": "b", **cuda.run_job(fails)}) == (
        "failed: RuntimeError: CUDA error: out of memory"
    )


def test_tables_compare_with_the_first_way_and_with_the_matrix_rate(capsys) -> None:
    cuda.print_tables([
        {"part": "matrix product", "way": "bf16", "tflops": [10.0, 10.0]},
        {"part": "training", "way": "fp32", "clips_per_second": [5.0, 5.0], "network_tflops": 1.0},
        {"part": "training", "way": "bf16", "clips_per_second": [20.0] * 2, "network_tflops": 4.0},
        {"part": "objective", "way": "kernel", "ms": [2.0, 2.0]},
        {"part": "objective", "way": "copied", "ms": [8.0, 8.0]},
    ])  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("| 0.25 |  |")
    assert next(line for line in lines if line.startswith("| bf16 | 20")).endswith("| 4.00 | 40.0% |")
