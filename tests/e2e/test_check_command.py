"""End-to-end runs of check, and of a training on readable and damaged videos."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crosspair.corpora import Manifest
from crosspair.corpora.manifest import manifest_from_rows
from tests.corpora.damage import damaged_files
from tests.e2e.conftest import command, crosspair, pretrain_arguments, refused


@pytest.fixture
def corpus(tmp_path, rendered) -> Manifest:
    """A copy of the rendered corpus, to be damaged."""
    videos = rendered.path.parent / "videos"
    shutil.copytree(videos, tmp_path / "corpus" / "videos")
    return rendered.write(tmp_path / "corpus" / "manifest.parquet")


def damage(corpus: Manifest, make_audio, split: str = "train") -> list[str]:
    """Make ten videos of a split unusable; return the ids of their pairs."""
    rows = [row for row, name in enumerate(corpus.column("split")) if name == split][:10]
    folder = corpus.path.parent
    sources = [folder / path for path in corpus.column("path")[10:14]]
    audio = make_audio(folder / "audio.mp4")
    (folder / "damaged").mkdir()
    damaged = damaged_files(sources, audio, folder / "damaged", 160, seed=0)
    # A training without a check reads a cut AVI up to the cut.
    certain = [each for each in damaged if all(kind.broken for kind in each.kinds) and each.path.suffix != ".avi"]
    table = corpus.table.to_pylist()
    for row, each in zip(rows, certain[-10:], strict=True):
        table[row]["path"] = f"damaged/{each.path.name}"
    manifest_from_rows(table, corpus.path).write(corpus.path)
    return [table[row]["pair_id"] for row in rows]


def test_the_list_is_checked_before_the_videos(tmp_path: Path) -> None:
    assert refused("check", tmp_path / "none.parquet", "--list", tmp_path).startswith(f"{tmp_path} ")
    assert "none.parquet" in refused("check", "none.parquet")
    same = tmp_path / "new.parquet"
    assert "--list" in refused("check", "none.parquet", "--out", same, "--list", tmp_path / "x" / ".." / same.name)


def test_every_kind_is_counted_and_listed(corpus, make_audio, tmp_path) -> None:
    broken = damage(corpus, make_audio)
    listed = tmp_path / "list.csv"
    done = crosspair("check", corpus.path, "--decode", "--list", listed, "--workers", 2)
    assert done.returncode == 1, done.stderr
    assert "54 of 64 pairs can be used" in done.stdout
    assert "Traceback" not in done.stderr
    with listed.open() as file:
        found = {line["pair_id"]: line for line in csv.DictReader(file)}
    assert set(broken) <= set(found)
    for line in found.values():
        assert f"{line['kind']} " in done.stdout
        assert line["message"]
    errors = Manifest.read(corpus.path).column("error")
    assert sum(error is not None for error in errors) == 10


def test_output_to_another_manifest_of_a_corpus_without_problems(corpus, tmp_path) -> None:
    before = corpus.path.read_bytes()
    done = crosspair("--quiet", "check", corpus.path, "--out", tmp_path / "checked.parquet")
    assert (done.returncode, done.stderr) == (0, "")
    assert "64 of 64 pairs can be used" in done.stdout
    assert corpus.path.read_bytes() == before
    assert all(Path(clip.path).is_file() for clip in Manifest.read(tmp_path / "checked.parquet").clips())


def test_ctrl_c_stops_all_processes_and_the_check_resumes(tmp_path, make_video) -> None:
    video = make_video(tmp_path / "a.mp4", frames=2)
    for number in range(400):
        os.link(video, tmp_path / f"{number}.mp4")
    rows = [{"pair_id": str(n), "path": f"{n}.mp4", "title": "t"} for n in range(400)]
    manifest = manifest_from_rows(rows, tmp_path / "m.parquet").write(tmp_path / "m.parquet")
    before = manifest.path.read_bytes()
    journal = tmp_path / ".m.parquet.checked"
    process = subprocess.Popen(
        command("check", manifest.path, "--decode", "--workers", 2),
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert message.startswith("interrupted; ")
    assert message.count("\n") == 1
    assert manifest.path.read_bytes() == before
    assert workers
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    done = crosspair("check", manifest.path, "--decode", "--workers", 2)
    assert "400 of 400 pairs can be used" in done.stdout


# --- training -----------------------------------------------------------------------------------


def lines(run: Path, kind: str) -> list[dict]:
    every = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["kind"] == kind]


@pytest.mark.parametrize("checked", [False, True])
def test_used_and_skipped_pairs_add_up(corpus, make_audio, tmp_path, checked) -> None:
    broken = damage(corpus, make_audio)
    given = len(corpus.split("train"))
    if checked:
        assert crosspair("check", corpus.path, "--decode").returncode == 1
    run = tmp_path / "run"
    done = crosspair(*pretrain_arguments(corpus.path, run, "training.epochs=1"))
    assert done.returncode == 0, done.stderr
    assert (run / "model").exists()
    begun, ended = lines(run, "pairs")
    log = " ".join(done.stderr.split())
    # The broken pairs, and those whose title has no word of the vocabulary.
    skipped = re.findall(r"(?:left out|skipped|skipping) '?([\w-]+)'?:", log)
    assert len(skipped) == len(set(skipped))
    assert set(broken) <= set(skipped)
    assert begun["train"] + begun["train_left_out"] == given
    assert begun["val"] == len(corpus.split("val"))
    assert f"{begun['train']} of {given} pairs" in log
    failed = [event["pair_id"] for event in lines(run, "event")]
    assert ended["failed"] == len(failed)
    assert begun["train_left_out"] + len(failed) == len(skipped)
    assert set(failed) <= (set() if checked else set(broken))


@pytest.mark.parametrize(("fault", "reason"), [("os.kill(os.getpid(), 11)", "(pid"), ("time.sleep(100)", "3 s")])
def test_a_decoder_that_ends_a_training_is_reported(rendered, tmp_path, fault, reason) -> None:
    call = list(map(str, pretrain_arguments(rendered.path, tmp_path / "run")))
    # The worker does to itself what a bug of FFmpeg would do.
    code = f"""
import os, sys, time
import crosspair.training, crosspair.video.loader, crosspair.video.views
def read_frames(*_): {fault}
sys.modules["crosspair.video.views"].read_frames = read_frames
sys.modules["crosspair.video.loader"].LOADER_TIMEOUT = 3
sys.argv[1:] = {call!r}
from crosspair.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "crosspair: error: " in last
    assert reason in last
    assert f"crosspair check --decode {rendered.path} --out checked.parquet" in last
    assert "--resume" in last
