"""The video encoder: a slow-only 3D ResNet (Section 3.3).

Kernels have temporal size 1 up to res3, and 3 in res4 and res5. Time is not downsampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
import torch.nn.functional as F
from torch import nn

from crosspair.config import Depth
from crosspair.device import dtype_for
from crosspair.models.encoder import VideoEncoder

BLOCKS: dict[Depth, tuple[int, int, int, int]] = {
    10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3),
}  # fmt: skip
TEMPORAL_KERNELS = (1, 1, 3, 3)  # res2, res3, res4, res5


class ResNet3d(VideoEncoder):
    """Slow-only 3D ResNet; for its attributes see `VideoEncoder`.

    Args:
        depth: 10, 18, 34 (basic blocks), 50 or 101 (bottlenecks).
        width: channels of res2's 3×3 convolutions; 64 is standard.
        shortcut: "B", a 1×1×1 projection with batch normalisation where shapes change; or "A",
            subsampling and zero padding of channels, used by the authors' released checkpoints.

    Shapes:
        (B, 3, T, H, W) float → (B, F), the *visual feature*, averaged over time and space. F is
        8 × width with basic blocks and 32 × width with bottlenecks.

    Attributes:
        folded: fused form used in eval mode under autocast, see `inference`; None to use the layers.
    """

    def __init__(self, depth: Depth = 34, width: int = 64, shortcut: str = "B") -> None:
        super().__init__()
        block = Bottleneck if depth >= 50 else BasicBlock
        self.folded: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.architecture = depth, width, shortcut
        self.stem = nn.Sequential(
            nn.Conv3d(3, width, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )
        stages = []
        channels = width
        for stage, temporal in enumerate(TEMPORAL_KERNELS):
            layers = []
            for index in range(BLOCKS[depth][stage]):
                inner, stride = width * 2**stage, 2 if stage > 0 and index == 0 else 1
                layers.append(block(channels, inner, stride, temporal, shortcut))
                channels = inner * block.expansion
            stages.append(nn.Sequential(*layers))
        self.res2, self.res3, self.res4, self.res5 = stages
        self.features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        folded = None if self.training else self.folded
        if folded and torch.is_autocast_enabled(clips.device.type):
            return folded(clips)
        return average(self._feature_map(clips))

    def tokens(self, clips: torch.Tensor) -> torch.Tensor:
        """Return the features (B, T·H'·W', F) before the average, by time and place."""
        return self._feature_map(clips).flatten(2).transpose(1, 2)

    def _feature_map(self, clips: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.res5(self.res4(self.res3(self.res2(self.stem(clips)))))
        return x

    @property
    def blocks(self) -> list[nn.Module]:
        return [self.res2, self.res3, self.res4, self.res5]

    def with_random_weights(self) -> Self:
        """Return an encoder of the same architecture with random weights."""
        return type(self)(*self.architecture)


class BasicBlock(nn.Module):
    """Residual block of kt×3×3 and 1×3×3 convolutions."""

    expansion = 1

    def __init__(self, channels: int, inner: int, stride: int, temporal: int, kind: str) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, inner, temporal, 3, stride)
        self.bn1 = nn.BatchNorm3d(inner)
        self.conv2 = _convolution(inner, inner, 1, 3)
        self.bn2 = nn.BatchNorm3d(inner)
        self.shortcut = _shortcut(channels, inner, stride, kind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x), inplace=True)


class Bottleneck(nn.Module):
    """Residual block of kt×1×1, 1×3×3 and 1×1×1 convolutions."""

    expansion = 4

    def __init__(self, channels: int, inner: int, stride: int, temporal: int, kind: str) -> None:
        super().__init__()
        outer = inner * self.expansion
        self.conv1 = _convolution(channels, inner, temporal, 1)
        self.bn1 = nn.BatchNorm3d(inner)
        self.conv2 = _convolution(inner, inner, 1, 3, stride)
        self.bn2 = nn.BatchNorm3d(inner)
        self.conv3 = _convolution(inner, outer, 1, 1)
        self.bn3 = nn.BatchNorm3d(outer)
        self.shortcut = _shortcut(channels, outer, stride, kind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.shortcut(x), inplace=True)


class ZeroPaddedShortcut(nn.Module):
    """Shortcut "A": subsample by ``stride`` and pad the new channels with zeros."""

    def __init__(self, channels: int, outer: int, stride: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, outer - channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, 0, 0, self.padding))


def as_images(x: torch.Tensor) -> torch.Tensor:
    """Reshape (B, C, T, H, W) to (B·T, C, H, W); a view for channels_last_3d tensors."""
    return x.transpose(1, 2).flatten(0, 1)


def as_clips(x: torch.Tensor, frames: int) -> torch.Tensor:
    """Reshape (B·T, C, H, W) to (B, C, T, H, W) with T = ``frames``."""
    return x.reshape(-1, frames, *x.shape[1:]).transpose(1, 2)


def average(x: torch.Tensor) -> torch.Tensor:
    """Average (B, F, T, H, W) to (B, F) in float32; a bfloat16 mean is too inaccurate."""
    return x.mean(dim=(2, 3, 4), dtype=torch.promote_types(x.dtype, torch.float32))


def _shortcut(channels: int, outer: int, stride: int, kind: str) -> nn.Module:
    """Build shortcut ``kind`` ("A" zero padding, "B" projection), or an identity if the shape is unchanged."""
    if stride == 1 and channels == outer:
        return nn.Identity()
    if kind == "A":
        return ZeroPaddedShortcut(channels, outer, stride)
    return nn.Sequential(_convolution(channels, outer, 1, 1, stride), nn.BatchNorm3d(outer))


def _convolution(channels: int, outer: int, temporal: int, spatial: int, stride: int = 1) -> nn.Conv3d:
    """Build a convolution without bias, with half padding; ``stride`` is spatial only."""
    kernel, padding = (temporal, spatial, spatial), (temporal // 2, spatial // 2, spatial // 2)
    return nn.Conv3d(channels, outer, kernel, (1, stride, stride), padding, bias=False)


# --- faster inference in bfloat16 on CPUs -------------------------------------------------------


@contextmanager
def inference(encoder: nn.Module, device: torch.device, precision: str) -> Iterator[None]:
    """Use fused layers in eval mode within the context, if computing in bfloat16 on a CPU; else no change.

    Batch normalisation, ReLU and the residual sum are fused into the convolutions, and layers without temporal extent
    run on images. In float32 fusing would gain little, and results stay bit-identical. The fused form copies the
    weights, so they must not change within the context. Within another context for the encoder, nothing changes, so
    that threads can share it.

    Args:
        encoder: encoder on ``device``; other than `ResNet3d` they are not changed.
        device: device of the computation.
        precision: see `crosspair.device.dtype_for`.
    """
    if not isinstance(encoder, ResNet3d):
        yield
        return
    outer = encoder.folded
    if outer is None and device.type == "cpu" and dtype_for(device, precision) == torch.bfloat16:
        encoder.folded = FoldedResNet3d(encoder, torch.bfloat16) if _has_bfloat16_convolutions() else None
    try:
        yield
    finally:
        encoder.folded = outer


def _has_bfloat16_convolutions() -> bool:
    available: bool = torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return available


class FoldedResNet3d:
    """`ResNet3d` in eval mode with fused layers, from a copy of its weights.

    Args:
        encoder: network on a CPU.
        dtype: type of weights and activations.

    Shapes:
        (B, 3, T, H, W) float → (B, F) float32, as `ResNet3d`.
    """

    @torch.no_grad()
    def __init__(self, encoder: ResNet3d, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.stem = _FoldedConv(encoder.stem[0], encoder.stem[1], dtype)
        stages = (encoder.res2, encoder.res3, encoder.res4, encoder.res5)
        self.blocks = [_FoldedBlock(block, dtype) for stage in stages for block in stage]

    @torch.no_grad()
    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        frames = clips.shape[2]
        x = as_images(clips.to(self.dtype)).contiguous(memory_format=torch.channels_last)
        x = F.max_pool2d(self.stem(x, frames), 3, 2, 1)
        for block in self.blocks:
            x = block(x, frames)
        return average(as_clips(x, frames))


class _FoldedBlock:
    """A residual block on images."""

    def __init__(self, block: nn.Module, dtype: torch.dtype) -> None:
        assert isinstance(block, BasicBlock | Bottleneck)
        pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            pairs.append((block.conv3, block.bn3))
        *self.first, self.last = [_FoldedConv(*pair, dtype) for pair in pairs]
        self.shortcut: nn.Module | _FoldedConv = block.shortcut
        if isinstance(block.shortcut, nn.Sequential):
            self.shortcut = _FoldedConv(block.shortcut[0], block.shortcut[1], dtype, relu=False)

    def __call__(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        if isinstance(self.shortcut, _FoldedConv):
            residual = self.shortcut(x, frames)
        else:
            residual = as_images(self.shortcut(as_clips(x, frames)))
        for layer in self.first:
            x = layer(x, frames)
        return self.last(x, frames, residual)


class _FoldedConv:
    """Convolution fused with batch normalisation, an optional residual sum, and ReLU.

    Uses the oneDNN operators of PyTorch's compiler, since there is no public API for this fusion.
    """

    def __init__(self, convolution: nn.Module, norm: nn.Module, dtype: torch.dtype, *, relu: bool = True) -> None:
        assert isinstance(convolution, nn.Conv3d)
        assert isinstance(norm, nn.BatchNorm3d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = (convolution.weight * scale.view(-1, 1, 1, 1, 1)).to(dtype)
        self.bias = (norm.bias - norm.running_mean * scale).to(dtype)
        self.relu, self.temporal = relu, convolution.kernel_size[0] > 1
        if self.temporal:
            self.weight = weight.contiguous(memory_format=torch.channels_last_3d)
        else:
            self.weight = weight.squeeze(2).contiguous(memory_format=torch.channels_last)
        sizes = (convolution.padding, convolution.stride, convolution.dilation)
        self.form = *(s if self.temporal else s[1:] for s in sizes), convolution.groups

    def __call__(self, x: torch.Tensor, frames: int, residual: torch.Tensor | None = None) -> torch.Tensor:
        x = as_clips(x, frames) if self.temporal else x
        y: torch.Tensor
        activation = ("relu" if self.relu else "none", (), "")
        convolve, layer = torch.ops.mkldnn._convolution_pointwise, (self.weight, self.bias)
        if residual is None:
            y = convolve(x, *layer, *self.form, *activation)
        else:
            y = convolve.binary(x, residual, *layer, *self.form, "add", 1, *activation)
        return as_images(y) if self.temporal else y
