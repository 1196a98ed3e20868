"""The slow-only 3D ResNet: shapes, temporal kernels, reference implementations of blocks, and its fused form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crosspair.device import autocast
from crosspair.models import resnet3d
from crosspair.models.resnet3d import (
    BLOCKS,
    BasicBlock,
    Bottleneck,
    FoldedResNet3d,
    ResNet3d,
    ZeroPaddedShortcut,
    as_clips,
    as_images,
    inference,
)

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


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
def test_tokens_are_the_positions_of_the_feature_map() -> None:
    model = network()
    tokens = model.tokens(clips(4, size=64))
    assert tokens.shape == (2, 4 * 2 * 2, model.features)
    torch.testing.assert_close(tokens.mean(dim=1), model(clips(4, size=64)))
    maps: list[torch.Tensor] = []
    model.res5.register_forward_hook(lambda _, __, out: maps.append(out))
    model(clips(4, size=64))
    assert torch.equal(tokens[1, 2 * 4 + 1 * 2 + 0], maps[0][1, :, 2, 1, 0])


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


# --- fused inference ----------------------------------------------------------------------------

needs_onednn = pytest.mark.skipif(not torch._C._has_mkldnn, reason="this PyTorch has no oneDNN")
needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16 convolutions"
)


def stirred(depth: int = 10, shortcut: str = "B") -> ResNet3d:
    model = network(depth, shortcut)
    stir(model)
    return model


def random_clips(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative difference."""
    return float((one - other).detach().norm() / other.detach().norm())


@needs_onednn
@pytest.mark.parametrize("shape", [(2, 3, 4, 32, 40), (1, 3, 1, 33, 47)])
@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("depth", BLOCKS)
@torch.no_grad()
def test_float32_matches_the_network(depth: int, shortcut: str, shape) -> None:
    model, x = stirred(depth, shortcut), random_clips(*shape)
    found = FoldedResNet3d(model, torch.float32)(x)
    assert found.dtype == torch.float32
    assert difference(found, model(x)) < 1e-5


@needs_bfloat16
@pytest.mark.parametrize("depth", [18, 50])
@torch.no_grad()
def test_bfloat16_is_as_accurate_as_the_layers(depth: int) -> None:
    model, x = stirred(depth), random_clips(4, 3, 4, 32, 32)
    exact = model(x)
    with autocast(CPU, "bf16"):
        layers = model(x)
        with inference(model, CPU, "bf16"):
            folded = model(x)
    assert not torch.equal(folded, layers)
    assert difference(folded, exact) < 1.5 * difference(layers, exact)


@needs_bfloat16
def test_used_only_under_bfloat16_autocast() -> None:
    model = stirred()
    with inference(model, CPU, "fp32"):
        assert model.folded is None
    with inference(model, CPU, "bf16"), torch.no_grad():
        assert model.folded is not None
        x = random_clips(1, 3, 2, 32, 32)
        expected = ResNet3d.forward(stirred(), x)
        assert torch.equal(model(x), expected)  # outside an autocast
    assert model.folded is None


@needs_onednn
def test_threads_within_a_context_share_the_fused_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resnet3d, "_has_bfloat16_convolutions", lambda: True)
    model = stirred()
    with inference(model, CPU, "bf16"):
        outer = model.folded
        with inference(model, CPU, "bf16"):
            assert model.folded is outer
        assert model.folded is outer
    assert (outer is not None, model.folded) == (True, None)


def test_not_used_in_training() -> None:
    model = stirred()
    with inference(model, CPU, "bf16"), autocast(CPU, "bf16"):
        model.train()
        features = model(random_clips(2, 3, 4, 32, 32))
    features.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_as_images_and_as_clips() -> None:
    x = random_clips(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    images = as_images(x)
    assert images.data_ptr() == x.data_ptr()
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images[5], x[1, :, 1])
    assert torch.equal(as_clips(images, 4), x)
