"""The fused form of the video encoder: same outputs, used only for bfloat16 inference."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crosspair.device import autocast
from crosspair.models.resnet3d import BLOCKS, FoldedResNet3d, ResNet3d, as_clips, as_images, inference

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not torch._C._has_mkldnn, reason="this PyTorch has no oneDNN"),
]
CPU = torch.device("cpu")
needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16 convolutions"
)


def network(depth: int = 10, shortcut: str = "B") -> ResNet3d:
    """A network in eval mode with random batch normalisation."""
    torch.manual_seed(0)
    model = ResNet3d(depth, width=8, shortcut=shortcut).eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm3d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
    return model


def clips(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative difference."""
    return float((one - other).detach().norm() / other.detach().norm())


@pytest.mark.parametrize("shape", [(2, 3, 4, 32, 40), (1, 3, 1, 33, 47)])
@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("depth", BLOCKS)
@torch.no_grad()
def test_float32_matches_the_network(depth: int, shortcut: str, shape) -> None:
    model, x = network(depth, shortcut), clips(*shape)
    found = FoldedResNet3d(model, torch.float32)(x)
    assert found.dtype == torch.float32
    assert difference(found, model(x)) < 1e-5


@needs_bfloat16
@pytest.mark.parametrize("depth", [18, 50])
@torch.no_grad()
def test_bfloat16_is_as_accurate_as_the_layers(depth: int) -> None:
    model, x = network(depth), clips(4, 3, 4, 32, 32)
    exact = model(x)
    with autocast(CPU, "bf16"):
        layers = model(x)
        with inference(model, CPU, "bf16"):
            folded = model(x)
    assert not torch.equal(folded, layers)
    assert difference(folded, exact) < 1.5 * difference(layers, exact)


@needs_bfloat16
def test_used_only_under_bfloat16_autocast() -> None:
    model = network()
    with inference(model, CPU, "fp32"):
        assert model.folded is None
    with inference(model, CPU, "bf16"), torch.no_grad():
        assert model.folded is not None
        x = clips(1, 3, 2, 32, 32)
        expected = ResNet3d.forward(network(), x)
        assert torch.equal(model(x), expected)  # outside an autocast
    assert model.folded is None


def test_not_used_in_training() -> None:
    model = network()
    with inference(model, CPU, "bf16"), autocast(CPU, "bf16"):
        model.train()
        features = model(clips(2, 3, 4, 32, 32))
    features.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_as_images_and_as_clips() -> None:
    x = clips(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    images = as_images(x)
    assert images.data_ptr() == x.data_ptr()
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images[5], x[1, :, 1])
    assert torch.equal(as_clips(images, 4), x)
