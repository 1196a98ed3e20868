"""Encoding of windows and whole videos: equal to encoding clip by clip; only broken videos fail."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crosspair.corpora import Clip, manifest_from_rows
from crosspair.corpora.inputs import collect_videos, probe_missing
from crosspair.errors import ModelError, RecipeError, VideoError
from crosspair.evaluation import encode as module
from crosspair.evaluation import extract_features
from crosspair.evaluation import windows as passage_module
from crosspair.evaluation.windows import DecodeJob, batch_jobs
from crosspair.library import (
    InferenceEngine,
    Windows,
    encode_whole_videos,
    encode_windows,
    load_engine,
)
from crosspair.models import CPD
from crosspair.video.decode import read_frames
from crosspair.video.views import centre_view, load_view
from tests.library import killed
from tests.library.conftest import WINDOWS


def encode_clip(model: CPD, path: Path, start: float, length: float) -> tuple[torch.Tensor, ...]:
    """Features of the clip in the middle of a time range, encoded alone."""
    pixels = load_view(
        Clip(str(path), start, start + length), centre_view(0.5, model.clip), model.clip
    )
    with torch.no_grad():
        visual, embedding = model.encode_video(torch.from_numpy(pixels).permute(3, 0, 1, 2)[None])
    return visual[0], embedding[0]


def test_windows_are_means_over_their_clips(tiny: InferenceEngine, folder: Path) -> None:
    manifest = probe_missing(collect_videos([folder / "4.mp4"]))
    (found,) = encode_windows(tiny, manifest, WINDOWS)
    assert found.spans == [(0, 2), (1, 3), (2, 4)]
    clips = [encode_clip(tiny.model, folder / "4.mp4", second, 1) for second in range(4)]
    for i in range(3):
        visual = (clips[i][0] + clips[i + 1][0]) / 2
        embedding = F.normalize(clips[i][1] + clips[i + 1][1], dim=0)
        torch.testing.assert_close(found.visual[i], visual, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.embedding[i], embedding, atol=1e-4, rtol=1e-4)


def test_results_do_not_depend_on_batches_and_processes(
    tiny: InferenceEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = probe_missing(collect_videos([folder]))
    once = list(encode_windows(tiny, manifest, WINDOWS, thumbnails=True))
    monkeypatch.setattr(module, "TOGETHER", 1)
    two = InferenceEngine(tiny.model, tiny.device, "fp32", batch_size=2, workers=2)
    again = list(encode_windows(two, manifest, WINDOWS, thumbnails=True))
    assert [each.row for each in once] == [each.row for each in again] == [4, 0, 1, 2, 3]
    for one, other in zip(once, again, strict=True):
        assert (one.spans, one.thumbnails, one.failure) == (
            other.spans, other.thumbnails, other.failure,
        )  # fmt: skip
        torch.testing.assert_close(one.embedding, other.embedding, atol=1e-5, rtol=1e-5)
    assert all(each.thumbnails[0].startswith(b"\xff\xd8") for each in once[1:])


def test_unreadable_videos_are_reported(tiny: InferenceEngine, folder: Path) -> None:
    rows = collect_videos([folder]).table.to_pylist()
    rows.append({"pair_id": "late", "path": str(folder / "1.mp4"), "start": 50.0})
    known = {"duration": 7e5, "width": 64, "height": 64}
    rows.append({"pair_id": "endless", "path": str(folder / "2.mp4"), **known})
    found = {
        each.row: each
        for each in encode_windows(tiny, probe_missing(manifest_from_rows(rows, ".")), WINDOWS)
    }
    assert set(found) == set(range(7))
    assert "broken.mp4: " in found[4].failure
    assert "1.mp4: " in found[5].failure
    assert "2.mp4: " in found[6].failure
    assert "700000 s" in found[6].failure
    assert [len(found[row].spans) for row in (4, 5, 6)] == [0, 0, 0]
    assert found[4].embedding.shape == (0, 8)


def test_only_the_windows_of_a_damaged_part_are_skipped(
    tiny: InferenceEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(clip, instants, shape):
        wanted = instants(4.0)
        if wanted[0] <= 2.5 <= wanted[-1]:
            raise VideoError(f"{clip.path}: damaged")
        return read_frames(clip, lambda _: wanted, shape)

    monkeypatch.setattr(passage_module, "read_frames", damaged)
    monkeypatch.setattr(module, "TOGETHER", 1)
    (found,) = encode_windows(tiny, probe_missing(collect_videos([folder / "4.mp4"])), WINDOWS)
    assert found.spans == [(0, 2)]
    assert len(found.embedding) == 1
    assert "4.mp4: damaged (2 of 3 windows" in found.failure


def test_a_video_that_kills_its_decoder_fails_alone(
    tiny: InferenceEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(clip, instants, shape):
        if clip.path.endswith("3.mp4"):
            os.kill(os.getpid(), signal.SIGKILL)
        return read_frames(clip, instants, shape)

    def probe(paths, decode):
        assert decode
        return [{"error": f"{p}: crashes"} if p.endswith("3.mp4") else {} for p in paths]

    monkeypatch.setattr(passage_module, "read_frames", killed)
    monkeypatch.setattr(module, "probe_videos", probe)
    manifest = probe_missing(collect_videos([folder]))
    of = InferenceEngine(tiny.model, tiny.device, "fp32", batch_size=1, workers=1)
    found = {each.row: each for each in encode_windows(of, manifest, WINDOWS)}
    assert set(found) == set(range(5))
    assert found[2].failure.endswith("3.mp4: crashes")
    assert [len(found[row].spans) for row in (0, 1, 2, 3)] == [1, 1, 0, 3]


def test_a_video_that_hangs_its_decoder_fails_alone(
    tiny: InferenceEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hanging(clip, instants, shape):
        if clip.path.endswith("3.mp4"):
            time.sleep(600)
        return read_frames(clip, instants, shape)

    def probe(paths, decode):
        return [{"error": f"{p}: hangs"} if p.endswith("3.mp4") else {} for p in paths]

    monkeypatch.setattr(passage_module, "read_frames", hanging)
    monkeypatch.setattr(passage_module, "STALLED", 3.0)
    monkeypatch.setattr(module, "probe_videos", probe)
    of = InferenceEngine(tiny.model, tiny.device, "fp32", batch_size=1, workers=2)
    found = {
        each.row: each
        for each in encode_windows(of, probe_missing(collect_videos([folder])), WINDOWS)
    }
    assert found[2].failure.endswith("3.mp4: hangs")
    assert [len(found[row].spans) for row in (0, 1, 2, 3)] == [1, 1, 0, 3]


def test_the_time_limit_is_per_video(
    tiny: InferenceEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(clip, instants, shape):
        time.sleep(1.5)
        return read_frames(clip, instants, shape)

    monkeypatch.setattr(passage_module, "read_frames", slow)
    monkeypatch.setattr(passage_module, "STALLED", 4.0)
    of = InferenceEngine(tiny.model, tiny.device, "fp32", batch_size=64, workers=1)
    found = {
        each.row: each
        for each in encode_windows(of, probe_missing(collect_videos([folder])), WINDOWS)
    }
    assert [len(found[row].spans) for row in range(5)] == [1, 1, 2, 3, 0]


def test_a_video_that_ends_its_process_is_reported(
    tiny: InferenceEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(clip, instants, shape):
        if clip.path.endswith("3.mp4"):
            time.sleep(600)
        return read_frames(clip, instants, shape)

    monkeypatch.setattr(passage_module, "read_frames", slow)
    monkeypatch.setattr(passage_module, "STALLED", 3.0)
    of = InferenceEngine(tiny.model, tiny.device, "fp32", batch_size=64, workers=1)
    found = {
        each.row: each
        for each in encode_windows(of, probe_missing(collect_videos([folder])), WINDOWS)
    }
    assert "3.mp4: " in found[2].failure
    assert [len(found[row].spans) for row in range(5)] == [1, 1, 0, 3, 0]


def test_decoding_that_ends_for_every_video_is_an_error(
    tiny: InferenceEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        passage_module, "read_frames", lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    )
    of = InferenceEngine(tiny.model, tiny.device, "fp32", batch_size=1, workers=1)
    with pytest.raises(VideoError, match="workers"):
        list(
            encode_windows(
                of, probe_missing(collect_videos([folder / "3.mp4", folder / "4.mp4"])), WINDOWS
            )
        )


def test_decoders_end_when_their_parent_is_killed() -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=killed.decode, args=(there,))
    process.start()
    workers = here.recv()
    assert len(workers) == 2
    time.sleep(1)  # until pipes are full
    assert all(map(is_alive, workers))
    process.kill()
    process.join()
    deadline = time.monotonic() + 60
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, workers))


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_whole_videos_equal_extracted_features(tiny: InferenceEngine, folder: Path) -> None:
    manifest = collect_videos([folder])
    found = list(encode_whole_videos(tiny, manifest, clips=2))
    expected = extract_features(tiny.model, manifest, clips=2, workers=0, precision="fp32")
    good = [each for each in found if not each.failure]
    assert [each.row for each in good] == expected.rows.tolist() == [0, 1, 2, 3]
    assert torch.equal(torch.cat([each.embedding for each in good]), expected.embedding)
    assert torch.equal(torch.cat([each.visual for each in good]), expected.visual)
    assert "broken.mp4: " in found[4].failure


def test_batches_are_filled_up_to_the_batch_size() -> None:
    jobs = [DecodeJob(row, 0, Clip("a"), np.zeros((k, 2))) for row, k in enumerate((3, 5, 8, 9, 1))]
    assert [[job.row for job in batch] for batch in batch_jobs(jobs, 8)] == [[0, 1], [2], [3], [4]]


def test_load_engine(model_folder: Path) -> None:
    loaded = load_engine(model_folder, device="cpu", workers=0)
    assert not loaded.model.training
    with pytest.raises(ModelError, match="'toaster'"):
        load_engine(model_folder, device="toaster")
    with pytest.raises(RecipeError, match=r"'int8'.*auto, bf16, fp32"):
        load_engine(model_folder, precision="int8")


def test_empty_manifest(tiny: InferenceEngine) -> None:
    assert list(encode_windows(tiny, manifest_from_rows([], "."), Windows())) == []
