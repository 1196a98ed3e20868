"""The encode routine gives what one clip at a time gives; failures cost one video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crosspair.config import Clip, ClipConfig
from crosspair.corpora import manifest_from_rows
from crosspair.corpora.inputs import collect_videos, probe_missing
from crosspair.errors import ModelError, RecipeError, VideoError
from crosspair.evaluation import encode, extract_features
from crosspair.evaluation.encode import InferenceEngine, encode_plans, encode_whole_videos, encode_windows, load_engine
from crosspair.evaluation.windows import ClipPlan, Windows, whole_video_plan
from crosspair.models import CPD
from crosspair.video.views import load_view
from tests.evaluation import failing_decoders
from tests.evaluation.conftest import centre_view, tiny_model
from tests.library import conftest as library_conftest

WINDOWS = Windows(2, 1)
folder = library_conftest.folder


@pytest.fixture(scope="module")
def model() -> CPD:
    return tiny_model().eval()


@pytest.fixture
def engine(model: CPD) -> InferenceEngine:
    """It decodes in this process."""
    return InferenceEngine(model, torch.device("cpu"), "fp32", batch_size=8, workers=0)


@pytest.fixture
def with_workers(model: CPD) -> InferenceEngine:
    return InferenceEngine(model, torch.device("cpu"), "fp32", batch_size=8, workers=2)


def encode_clip(model: CPD, clip: Clip, position: float = 0.5) -> tuple[torch.Tensor, ...]:
    """Features of one clip, by the way in which training loads it."""
    pixels = load_view(clip, centre_view(position, model.clip), model.clip)
    with torch.no_grad():
        visual, embedding = model.encode_video(torch.from_numpy(pixels).permute(3, 0, 1, 2)[None])
    return visual[0], embedding[0]


def test_windows_are_means_over_their_clips(engine: InferenceEngine, folder: Path) -> None:
    manifest = probe_missing(collect_videos([folder / "4.mp4"]))
    (found,) = encode_windows(engine, manifest, WINDOWS)
    assert found.spans == [(0, 2), (1, 3), (2, 4)]
    path = str(folder / "4.mp4")
    clips = [encode_clip(engine.model, Clip(path, second, second + 1)) for second in range(4)]
    for i in range(3):
        visual = (clips[i][0] + clips[i + 1][0]) / 2
        embedding = F.normalize(clips[i][1] + clips[i + 1][1], dim=0)
        torch.testing.assert_close(found.visual[i], visual, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.embedding[i], embedding, atol=1e-4, rtol=1e-4)


def test_jobs_batches_and_processes_change_nothing(
    engine: InferenceEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = probe_missing(collect_videos([folder]))
    once = list(encode_windows(engine, manifest, WINDOWS, thumbnails=True))
    monkeypatch.setattr(encode, "CLIPS_PER_JOB", 1)
    two = InferenceEngine(engine.model, engine.device, "fp32", batch_size=2, workers=2)
    again = list(encode_windows(two, manifest, WINDOWS, thumbnails=True))
    assert [features.row for features in once] == [features.row for features in again]
    for one, other in zip(once, again, strict=True):
        assert (one.spans, one.thumbnails, one.failure) == (
            other.spans, other.thumbnails, other.failure,
        )  # fmt: skip
        torch.testing.assert_close(one.embedding, other.embedding, atol=1e-5, rtol=1e-5)
    assert all(features.thumbnails[0].startswith(b"\xff\xd8") for features in once[1:])


def test_batches_hold_at_most_batch_size_clips(folder: Path) -> None:
    sizes = []

    def network(clips: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes.append(len(clips))
        return (clips.float().mean(dim=(1, 2, 3, 4)),)

    source, config = Clip(str(folder / "4.mp4")), ClipConfig(size=32, frames=2)
    plans = [whole_video_plan(row, source, clips) for row, clips in enumerate((3, 5, 8, 9, 1))]
    found = list(encode_plans(plans, network, config, batch_size=8, workers=0))
    assert sizes == [8, 8, 9, 1]
    assert [encoded.plan.row for encoded in found] == [0, 1, 2, 3, 4]
    sizes.clear()
    list(encode_plans(plans, network, config, batch_size=None, workers=0))
    assert sizes == [3, 5, 8, 9, 1]


def test_unreadable_videos_are_reported(engine: InferenceEngine, folder: Path) -> None:
    rows = collect_videos([folder]).table.to_pylist()
    rows.append({"pair_id": "late", "path": str(folder / "1.mp4"), "start": 50.0})
    known = {"duration": 7e5, "width": 64, "height": 64}
    rows.append({"pair_id": "endless", "path": str(folder / "2.mp4"), **known})
    manifest = probe_missing(manifest_from_rows(rows, "."))
    found = {features.row: features for features in encode_windows(engine, manifest, WINDOWS)}
    assert set(found) == set(range(7))
    for row, name in ((4, "broken.mp4"), (5, "1.mp4"), (6, "2.mp4")):
        assert name in found[row].failure
        assert found[row].spans == []
    assert found[4].embedding.shape == (0, 8)


def test_a_failed_job_costs_its_windows(engine: InferenceEngine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "decode_job", failing_decoders.fail_in_second_job)
    monkeypatch.setattr(encode, "CLIPS_PER_JOB", 1)
    manifest = probe_missing(collect_videos([folder / "4.mp4"]))
    (found,) = encode_windows(engine, manifest, WINDOWS)
    assert found.spans == [(0, 2)]
    assert len(found.embedding) == 1
    assert "4.mp4: damaged" in found.failure
    assert "2 of 3" in found.failure


@pytest.mark.parametrize("failure", ["crash", "hang", "exhaust_memory"])
def test_a_fatal_video_costs_itself_alone(
    failure: str, with_workers: InferenceEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "decode_job", getattr(failing_decoders, failure))
    monkeypatch.setattr(encode, "DECODE_TIMEOUT", 5.0)
    manifest = probe_missing(collect_videos([folder]))
    windows = {each.row: each for each in encode_windows(with_workers, manifest, WINDOWS)}
    assert [len(windows[row].spans) for row in range(5)] == [1, 1, 0, 3, 0]
    assert "3.mp4" in windows[2].failure
    whole = {each.row: each for each in encode_whole_videos(with_workers, manifest, clips=2)}
    assert [len(whole[row].spans) for row in range(5)] == [1, 1, 0, 1, 0]


def test_whole_videos_equal_extracted_features(engine: InferenceEngine, folder: Path) -> None:
    manifest = collect_videos([folder])
    found = list(encode_whole_videos(engine, manifest, clips=2))
    expected = extract_features(engine.model, manifest, clips=2, workers=0, precision="fp32")
    good = [features for features in found if not features.failure]
    assert [features.row for features in good] == expected.rows.tolist() == [0, 1, 2, 3]
    visual = torch.cat([features.visual for features in good])
    torch.testing.assert_close(visual, expected.visual, atol=1e-5, rtol=1e-5)
    assert "broken.mp4" in found[4].failure
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        list(encode_whole_videos(engine, manifest.take([4])))


def test_a_plan_of_frames_in_memory(engine: InferenceEngine) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    plan: ClipPlan = whole_video_plan(0, frames, 2)
    (found,) = encode.encode_features(engine, [plan])
    assert found.spans == [(None, None)]
    assert found.embedding.shape == (1, 8)


def test_invalid_engines(model: CPD, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    loaded = load_engine(tmp_path / "model", device="cpu", workers=0)
    assert not loaded.model.training
    with pytest.raises(ModelError, match="toaster"):
        load_engine(tmp_path / "model", device="toaster")
    with pytest.raises(RecipeError, match="int8"):
        load_engine(tmp_path / "model", precision="int8")
