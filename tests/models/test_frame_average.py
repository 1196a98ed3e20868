"""Frame features of a 2D network (frozen baseline)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crosspair.config import ClipConfig
from crosspair.errors import ModelError
from crosspair.models import CPD, FrameAverageModel, load_frozen_model, load_imagenet_model
from tests.models.slowonly import features2d, resnet2d, saved

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("depth", "frames"), [(18, 1), (50, 5)])
@torch.no_grad()
def test_features_are_the_mean_over_frames(depth: int, frames: int, tmp_path: Path) -> None:
    weights = resnet2d(depth)
    model = load_imagenet_model(saved(weights, tmp_path / "w.pth"), ClipConfig(size=32))
    clip = torch.randint(0, 256, (1, 3, frames, 64, 64), dtype=torch.uint8)
    each = features2d(weights, depth, clip[0].transpose(0, 1) / 255)  # (T, F)
    expected = each.mean(dim=0, keepdim=True)
    assert each.std() > 0.01
    visual, embedding = model.encode_video(clip)
    torch.testing.assert_close(visual, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))
    assert embedding.shape == (1, 256)


def test_untrained_parts_are_deterministic(tmp_path: Path) -> None:
    file = saved(resnet2d(10), tmp_path / "w.pth")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, other = load_imagenet_model(file), load_imagenet_model(file)
    assert one.hash == other.hash
    assert torch.equal(torch.get_rng_state(), before)


def test_load_frozen_model_by_name(tmp_path: Path) -> None:
    file = saved(resnet2d(10), tmp_path / "w.safetensors")
    model = load_frozen_model(f"imagenet:{file}")
    assert isinstance(model, FrameAverageModel)
    assert model.clip == ClipConfig(size=224)
    assert not model.training
    plain = CPD(model.text_encoder, model.clip, model.video, model.text, model.head)
    plain.save_pretrained(tmp_path / "model")
    again = load_frozen_model(str(tmp_path / "model"))
    assert not isinstance(again, FrameAverageModel)
    assert again.hash == plain.hash


def test_saving_is_refused(tmp_path: Path) -> None:
    model = load_imagenet_model(saved(resnet2d(10), tmp_path / "w.pth"))
    with pytest.raises(ModelError, match=f"{tmp_path}/model"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
