"""The video encoder: a slow-only 3D ResNet (Section 3.3).

Kernels have temporal size 1 up to res3, and 3 in res4 and res5. Time is not downsampled.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from crosspair.config import Depth

BLOCKS: dict[Depth, tuple[int, int, int, int]] = {
    10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3),
}  # fmt: skip
TEMPORAL_KERNELS = (1, 1, 3, 3)  # res2, res3, res4, res5


class ResNet3d(nn.Module):
    """Slow-only 3D ResNet.

    Args:
        depth: 10, 18, 34 (basic blocks), 50 or 101 (bottlenecks).
        width: channels of res2's 3×3 convolutions; 64 is standard.
        shortcut: "B", a 1×1×1 projection with batch normalisation where shapes change; or "A",
            subsampling and zero padding of channels, used by the authors' released checkpoints.

    Shapes:
        (B, 3, T, H, W) float → (B, F), the *visual feature*, averaged over time and space. F is
        8 × width with basic blocks and 32 × width with bottlenecks.

    Attributes:
        features: F.
        folded: fused form used in eval mode under autocast, see `crosspair.models.inference`; None to use the layers.
    """

    def __init__(self, depth: Depth = 34, width: int = 64, shortcut: str = "B") -> None:
        super().__init__()
        block = Bottleneck if depth >= 50 else BasicBlock
        self.folded: Callable[[torch.Tensor], torch.Tensor] | None = None
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
        x: torch.Tensor = self.stem(clips)
        return average(self.res5(self.res4(self.res3(self.res2(x)))))


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
