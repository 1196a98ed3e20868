"""The video encoder as it computes fastest where it learns nothing, in bfloat16 on a CPU.

Batch normalisation goes into the convolutions before it, so do ReLU and the sum that ends a block,
and what has no extent in time is done on images. In float32 the layers stay as they are: little
would be gained, and results remain the same to the last digit.
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
    """A context in which an encoder in eval mode computes in its fastest form.

    Its weights must not change meanwhile: the form has its own, of half the size.

    Args:
        encoder: on ``device``.
        device: where it computes.
        precision: see `crosspair.device.dtype_for`.
    """
    lower = dtype_for(device, precision) == torch.bfloat16
    if lower and device.type == "cpu" and torch._C._has_mkldnn:
        encoder.folded = FoldedResNet3d(encoder, torch.bfloat16)
    try:
        yield
    finally:
        encoder.folded = None


class FoldedResNet3d:
    """What a `ResNet3d` computes in eval mode, from copies of its weights.

    Args:
        encoder: the network, on a CPU.
        dtype: of weights and activations.

    Shapes:
        (B, 3, T, H, W) float → (B, F) float32, as of the network.
    """

    @torch.no_grad()
    def __init__(self, encoder: ResNet3d, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.stem = _Folded(encoder.stem[0], encoder.stem[1], dtype)
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
    """A block, from images to images."""

    def __init__(self, block: nn.Module, dtype: torch.dtype) -> None:
        assert isinstance(block, BasicBlock | Bottleneck)
        pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            pairs.append((block.conv3, block.bn3))
        *self.first, self.last = [_Folded(*pair, dtype) for pair in pairs]
        self.shortcut: nn.Module | _Folded = block.shortcut
        if isinstance(block.shortcut, nn.Sequential):
            self.shortcut = _Folded(block.shortcut[0], block.shortcut[1], dtype, relu=False)

    def __call__(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        if isinstance(self.shortcut, _Folded):
            other = self.shortcut(x, frames)
        else:
            other = as_images(self.shortcut(as_clips(x, frames)))
        for layer in self.first:
            x = layer(x, frames)
        return self.last(x, frames, other)


class _Folded:
    """A convolution with the batch normalisation after it, and ReLU, after a sum if there is one.

    To do all in one, PyTorch has only what its compiler uses.
    """

    def __init__(
        self, convolution: nn.Module, norm: nn.Module, dtype: torch.dtype, *, relu: bool = True
    ) -> None:
        assert isinstance(convolution, nn.Conv3d)
        assert isinstance(norm, nn.BatchNorm3d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = (convolution.weight * scale.view(-1, 1, 1, 1, 1)).to(dtype)
        self.bias = (norm.bias - norm.running_mean * scale).to(dtype)
        self.relu, self.in_time = relu, convolution.kernel_size[0] > 1
        if self.in_time:
            self.weight = weight.contiguous(memory_format=torch.channels_last_3d)
        else:
            self.weight = weight.squeeze(2).contiguous(memory_format=torch.channels_last)
        sizes = (convolution.padding, convolution.stride, convolution.dilation)
        self.form = *(each if self.in_time else each[1:] for each in sizes), convolution.groups

    def __call__(
        self, x: torch.Tensor, frames: int, other: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = as_clips(x, frames) if self.in_time else x
        y: torch.Tensor
        after = ("relu" if self.relu else "none", (), "")
        if other is None:
            y = torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, *self.form, *after
            )
        else:
            y = torch.ops.mkldnn._convolution_pointwise.binary(
                x, other, self.weight, self.bias, *self.form, "add", 1, *after
            )
        return as_images(y) if self.in_time else y
