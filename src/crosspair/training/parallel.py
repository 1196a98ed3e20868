"""A network on the device of each process that trains it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from crosspair.config import ClipConfig
from crosspair.distributed import World
from crosspair.video import Batch, jitter_colors, normalize

Network = TypeVar("Network", bound=nn.Module)


def placed(model: Network, world: World) -> Network:
    """The model on this process's device, in the layout that convolutions are fast in.

    On several GPUs batch normalisation takes its statistics over all processes. (On a CPU, where
    that does not work under DDP, each process has its own, see `average_statistics`.)
    """
    if world.size > 1 and world.device.type == "cuda":
        convert: Callable[[Network], Network] = nn.SyncBatchNorm.convert_sync_batchnorm
        model = convert(model)
    for parameter in model.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.contiguous(memory_format=torch.channels_last_3d)
    return model.to(world.device)


def wrapped(model: nn.Module, world: World) -> nn.Module:
    """The model, its gradients averaged over the processes; all its layers must be there by now."""
    if world.size == 1:
        return model
    # Running statistics play no part in training; they are averaged at epochs' ends.
    return DistributedDataParallel(model, broadcast_buffers=False)


def synchronized(network: nn.Module, last: bool) -> Any:
    """A context for one part of a batch: gradients are averaged once, with the last part's."""
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return nullcontext()


@torch.no_grad()
def average_statistics(model: nn.Module, world: World) -> None:
    """Give every process the mean of all processes' running statistics."""
    if world.size == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(world.sum(buffer) / world.size)


def training_pixels(
    batch: Batch, rows: torch.Tensor, clip: ClipConfig, device: torch.device
) -> torch.Tensor:
    """(B, 3, T, H, W) float on ``device``: some clips of a batch, normalised and jittered."""
    pixels = normalize(batch.clips[rows].to(device, non_blocking=True))
    if clip.color_jitter:
        pixels = jitter_colors(pixels, batch.colors[rows].to(device))
    return pixels
