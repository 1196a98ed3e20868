"""A network on the device of each process that trains it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from crosspair.config import ClipConfig, TrainingConfig
from crosspair.devices import sent
from crosspair.distributed import World
from crosspair.errors import RecipeError
from crosspair.video import Batch, jitter_colors, normalize

Network = TypeVar("Network", bound=nn.Module)


def check_batch(training: TrainingConfig, world: World) -> None:
    """See that each process has its share of a batch, and two clips at a time of it.

    Raises:
        RecipeError: it has not.
    """
    size, parts = training.batch_size, training.accumulate
    if size % world.size:
        raise RecipeError(
            f"training.batch_size {size} cannot be shared evenly by {world.size} processes"
        )
    if size // (world.size * parts) < 2:
        raise RecipeError(
            f"training.batch_size {size}, shared by {world.size} processes, each taking its share "
            f"in {parts} parts, is fewer than two clips at a time, which batch normalisation "
            "needs; raise it, lower training.accumulate, or take fewer processes"
        )


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
    if world.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # clips are of one size: it pays to search once
    return model.to(world.device)


def wrapped(model: nn.Module, world: World) -> nn.Module:
    """The model, its gradients averaged over the processes; all its layers must be there by now."""
    if world.size == 1:
        return model
    # Running statistics play no part in training; they are averaged before they are used or kept.
    with warnings.catch_warnings():  # what PyTorch 2.13 wants instead would copy them here
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False)


def compiled(network: nn.Module, device: torch.device) -> None:
    """Let torch.compile make a network's passes from now on; its weights keep their names.

    Raises:
        RecipeError: there is nothing here that it can compile with.
    """
    try:
        torch.compile(lambda values: values + 1)(torch.zeros(2, device=device))
    except Exception as error:  # kinds of its own, of the compiler's, of Triton's
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"training.compile is true, and torch.compile does not work here ({reason}); "
            "give training.compile=false"
        ) from error
    network.compile()


def uncompiled(config: TrainingConfig) -> AbstractContextManager[Any]:
    """A context for validation, whose batches are of sizes not worth compiling for."""
    # Not where nothing is compiled: the compiler takes seconds to import.
    return torch.compiler.set_stance("force_eager") if config.compile else nullcontext()


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


def uploaded(
    batch: Batch, parts: int, device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A batch in parts of nearly the same size.

    On a GPU copies have a stream of their own, which waits for nothing that the GPU still has to
    do: a batch travels while the step before is computed.

    Returns:
        Rows (B,) on the host, clips (B, 3, T, H, W) uint8 and colours (B, 3) on ``device``.
    """
    columns = (batch.rows, *_copied([batch.clips, batch.colors], device))
    return list(zip(*(column.tensor_split(parts) for column in columns), strict=True))


def training_pixels(clips: torch.Tensor, colors: torch.Tensor, clip: ClipConfig) -> torch.Tensor:
    """(B, 3, T, H, W) float: clips of `uploaded`, normalised and jittered."""
    pixels = normalize(clips)
    return jitter_colors(pixels, colors) if clip.color_jitter else pixels


def _copied(tensors: Sequence[torch.Tensor], device: torch.device) -> Sequence[torch.Tensor]:
    if device.type != "cuda":
        return tensors
    computes, copies = torch.cuda.current_stream(device), _copies(device)
    with torch.cuda.stream(copies):
        found = [sent(each, device) for each in tensors]
    computes.wait_stream(copies)
    for each in found:
        each.record_stream(computes)  # or its memory would be taken for the next copy too early
    return found


@functools.cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
