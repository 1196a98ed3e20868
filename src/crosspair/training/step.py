"""A training step: a batch goes through the network in parts, and the weights are moved."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from crosspair.config import FinetuneRecipe, Recipe
from crosspair.distributed import World
from crosspair.training.parallel import synchronized, training_pixels, uploaded
from crosspair.training.profile import part
from crosspair.video import Batch

Told = tuple[torch.Tensor, dict[str, torch.Tensor]]  # a loss, and scalars to log


def backward(
    batch: Batch,
    network: nn.Module,
    loss_of: Callable[[torch.Tensor, torch.Tensor], Told],
    recipe: Recipe | FinetuneRecipe,
    world: World,
    share: float,
) -> dict[str, torch.Tensor]:
    """Add up the gradients of a batch, ``training.accumulate`` parts of it one after another.

    Args:
        batch: at least two clips.
        network: of `crosspair.training.parallel.wrapped`.
        loss_of: told a part's rows (b,) on the host and its pixels, runs the network; returns the
            mean loss and scalars to log.
        recipe: of the clips, and of the parts.
        world: the processes, each of which has as many parts.
        share: see `crosspair.training.loop.Task.train_step`.

    Returns:
        The loss and the scalars, means over the batch.
    """
    # As many on every process, whatever could be read: each part has its collectives.
    parts = min(recipe.training.accumulate, int(world.counts(len(batch.rows)).min()) // 2)
    logged: dict[str, torch.Tensor] = {}
    with part("copy"):
        on_device = uploaded(batch, parts, world.device)
    for i, (rows, clips, colors) in enumerate(on_device):
        with part("copy"):
            pixels = training_pixels(clips, colors, recipe.clip)
        with synchronized(network, last=i == parts - 1):
            loss, scalars = loss_of(rows, pixels)
            weight = len(rows) / len(batch.rows)
            with part("backward"):
                torch.autograd.backward(loss * (weight * share))
        for name, value in {"loss": loss.detach(), **scalars}.items():
            logged[name] = logged.get(name, 0) + weight * value
    return logged


def move(optimizer: torch.optim.Optimizer, clip_norm: float | None) -> dict[str, torch.Tensor]:
    """Move the weights by their gradients, which are gone then; a norm that is clipped is told."""
    told = {}
    if clip_norm is not None:
        moving = [each for group in optimizer.param_groups for each in group["params"]]
        told["gradient_norm"] = nn.utils.clip_grad_norm_(moving, clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return told
