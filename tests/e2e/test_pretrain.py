"""The pretrain command: complete, killed and resumed, stopped, on two processes."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from crosspair.models import CPD
from crosspair.training.run import find_checkpoint
from tests.e2e.conftest import command, crosspair, pretrain_arguments


def lines(run: Path, kind: str = "train") -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in rows if line["kind"] == kind]


def without_rates(line: dict) -> dict:
    return {k: v for k, v in line.items() if k not in {"clips_per_second", "data_wait"}}


@pytest.fixture(scope="module")
def whole_run(rendered, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    done = crosspair(*pretrain_arguments(rendered.path, run))
    assert done.returncode == 0, done.stderr
    return run


def test_files_of_a_run(whole_run) -> None:
    names = {path.name for path in whole_run.iterdir()}
    assert {"recipe.yaml", "metrics.jsonl", "checkpoints", "model", "tensorboard"} <= names
    steps = [line["step"] for line in lines(whole_run)]
    assert steps == list(range(1, len(steps) + 1))
    assert [line["epoch"] for line in lines(whole_run, "validation")] == [1, 2]
    assert any((whole_run / "tensorboard").iterdir())


def test_model_of_a_run_loads(whole_run) -> None:
    model = CPD.from_pretrained(whole_run / "model")
    clips = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    features, embedding = model.encode_video(clips)
    assert features.shape == (2, 32)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
    assert model.encode_text(["rising", "a red star"]).shape == (2, 16)


def test_killed_run_resumes_bit_identically(whole_run, rendered, tmp_path) -> None:
    run = tmp_path / "run"
    arguments = pretrain_arguments(rendered.path, run, "--resume", "training.checkpoint_steps=2")
    process = subprocess.Popen(command(*arguments), stderr=subprocess.DEVNULL)
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
        assert process.poll() is None, "the training ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "model").exists()
    before = len(lines(run))
    done = crosspair(*arguments)
    assert done.returncode == 0, done.stderr
    assert before < len(lines(run))
    for kind in ("train", "validation"):
        resumed = [without_rates(line) for line in lines(run, kind)]
        assert resumed == [without_rates(line) for line in lines(whole_run, kind)]
    ours, theirs = (CPD.from_pretrained(each / "model").state_dict() for each in (run, whole_run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_exits(whole_run, rendered, tmp_path, number) -> None:
    run = tmp_path / "run"
    arguments = pretrain_arguments(rendered.path, run)
    process = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True)
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "--resume" in message
    done = crosspair(*pretrain_arguments(rendered.path, run, "--resume"))
    assert done.returncode == 0, done.stderr
    assert [without_rates(line) for line in lines(run)] == [without_rates(line) for line in lines(whole_run)]


def test_a_closed_terminal_saves_and_exits(rendered, tmp_path) -> None:
    run = tmp_path / "run"
    terminal, ours = pty.openpty()
    more = "training.epochs=100", "training.validate_every=100"
    process = subprocess.Popen(
        ["setsid", "--ctty", *command(*pretrain_arguments(rendered.path, run, *more))],
        stdin=ours, stdout=ours, stderr=ours,
    )  # fmt: skip
    os.close(ours)
    while not ((run / "metrics.jsonl").exists() and len(lines(run)) >= 2):
        assert process.poll() is None
        os.read(terminal, 1000)
    os.close(terminal)
    assert process.wait(timeout=60) == 0
    last = lines(run)[-1]["step"]
    assert find_checkpoint(run / "checkpoints") == last < 100


def test_torchrun_with_two_processes(rendered, tmp_path) -> None:
    run = tmp_path / "run"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = map(str, pretrain_arguments(rendered.path, run, "training.epochs=1"))
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "--", "crosspair", *arguments],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(lines(run)) >= 4
    CPD.from_pretrained(run / "model")


def test_broken_video_is_logged_and_skipped(rendered, tmp_path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "videos").mkdir()
    for video in (rendered.path.parent / "videos").iterdir():
        (corpus / "videos" / video.name).write_bytes(video.read_bytes())
    manifest = rendered.write(corpus / "manifest.parquet")
    splits, paths = manifest.column("split"), manifest.column("path")
    broken = next(row for row, split in enumerate(splits) if split == "train")
    whole = corpus / paths[broken]
    whole.write_bytes(whole.read_bytes()[:100])
    run = tmp_path / "run"
    done = crosspair(*pretrain_arguments(manifest.path, run))
    assert done.returncode == 0, done.stderr
    events = lines(run, "event")
    assert [event["pair_id"] for event in events] == [manifest.column("pair_id")[broken]]
    assert [line["failed"] for line in lines(run, "pairs") if "failed" in line] == [1]
