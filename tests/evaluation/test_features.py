"""Features of whole videos: means of clips, shares of processes, and the broken by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from crosspair.config import Clip
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.distributed import World
from crosspair.errors import VideoError
from crosspair.evaluation import embed_texts, extract_features
from crosspair.evaluation.features import shard_batches
from crosspair.models import CPD
from crosspair.models.inference import FoldedResNet3d
from crosspair.video.views import load_view
from tests.evaluation.conftest import BROKEN, centre_view

pytestmark = pytest.mark.usefixtures("one_thread")


def extracted(model: CPD, manifest: Manifest, **options):
    given = {"clips": 3, "batch_size": 4, "workers": 0, "precision": "fp32"}
    return extract_features(model, manifest, **{**given, **options})


@torch.no_grad()
def by_hand(model: CPD, clip: Clip, positions: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    visual, embedding = [], []
    for position in positions:
        pixels = load_view(clip, centre_view(position, model.clip), model.clip)
        of_clip, f_v = model.encode_video(torch.from_numpy(pixels).permute(3, 0, 1, 2)[None])
        visual.append(of_clip[0])
        embedding.append(f_v[0])
    mean = sum(embedding) / len(positions)
    return sum(visual) / len(positions), mean / mean.norm()


@pytest.mark.parametrize(("clips", "positions"), [(3, [0.0, 0.5, 1.0]), (1, [0.5])])
def test_features_are_the_mean_over_uniform_clips(
    model: CPD, manifest: Manifest, clips: int, positions: list[float]
) -> None:
    found = extracted(model.eval(), manifest, clips=clips)
    assert found.clips == clips
    for row, visual, embedding in zip(found.rows.tolist(), found.visual, found.embedding, strict=True):
        expected = by_hand(model, manifest.clips()[row], positions)
        torch.testing.assert_close(visual, expected[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(embedding, expected[1], atol=1e-5, rtol=1e-4)


def test_broken_videos_are_left_out_and_named(model: CPD, manifest: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    rows = manifest.table.to_pylist()
    rows[1]["error"] = "cut short"
    with caplog.at_level(logging.WARNING):
        found = extracted(model, manifest_from_rows(rows, manifest.path))
    assert found.rows.tolist() == [0, 2, 4, 5]
    assert len(found.visual) == len(found.embedding) == 4
    known, (pair_id, message) = found.failures
    assert known == ("p1", "cut short")
    assert pair_id == "p3"
    assert "3.mp4" in message
    assert "p3" in caplog.text


def test_a_video_that_fails_in_part_does_not_count(
    model: CPD, manifest: Manifest, tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    cut = make_video(tmp_path / "cut.webm", frames=200)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    whole = manifest.clips()[0].path
    rows = [{"pair_id": Path(p).name, "path": str(p), "title": ""} for p in (cut, whole)]
    load_view(Clip(str(cut)), centre_view(0.0, model.clip), model.clip)  # its beginning is there
    found = extracted(model, manifest_from_rows(rows, "m"))
    assert found.rows.tolist() == [1]
    assert [pair_id for pair_id, _ in found.failures] == ["cut.webm"]


def test_none_that_can_be_read_is_a_fault(model: CPD, manifest: Manifest) -> None:
    model.train()
    with pytest.raises(VideoError, match=r"3\.mp4"):
        extracted(model, manifest.take([BROKEN]))
    assert model.training
    with pytest.raises(VideoError, match="0 videos"):
        extracted(model, manifest.take([]))


@given(videos=st.integers(0, 60), clips=st.integers(1, 12), batch=st.integers(1, 40), size=st.integers(1, 5))
def test_processes_share_the_groups_of_one(videos: int, clips: int, batch: int, size: int) -> None:
    rows = list(range(3, 3 + videos))
    whole = shard_batches(rows, clips, batch, World())
    assert [row for group in whole for row in group] == rows
    of_all = [shard_batches(rows, clips, batch, World(rank, size)) for rank in range(size)]
    assert sorted(group for of_one in of_all for group in of_one) == whole
    assert all(len(group) * clips <= max(batch, clips) for group in whole)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_a_video_may_be_larger_than_a_batch(
    model: CPD, manifest: Manifest, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = extracted(model, manifest, clips=4, batch_size=100)
    largest: list[int] = []
    encode = CPD.encode_video

    def watched(self: CPD, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        largest.append(len(clips))
        return encode(self, clips)

    monkeypatch.setattr(CPD, "encode_video", watched)
    found = extracted(model, manifest, clips=4, batch_size=batch_size)
    assert max(largest) <= batch_size
    assert found.failures == whole.failures
    torch.testing.assert_close(found.visual, whole.visual, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.embedding, whole.embedding, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not torch._C._has_mkldnn, reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_bfloat16_the_networks_fastest_form_computes(
    model: CPD, manifest: Manifest, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def watched(self: FoldedResNet3d, clips: torch.Tensor) -> torch.Tensor:
        calls.append(len(clips))
        return torch.zeros(len(clips), model.video_encoder.features)

    monkeypatch.setattr(FoldedResNet3d, "__call__", watched)
    found = extracted(model, manifest, clips=2, precision=precision)
    assert bool(calls) == (precision == "bf16")
    assert bool(found.visual.any()) == (precision == "fp32")


def test_progress_counts_every_clip(model: CPD, manifest: Manifest) -> None:
    told: list[tuple[int, int]] = []
    extracted(model, manifest, progress=lambda done, of: told.append((done, of)))
    assert told[-1] == (18, 18)
    assert [done for done, _ in told] == [3, 6, 9, 12, 15, 18]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_it_was_module_by_module(model: CPD, manifest: Manifest, training: bool) -> None:
    # Stage I: all is trained but the language model, which stays without dropout.
    model.train(training)
    model.text_encoder.eval()
    modes = [module.training for module in model.modules()]
    before = {name: values.clone() for name, values in model.state_dict().items()}
    extracted(model, manifest)
    embed_texts(model, ["a dog", "a cat"])
    assert [module.training for module in model.modules()] == modes
    for name, values in model.state_dict().items():
        assert torch.equal(values, before[name]), name


def test_texts_are_embedded_in_eval_mode_whatever_the_batch(model: CPD) -> None:
    texts = ["a dog", "a cat", "dog and cat", "nothing"]
    with torch.no_grad():
        expected = model.eval().encode_text(texts)
    found = embed_texts(model.train(), texts, batch_size=3)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(F.normalize(found, dim=1), found)
    assert embed_texts(model, []).shape == (0, 8)
