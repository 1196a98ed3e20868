"""Inflation: a reference 2D ResNet compared with the inflated 3D network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from crosspair.config import VideoConfig
from crosspair.errors import ModelError
from crosspair.models import ResNet3d, inflate, load_init_weights
from crosspair.models.resnet3d import BLOCKS

pytestmark = pytest.mark.usefixtures("one_thread")

Weights = dict[str, torch.Tensor]
WIDTH = 4


def norm_of(name: str, channels: int, generator: torch.Generator) -> Weights:
    def some(low: float, high: float) -> torch.Tensor:
        return torch.rand(channels, generator=generator) * (high - low) + low

    return {
        f"{name}.weight": some(0.5, 1.5),
        f"{name}.bias": some(-0.5, 0.5),
        f"{name}.running_mean": some(-0.5, 0.5),
        f"{name}.running_var": some(0.5, 1.5),
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


def resnet2d(depth: int, width: int = WIDTH) -> Weights:
    """A state dict with the names of torchvision and timm."""
    generator = torch.Generator().manual_seed(depth)

    def kernel(outer: int, inner: int, size: int) -> torch.Tensor:
        scale = (2 / (inner * size * size)) ** 0.5
        return torch.randn(outer, inner, size, size, generator=generator) * scale

    weights = {"conv1.weight": kernel(width, 3, 7), **norm_of("bn1", width, generator)}
    channels, expansion = width, 4 if depth >= 50 else 1
    for stage, blocks in enumerate(BLOCKS[depth]):
        inner = width * 2**stage
        outer = inner * expansion
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            shapes = [(inner, channels, 3), (inner, inner, 3)]
            if expansion == 4:
                shapes = [(inner, channels, 1), (inner, inner, 3), (outer, inner, 1)]
            for index, shape in enumerate(shapes, start=1):
                weights[f"{name}.conv{index}.weight"] = kernel(*shape)
                weights |= norm_of(f"{name}.bn{index}", shape[0], generator)
            if channels != outer or (stage > 0 and block == 0):
                weights[f"{name}.downsample.0.weight"] = kernel(outer, channels, 1)
                weights |= norm_of(f"{name}.downsample.1", outer, generator)
            channels = outer
    weights["fc.weight"], weights["fc.bias"] = torch.randn(10, channels), torch.randn(10)
    return weights


def features2d(weights: Weights, depth: int, images: torch.Tensor, *, grey_border: bool = False) -> torch.Tensor:
    """Features of the 2D network for images (B, 3, H, W) in 0 to 1."""
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def normalized(x: torch.Tensor, name: str) -> torch.Tensor:
        parts = (weights[f"{name}.{key}"] for key in ("running_mean", "running_var"))
        return F.batch_norm(x, *parts, weights[f"{name}.weight"], weights[f"{name}.bias"])

    if grey_border:  # zero padding of the inflated network is a grey of 0.45
        images = F.pad(images, (3, 3, 3, 3), value=0.45)
    padding = 0 if grey_border else 3
    x = F.conv2d((images - mean) / std, weights["conv1.weight"], stride=2, padding=padding)
    x = F.max_pool2d(normalized(x, "bn1").relu(), 3, 2, 1)
    for stage, blocks in enumerate(BLOCKS[depth]):
        for block in range(blocks):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            count, strided = (3, 2) if depth >= 50 else (2, 1)
            y = x
            for index in range(1, count + 1):
                kernel = weights[f"{name}.conv{index}.weight"]
                padding = kernel.shape[-1] // 2
                y = F.conv2d(y, kernel, stride=stride if index == strided else 1, padding=padding)
                y = normalized(y, f"{name}.bn{index}")
                y = y.relu() if index < count else y
            if f"{name}.downsample.0.weight" in weights:
                x = F.conv2d(x, weights[f"{name}.downsample.0.weight"], stride=stride)
                x = normalized(x, f"{name}.downsample.1")
            x = (x + y).relu()
    return x.mean(dim=(2, 3))


def loaded(file: Path) -> ResNet3d:
    video, state = inflate(file)
    model = ResNet3d(video.depth, video.width, video.shortcut).eval()
    model.load_state_dict(state)
    return model


def saved(weights: Weights, file: Path) -> Path:
    if file.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in weights.items()}, file)
    else:
        torch.save(weights, file)
    return file


def refused(file: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        inflate(file)
    assert "\n" not in str(caught.value)


# --- outputs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [10, 18, 34, 50, 101])
@torch.no_grad()
def test_still_clip_matches_its_frame(depth: int, tmp_path: Path) -> None:
    weights = resnet2d(depth)
    model = loaded(saved(weights, tmp_path / "w.safetensors"))
    images = torch.rand(2, 3, 64, 64)
    still = images[:, :, None].expand(2, 3, 4, 64, 64)
    expected = features2d(weights, depth, images, grey_border=True)
    assert expected.std() > 0.01
    found = model((still - 0.45) / 0.225)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("depth", [18, 50])
@torch.no_grad()
def test_clip_matches_the_mean_over_its_frames(depth: int, tmp_path: Path) -> None:
    weights = resnet2d(depth)
    model = loaded(saved(weights, tmp_path / "w.pth"))
    frames = torch.rand(5, 3, 64, 64)
    expected = features2d(weights, depth, frames, grey_border=True).mean(dim=0, keepdim=True)
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


@pytest.mark.parametrize("depth", [10, 18, 34, 50, 101])
def test_depth_and_width_are_inferred(depth: int, tmp_path: Path) -> None:
    video, _ = inflate(saved(resnet2d(depth, width=3), tmp_path / "w.pth"))
    assert video == VideoConfig(depth=depth, width=3, shortcut="B")


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


class Code:
    """Create a file when unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch '{self.made}'",))


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


def test_missing_weights(tmp_path: Path) -> None:
    weights = resnet2d(10)
    for name in ("layer2.0.bn1.weight", "bn1.bias"):
        del weights[name]
    file = saved(weights, tmp_path / "w.pth")
    refused(file, "2 weights .*bn1.bias .*layer2.0.bn1.weight")


def test_unexpected_weights(tmp_path: Path) -> None:
    extra = {f"layer1.0.se.fc{i}.weight": torch.zeros(1) for i in range(4)}
    file = saved({**resnet2d(10), **extra}, tmp_path / "w.pth")
    refused(file, "4 weights .*layer1.0.se.fc0.weight .*fc2.weight .*…")


def test_another_number_of_blocks(tmp_path: Path) -> None:
    weights = resnet2d(18)
    deeper = {f"layer2.2.{k.removeprefix('layer2.1.')}": v for k, v in weights.items()}
    file = saved({**weights, **{k: v for k, v in deeper.items() if "conv" in k}}, tmp_path / "w.pth")
    refused(file, "2, 3, 2, 2 basic blocks .*10, 18, 34, 50, 101")


def test_another_shape(tmp_path: Path) -> None:
    weights = {**resnet2d(10), "layer1.0.conv2.weight": torch.zeros(4, 2, 3, 3)}
    file = saved(weights, tmp_path / "w.pth")
    refused(file, r"layer1.0.conv2.weight .*\(4, 2, 1, 3, 3\).*\(4, 4, 1, 3, 3\)")
