"""A small run of each benchmark script: implementations agree, and numbers are consistent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchmarks import (
    bare,
    cuda,
    cuda_networks,
    curves,
    evaluation,
    indexing,
    library,
    loading,
    network,
    objectives,
    search,
    training,
)
from benchmarks.cuda_device import Scale
from benchmarks.cuda_networks import TRAINING, Way
from benchmarks.joined import join, poor_copy
from benchmarks.measuring import compare_times, run_in_turns

from crosspair.config import ObjectiveConfig
from crosspair.corpora import Clip, manifest_from_rows
from crosspair.distributed import World
from crosspair.library import store
from crosspair.objectives import MemoryBank
from crosspair.recipes import load_recipe
from crosspair.video.decode import read_frames
from tests.conftest import VideoMaker
from tests.evaluation.conftest import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]


def run_script(module: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, *options: object) -> dict[str, Any]:
    """Run a script with options, check its output in general, and return it."""
    out = folder / "results.json"
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, options), "--out", str(out)])
    if hasattr(module, "cpu_count"):
        monkeypatch.setattr(module, "cpu_count", lambda: 1)
    module.main()
    assert str(folder) not in out.read_text()
    content = json.loads(out.read_text())
    assert {"commit", "machine", "versions", "created", "seed"} <= set(content)
    return content


def test_curves_stay_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "WINDOW", 4)
    results = run_script(curves, tmp_path, monkeypatch, "--steps", 8)["results"]
    assert list(results) == list(curves.WAYS)
    assert {len(of["losses"]) for of in results.values()} == {8}
    for name in ("channels_last_3d", "one pass of the optimiser"):
        assert results[name]["largest_difference"] < 1e-3
    assert 0 < results["bfloat16"]["largest_difference"] < 0.05
    monkeypatch.setattr(curves, "WINDOW", 2)
    found = curves.differences([1.0, 3.0, 5.0, 7.0], [2.0, 2.0, 4.0, 4.0])
    assert found == {"first": 2, "last": 6, "largest_difference": 0.5, "last_difference": 0.5}


def test_evaluation_agrees_with_the_common_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "CLASSES", 5)
    monkeypatch.setattr(evaluation, "FEATURES", 16)
    results = run_script(evaluation, tmp_path, monkeypatch, "--scale", 0.005)["results"]
    assert results["retrieval"]["sorting"]["agreement"] >= 0.99
    assert results["retrieval"]["crosspair"]["recall@1"] > 0.9  # among so few
    assert results["kNN"]["scikit-learn"]["agreement"] >= 0.9
    assert 0.2 < results["linear"]["crosspair"]["accuracy"] < 1


def test_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(network.NETWORKS, 18, (112, 2))
    small = ["--scale", 0.3, "--depths", 18, "--rounds", 2]
    of = run_script(network, tmp_path, monkeypatch, *small)["results"]["ResNet-18"]
    assert of["training"]["GFLOP_a_clip"] > 2.5 * of["inference"]["GFLOP_a_clip"]
    for doing in ("training", "inference"):
        assert of[doing]["ways"][network.BASE]["times_faster"]["median"] == 1
        assert 0 < of[doing]["share_of_the_rate"] < 3


def test_search_finds_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lancedb")
    monkeypatch.setattr(store, "EXACT_UP_TO", store.EXACT_UP_TO)  # restored after the test
    small = ["--windows", 600, "--queries", 5, "--centres", 20]
    assert run_script(search, tmp_path, monkeypatch, *small)["results"]["index"]["recall@10"] >= 0.9


def test_parts_of_a_training_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["clip.size=32", "video.width=4", "training.batch_size=4", "training.workers=1"]
    monkeypatch.setattr(training, "SMALL", small)
    monkeypatch.setattr(training, "load_recipe", lambda name, given: load_recipe(name, [*small, *given]))
    content = run_script(training, tmp_path, monkeypatch, "--pairs", 24, "--steps", 20)
    of = content["results"]["rendered"]
    assert {"data wait", "forward", "objective", "backward", "optimiser", "bank"} <= set(of["parts"])
    assert sum(part["share"] for part in of["parts"].values()) == pytest.approx(1)
    assert of["parts"]["all else"]["share"] < 0.3
    if Path("/proc").exists():
        assert of["most_MiB"] > 50
        assert {each["threads"] > 1 for each in content["growth"]["seen"]} == {True}


def test_all_ways_of_loading_return_the_same_frames(tmp_path: Path, make_video, monkeypatch) -> None:
    for name, fps in (("a.avi", 25), ("b.mp4", 30)):
        make_video(tmp_path / "videos" / name, fps=fps, frames=60, size=(192, 144))
    small = [tmp_path / "videos", "--rounds", 2, "--views", 1, "--seconds", 3]
    results = run_script(loading, tmp_path, monkeypatch, *small)["results"]
    assert len(results["ways"]) == 4
    for ways in results["ways"].values():
        assert ways[loading.BASE]["times_faster"]["median"] == 1
        assert ways["ours, untouched"]["difference"] == 0
        # The neighbouring frame differs by a third of the range.
        assert all(result["difference"] < 12 for result in ways.values())
    assert all(clips > 0 for state in results["workers"].values() for clips in state.values())


def test_every_way_takes_every_turn() -> None:
    order: list[tuple[str, int]] = []
    ways = {name: lambda job, name=name: order.append((name, job)) for name in "abc"}
    seconds = run_in_turns(ways, [0, 1, 2], rounds=2)
    assert [[len(each) for each in of] for of in seconds.values()] == [[3, 3]] * 3
    assert [order[i][0] for i in range(0, len(order), 3)] == ["c", "a", "b", "a", "b", "c", "b", "c", "a"]
    # Ratios are of medians within a round.
    seconds = {"slow": [[0.2, 0.4, 9.0], [0.8, 0.8, 0.8]], "fast": [[0.1, 0.1, 5.0], [0.2, 0.2, 8]]}
    results = compare_times(seconds, "slow")
    assert results["fast"]["times_faster"] == {"median": 4.0, "low": 4.0, "high": 4.0}
    assert results["slow"]["ms"]["median"] == 800


# --- objectives ---------------------------------------------------------------------------------


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"DIMENSIONS": 16, "BATCH": 4, "PAPER_BATCH": 8, "ALL_AT": 300}.items():
        monkeypatch.setattr(objectives, name, value)


@pytest.mark.usefixtures("small_batches")
def test_objectives_skip_banks_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "BF16_FROM", 1000)
    monkeypatch.setattr(objectives, "free_memory", lambda: 1 << 20)
    sizes = ["--rounds", 2, "--pairs", 300, 2000, 10_000_000]
    results = run_script(objectives, tmp_path, monkeypatch, *sizes)["results"]
    assert list(results) == ["300", "300 in batches of 8", "2000"]
    assert [of["bank"]["dtype"] for of in results.values()] == ["float32", "float32", "bfloat16"]
    shared = results["300"]["ways"]["cross-pair, NCE, noise of the batch"]
    assert shared["MiB"] < results["300"]["ways"][objectives.BASE]["MiB"]


def test_peak_memory_counts_tensors_that_live_at_the_same_time() -> None:
    def step(_: object) -> None:
        for _ in range(3):
            kept = torch.ones(1000)
            kept.add(1)

    assert 8000 <= objectives.peak_memory(step) < 8100  # two at a time


@pytest.mark.usefixtures("small_batches")
def test_both_implementations_update_the_bank_equally() -> None:
    torch.manual_seed(0)
    embeddings = F.normalize(torch.randn(2, 4, 16), dim=2)
    index = torch.tensor([3, 9, 20, 49])
    ours, theirs, before = (MemoryBank(50, 16, 0.5, 0, World()) for _ in range(3))
    objectives.our_step(ObjectiveConfig(), ours, embeddings, index, 0)(None)
    objectives.authors_step(theirs, embeddings, index)(None)
    assert not torch.equal(ours.video, before.video)
    torch.testing.assert_close((ours.video, ours.text), (theirs.video, theirs.text))


# --- library ------------------------------------------------------------------------------------


def test_library_loses_nothing(tmp_path: Path, make_video, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lancedb")
    few = {"LONG_VIDEOS": 2, "CLIPS_PER_VIDEO": 3, "COPIES": 2, "CHANGED_FILES": 2}
    for name, value in few.items():
        monkeypatch.setattr(library, name, value)
    rows = []
    for row in range(9):
        make_video(tmp_path / "videos" / f"{row}.mp4", frames=60 + row, fps=20)
        label, split = ("dog", "cat")[row % 2], "train" if row < 3 else "test"
        rows.append({"pair_id": f"p{row}", "path": f"videos/{row}.mp4", "label": label, "split": split})
    manifest_from_rows(rows, tmp_path / "m.parquet").write(tmp_path / "m.parquet")
    tiny_model().save_pretrained(tmp_path / "model")
    inputs = ["--manifest", tmp_path / "m.parquet", "--model", tmp_path / "model", "--kills", 3]
    results = run_script(library, tmp_path, monkeypatch, *inputs)["results"]
    assert (results["index"]["videos"], results["index"]["broken"]) == (11, 0)
    of_dog = results["classes"]["dog"]
    assert (of_dog["all"]["chance"], of_dog["test"]["chance"]) == (5 / 9, 3 / 6)
    assert 0 < of_dog["test"]["P@10"] <= 0.3  # at most 3 of 10 moments are correct
    changes, kills = results["changes"], results["kills"]
    assert (changes["deleted"]["removed"], changes["deleted"]["added"]) == (2, 0)
    assert (changes["added"]["removed"], changes["added"]["added"]) == (0, 2)
    assert changes["windows as before"]
    assert (kills["faults"], kills["opened"] + kills["no library yet"]) == (0, 3)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_indexing_by_sampling(tmp_path: Path, make_video: VideoMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    video = make_video(tmp_path / "a.mp4", frames=60, gop=15)
    results = run_script(indexing, tmp_path, monkeypatch, video, "--rounds", 1, "--layers", 1)["results"]
    (found,) = results.values()
    assert found["seconds"] == pytest.approx(2)
    assert set(found["sampling"]) == {"clips", "keyframes"}
    assert all(value > 0 for each in found["sampling"].values() for value in each.values())


def test_joined_video_and_poor_copy(tmp_path: Path, make_video: VideoMaker) -> None:
    sources = [make_video(tmp_path / f"{fps}.mp4", frames=30, fps=fps) for fps in (10, 30)]
    spans = join(list(map(str, sources)), tmp_path / "joined.mp4")
    assert spans == [(0, pytest.approx(3)), (pytest.approx(3), pytest.approx(4))]
    instants = np.array([0.05, 2.95, 3.01, 3.99])
    frames = read_frames(Clip(str(tmp_path / "joined.mp4")), lambda _: instants, lambda *size: size)
    assert make_video.numbers(frames) == [0, 29, 0, 29]
    poor_copy(str(sources[1]), tmp_path / "copy.mp4")
    frames = read_frames(Clip(str(tmp_path / "copy.mp4")), lambda _: np.array([0.02, 0.95]), lambda *size: size)
    assert frames.shape == (2, 32, 64, 3)
    assert make_video.numbers(frames) == [0, 28]


def test_overlap_of_a_time_range_with_an_occurrence() -> None:
    occurrence = library.Occurrence("a.mp4", 10.0, 17.0, "dog", "source.mp4")
    spans = ((6.0, 10.0), (6.1, 10.1), (12.0, 14.0), (16.9, 20.9), (17.0, 21.0))
    assert [occurrence.overlaps("a.mp4", *span) for span in spans] == [False, True, True, True, False]
    assert not occurrence.overlaps("b.mp4", 12.0, 14.0)


# --- GPUs ---------------------------------------------------------------------------------------

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


def test_cuda_runs_where_only_pytorch_and_numpy_are(tmp_path: Path) -> None:
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
    assert not [row for row in content["rows"] if "failed" in row]
    assert parts["synchronisations in a step"]["skipped"] == "no GPU"
    assert len(parts["whole step, ResNet-50"]["clips_per_second"]) == 2


def test_all_ways_compute_one_network() -> None:
    scale, found = Scale(width=4, shrink=16), []
    for way in (way for way in TRAINING if way.mode == "eager"):
        same = Way(way.name, channels_last=way.channels_last, images=way.images)
        encoder, clips = cuda_networks._network(18, same, torch.device("cpu"), scale)
        torch.manual_seed(1)
        clips.copy_(torch.randn(clips.shape))
        found.append(encoder.train()(clips))
    for each in found[1:]:
        torch.testing.assert_close(each, found[0], rtol=1e-4, atol=1e-4)


def test_multiplications_count_twice() -> None:
    """ResNet-50 at 8×224²: 84 billion operations a clip, as the paper's network has."""
    assert cuda_networks._flops(50, Scale()) == pytest.approx(84e9, rel=0.02)


def test_a_failure_stays_in_its_row() -> None:
    def fails() -> dict:
        raise RuntimeError("CUDA error:\nout of memory")

    assert cuda.run_job(fails) == {"failed": "RuntimeError: CUDA error: out of memory"}


def test_tables_compare_with_the_first_way_and_with_the_matrix_rate(capsys) -> None:
    cuda.print_tables([
        {"part": "matrix product", "way": "bf16", "tflops": [10.0, 10.0]},
        {"part": "training", "way": "fp32", "clips_per_second": [5.0, 5.0], "network_tflops": 1.0},
        {"part": "training", "way": "bf16", "clips_per_second": [20.0] * 2, "network_tflops": 4.0},
    ])  # fmt: skip
    assert capsys.readouterr().out.splitlines()[-1].endswith("| 4.00 | 40.0% |")
