"""Inflation: a reference 2D ResNet compared with the inflated 3D network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crosspair.config import VideoConfig
from crosspair.errors import ModelError
from crosspair.models import ResNet3d, inflate, load_init_weights
from tests.models.slowonly import Code, features2d, resnet2d, saved

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH = 4


def loaded(file: Path) -> ResNet3d:
    video, state = inflate(file)
    assert video.shortcut == "B"
    model = ResNet3d(video.depth, video.width, video.shortcut).eval()
    model.load_state_dict(state)
    return model


def refused(file: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        inflate(file)
    assert "\n" not in str(caught.value)


# --- outputs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [10, 18, 34, 50, 101])
@pytest.mark.parametrize("still", [True, False])
@torch.no_grad()
def test_clip_matches_the_mean_over_its_frames(depth: int, still: bool, tmp_path: Path) -> None:
    weights = resnet2d(depth)
    model = loaded(saved(weights, tmp_path / "w.safetensors"))
    frames = torch.rand(1, 3, 64, 64).expand(5, 3, 64, 64) if still else torch.rand(5, 3, 64, 64)
    expected = features2d(weights, depth, frames, grey_border=True).mean(dim=0, keepdim=True)
    assert expected.std() > 0.01
    found = model(((frames - 0.45) / 0.225).transpose(0, 1)[None])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_kernels_are_at_the_central_time_step(tmp_path: Path) -> None:
    weights = resnet2d(50)
    _, state = inflate(saved(weights, tmp_path / "w.pth"))
    kernel = state["res4.2.conv1.weight"]
    assert kernel.shape[2] == 3
    assert torch.equal(kernel[:, :, 1], weights["layer3.2.conv1.weight"])
    assert not kernel[:, :, 0].any()
    assert not kernel[:, :, 2].any()
    assert torch.equal(state["res2.0.conv2.weight"][:, :, 0], weights["layer1.0.conv2.weight"])


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "module.", "no counters"])
def test_file_formats(wrap: str, tmp_path: Path) -> None:
    weights = resnet2d(10)
    _, expected = inflate(saved(weights, tmp_path / "plain.safetensors"))
    content: dict = {
        "plain": weights,
        "state_dict": {"epoch": 3, "state_dict": weights},
        "model": {"model": weights},
        "module.": {f"module.{name}": value for name, value in weights.items()},
        "no counters": {k: v for k, v in weights.items() if "num_batches" not in k},
    }[wrap]
    _, found = inflate(saved(content, tmp_path / "w.pth"))
    for name, value in expected.items():
        if "num_batches" not in name:
            assert torch.equal(found[name], value), name


def test_initial_weights(tmp_path: Path) -> None:
    start = load_init_weights(f"imagenet:{saved(resnet2d(10), tmp_path / 'w.pth')}")
    assert start.name.startswith("ImageNet ")
    assert start.video == VideoConfig(depth=10, width=WIDTH)


# --- invalid files -----------------------------------------------------------------------------


def test_file_with_code_is_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Code(tmp_path / "made")}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", r"w\.pth .*\w+\.system")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "m.pth")
    refused(tmp_path / "m.pth", r"m\.pth .*torch\.nn.*Linear")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"no weights", b"PK\x03\x04 cut", b"some notes", b"hello world", b"X\xff\xff", b"GIF89a",
     b"X\x01\x00\x00\x00\xff."],
)  # fmt: skip
def test_damaged_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, rf"{name} (?!.*Weights only)")


def test_other_files(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "w.pth")
    refused(tmp_path / "w.pth", r"w\.pth .*list")
    saved({"patch_embed.weight": torch.zeros(3)}, tmp_path / "vit.pth")
    refused(tmp_path / "vit.pth", r"vit\.pth .*patch_embed.weight")
    saved({"conv1.weight": torch.zeros(4, 3, 7, 7)}, tmp_path / "stem.pth")
    refused(tmp_path / "stem.pth", r"stem\.pth: .*0, 0, 0, 0 basic blocks")
    saved({"conv1.weight": torch.zeros(4, 3, 1, 7, 7)}, tmp_path / "deep.pth")
    refused(tmp_path / "deep.pth", r"deep\.pth .*conv1.weight")


def test_weights_that_do_not_match(tmp_path: Path) -> None:
    weights = resnet2d(10)
    fewer = {name: value for name, value in weights.items() if name not in ("layer2.0.bn1.weight", "bn1.bias")}
    refused(saved(fewer, tmp_path / "w.pth"), "2 weights .*bn1.bias .*layer2.0.bn1.weight")
    extra = {f"layer1.0.se.fc{i}.weight": torch.zeros(1) for i in range(4)}
    refused(saved({**weights, **extra}, tmp_path / "w.pth"), "4 weights .*layer1.0.se.fc0.weight")
    shape = {"layer1.0.conv2.weight": torch.zeros(4, 2, 3, 3)}
    message = r"layer1.0.conv2.weight .*\(4, 2, 1, 3, 3\).*\(4, 4, 1, 3, 3\)"
    refused(saved({**weights, **shape}, tmp_path / "w.pth"), message)
    deeper = {f"layer2.1.{k.removeprefix('layer2.0.')}": v for k, v in weights.items() if "layer2.0.conv" in k}
    refused(saved({**weights, **deeper}, tmp_path / "w.pth"), "1, 2, 1, 1 basic blocks")
