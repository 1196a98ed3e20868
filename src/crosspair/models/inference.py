"""Faster inference of the video encoder in bfloat16 on CPUs.

Batch normalisation, ReLU and the residual sum are fused into the convolutions, and layers without temporal extent run
on images. In float32 the original layers are used: fusing would gain little, and results stay bit-identical.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from crosspair.device import dtype_for
from crosspair.models.resnet3d import BasicBlock, Bottleneck, ResNet3d, as_clips, as_images, average


@contextmanager
def inference(encoder: ResNet3d, device: torch.device, precision: str) -> Iterator[None]:
    """Use fused layers in eval mode within the context, if computing in bfloat16 on a CPU; else no change.

    The fused form copies the weights, so they must not change within the context.

    Args:
        encoder: encoder on ``device``.
        device: device of the computation.
        precision: see `crosspair.device.dtype_for`.
    """
    if device.type == "cpu" and dtype_for(device, precision) == torch.bfloat16 and _has_bfloat16_convolutions():
        encoder.folded = FoldedResNet3d(encoder, torch.bfloat16)
    try:
        yield
    finally:
        encoder.folded = None


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
