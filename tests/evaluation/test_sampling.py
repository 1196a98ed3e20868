"""Windows encoded from key frames, and from clips where these are sparse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crosspair.config import Clip
from crosspair.corpora import Manifest
from crosspair.corpora.inputs import collect_videos, probe_missing
from crosspair.evaluation.encode import InferenceEngine, WindowFeatures, encode_windows
from crosspair.evaluation.windows import Sampling, Windows
from crosspair.models import CPD
from crosspair.video.decode import read_frames
from crosspair.video.views import resize_short_side, square_crops
from tests.evaluation.conftest import tiny_model
from tests.models.conftest import write_pretrained

WINDOWS = Windows(4, 2)
EXACT = {"x264-params": "scenecut=0"}


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> CPD:
    return CPD.from_pretrained(write_pretrained(tmp_path_factory.mktemp("clip"), "clip")).eval()


@pytest.fixture
def engine(clip_model: CPD) -> InferenceEngine:
    return InferenceEngine(clip_model, torch.device("cpu"), "fp32", batch_size=8, workers=0)


@pytest.fixture
def videos(tmp_path: Path, make_video: Callable[..., Path]) -> Manifest:
    """Key frames every 1.2 s, 3 s, and only one, and a damaged file."""
    for gop in (12, 30, 250):
        make_video(tmp_path / "videos" / f"{gop}.mp4", frames=90, fps=10, gop=gop, options=EXACT)
    whole = (tmp_path / "videos" / "12.mp4").read_bytes()
    (tmp_path / "videos" / "damaged.mp4").write_bytes(whole[:-400])
    return probe_missing(collect_videos([tmp_path / "videos"]))


def encode(engine: InferenceEngine, videos: Manifest, sampling: Sampling) -> dict[str, WindowFeatures]:
    names = [Path(path).name for path in videos.column("path")]
    encoded = encode_windows(engine, videos, WINDOWS, sampling=sampling, thumbnails=True)
    return {names[features.row]: features for features in encoded}


def same(one: WindowFeatures, other: WindowFeatures) -> bool:
    return (
        one.spans == other.spans
        and (one.thumbnails, one.failure) == (other.thumbnails, other.failure)
        and torch.allclose(one.embedding, other.embedding, atol=1e-6)
    )


def test_a_window_is_the_mean_over_its_key_frames(engine: InferenceEngine, videos: Manifest) -> None:
    found = encode(engine, videos, "auto")["12.mp4"]
    model, config = engine.model, engine.model.clip
    side = round(config.test_scale * config.size)
    clip = Clip(next(path for path in videos.column("path") if path.endswith("/12.mp4")))
    # Key frames at instants 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.75 and 8.25 s.
    for index, keys in enumerate(([0, 1.2, 2.4, 2.4], [2.4, 2.4, 3.6, 4.8], [3.6, 4.8, 6.0, 7.2])):
        frames = read_frames(
            clip, lambda _, keys=keys: np.array(keys) + 0.01, lambda w, h: resize_short_side(w, h, side)
        )
        (crop,) = square_crops(frames, 1, config.size)
        with torch.no_grad():
            embedding = model.encode_video(torch.from_numpy(crop).permute(0, 3, 1, 2)[:, :, None])[1].mean(dim=0)
        torch.testing.assert_close(found.embedding[index], F.normalize(embedding, dim=0), atol=1e-5, rtol=0)


def test_clips_where_key_frames_are_sparse(engine: InferenceEngine, videos: Manifest) -> None:
    found: dict[Sampling, dict[str, WindowFeatures]] = {
        sampling: encode(engine, videos, sampling) for sampling in ("clips", "auto", "keyframes")
    }
    clips = found["clips"]
    assert set(clips) == {"12.mp4", "30.mp4", "250.mp4", "damaged.mp4"}
    for sampling, names in (("auto", {"12.mp4"}), ("keyframes", {"12.mp4", "30.mp4"})):
        of_keys = {name for name in clips if not same(found[sampling][name], clips[name])}
        assert of_keys == names
        assert all(found[sampling][name].spans == clips[name].spans for name in clips)
        assert all(len(found[sampling][name].thumbnails) == len(clips[name].spans) for name in clips)


def test_models_of_clips_take_clips(videos: Manifest) -> None:
    engine = InferenceEngine(tiny_model().eval(), torch.device("cpu"), "fp32", batch_size=8, workers=0)
    clips, auto = (encode(engine, videos, sampling) for sampling in ("clips", "auto"))
    assert all(same(clips[name], auto[name]) for name in clips)
