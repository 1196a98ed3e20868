"""The slow-only 3D ResNet: shapes, temporal kernels, and reference implementations of blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crosspair.models.resnet3d import BLOCKS, BasicBlock, Bottleneck, ResNet3d, ZeroPaddedShortcut

pytestmark = pytest.mark.usefixtures("one_thread")


def network(depth: int = 10, shortcut: str = "B") -> ResNet3d:
    torch.manual_seed(0)
    return ResNet3d(depth, width=8, shortcut=shortcut).eval()


def clips(frames: int = 4, size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, frames, size, size, generator=torch.Generator().manual_seed(1))


def stir(module: nn.Module) -> None:
    """Randomise the statistics and weights of batch normalisation."""
    generator = torch.Generator().manual_seed(2)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm3d):
            for values in (part.weight.data, part.running_var):
                values.uniform_(0.5, 1.5, generator=generator)
            for values in (part.bias.data, part.running_mean):
                values.uniform_(-0.5, 0.5, generator=generator)


@pytest.mark.parametrize("depth", BLOCKS)
def test_depth_is_the_number_of_layers(depth: int) -> None:
    model = network(depth)
    assert model(clips()).shape == (2, model.features) == (2, 8 * (32 if depth >= 50 else 8))
    convolutions = [
        name for name, module in model.named_modules() if isinstance(module, nn.Conv3d) and "shortcut" not in name
    ]
    assert len(convolutions) + 1 == depth  # and the head


@pytest.mark.parametrize("frames", [1, 8, 16])
@torch.no_grad()
def test_time_is_never_downsampled(frames: int) -> None:
    model = network()
    shapes: dict[str, torch.Size] = {}
    for name, stage in model.named_children():
        stage.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: out.shape}))
    model(clips(frames, size=64))
    assert shapes == {
        "stem": (2, 8, frames, 16, 16),
        "res2": (2, 8, frames, 16, 16),
        "res3": (2, 16, frames, 8, 8),
        "res4": (2, 32, frames, 4, 4),
        "res5": (2, 64, frames, 2, 2),
    }


@torch.no_grad()
def test_frames_interact_from_res4_on() -> None:
    model = network()
    one, other = clips(8), clips(8)
    other[:, :, 7] += 1
    changed = {}
    for name in ("stem", "res2", "res3", "res4", "res5"):
        stage = getattr(model, name)
        one, other = stage(one), stage(other)
        differs = (one - other).abs().amax(dim=(0, 1, 3, 4)) > 0
        changed[name] = differs.nonzero().flatten().tolist()
    assert changed["res3"] == [7]
    assert changed["res4"] == [6, 7]
    assert changed["res5"] == [5, 6, 7]


@torch.no_grad()
def test_features_are_the_mean_over_time_and_space() -> None:
    model = network()
    maps: list[torch.Tensor] = []
    model.res5.register_forward_hook(lambda _, __, out: maps.append(out))
    features = model(clips(size=64))
    torch.testing.assert_close(features, maps[0].flatten(2).mean(dim=2))


# --- blocks -------------------------------------------------------------------------------------


def normalized(x: torch.Tensor, norm: nn.BatchNorm3d) -> torch.Tensor:
    def shaped(values: torch.Tensor) -> torch.Tensor:
        return values.view(1, -1, 1, 1, 1)

    centred = (x - shaped(norm.running_mean)) / shaped(norm.running_var + norm.eps).sqrt()
    return centred * shaped(norm.weight) + shaped(norm.bias)


def projected(x: torch.Tensor, shortcut: nn.Module, stride: int) -> torch.Tensor:
    if isinstance(shortcut, nn.Identity):
        return x
    convolution, norm = shortcut
    kernel = convolution.weight.flatten(1)  # (outer, channels)
    return normalized(torch.einsum("oc,bcthw->bothw", kernel, x[..., ::stride, ::stride]), norm)


@pytest.mark.parametrize("temporal", [1, 3])
@pytest.mark.parametrize(("inner", "stride"), [(4, 1), (6, 2)])
@torch.no_grad()
def test_basic_block_matches_reference(temporal: int, inner: int, stride: int) -> None:
    block = BasicBlock(4, inner, stride, temporal, "B").eval()
    stir(block)
    x = torch.randn(2, 4, 5, 8, 8)
    y = F.conv3d(x, block.conv1.weight, None, (1, stride, stride), (temporal // 2, 1, 1))
    y = normalized(y, block.bn1).clamp(min=0)
    y = normalized(F.conv3d(y, block.conv2.weight, None, 1, (0, 1, 1)), block.bn2)
    expected = (y + projected(x, block.shortcut, stride)).clamp(min=0)
    assert block.conv1.weight.shape == (inner, 4, temporal, 3, 3)
    assert block.conv2.weight.shape == (inner, inner, 1, 3, 3)
    torch.testing.assert_close(block(x.clone()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temporal", [1, 3])
@pytest.mark.parametrize(("channels", "stride"), [(12, 1), (5, 2)])
@torch.no_grad()
def test_bottleneck_matches_reference(temporal: int, channels: int, stride: int) -> None:
    block = Bottleneck(channels, 3, stride, temporal, "B").eval()
    stir(block)
    x = torch.randn(2, channels, 5, 8, 8)
    y = F.conv3d(x, block.conv1.weight, None, 1, (temporal // 2, 0, 0))
    y = normalized(y, block.bn1).clamp(min=0)
    y = F.conv3d(y, block.conv2.weight, None, (1, stride, stride), (0, 1, 1))
    y = normalized(y, block.bn2).clamp(min=0)
    y = normalized(F.conv3d(y, block.conv3.weight), block.bn3)
    expected = (y + projected(x, block.shortcut, stride)).clamp(min=0)
    assert block.conv1.weight.shape == (3, channels, temporal, 1, 1)
    assert block.conv2.weight.shape == (3, 3, 1, 3, 3)
    assert block.conv3.weight.shape == (12, 3, 1, 1, 1)
    torch.testing.assert_close(block(x.clone()), expected, atol=1e-5, rtol=1e-5)


# --- shortcut A ---------------------------------------------------------------------------------


def test_shortcut_a_subsamples_pads_with_zeros_and_passes_the_gradient() -> None:
    shortcut = ZeroPaddedShortcut(3, 5, 2)
    assert not list(shortcut.parameters())
    x = torch.randn(1, 3, 2, 4, 4, requires_grad=True)
    y = shortcut(x)
    assert torch.equal(y[:, :3], x[:, :, :, ::2, ::2])
    assert y.shape == (1, 5, 2, 2, 2)
    assert not y[:, 3:].any()
    y.sum().backward()
    expected = torch.zeros(4, 4)
    expected[::2, ::2] = 1
    assert torch.equal(x.grad, expected.expand_as(x))


@pytest.mark.parametrize("depth", [18, 50])
def test_shortcut_a_replaces_every_projection(depth: int) -> None:
    def projections(shortcut: str) -> int:
        names = network(depth, shortcut).state_dict()
        return sum("shortcut" in name and name.endswith("0.weight") for name in names)

    assert projections("A") == 0
    assert projections("B") == (3 if depth == 18 else 4)
    with torch.no_grad():
        assert network(depth, "A")(clips()).isfinite().all()
