"""The whole batch on every process, with gradients that find back to where its rows are from."""

from __future__ import annotations

from typing import Any

import torch

from crosspair.distributed import World


def whole_batch(
    video: torch.Tensor, text: torch.Tensor, world: World
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every process's embeddings, with gradients that find back to the process they came from.

    Args:
        video: (B, D) f_v of this process.
        text: (B, D) f_t of this process.
        world: the processes that share the batch; B may differ between them.

    Returns:
        f_v and f_t of all processes, (n, D) each, and where this process's own are, (B,) int64.
    """
    both = gathered(torch.stack([video, text], dim=1), world)
    begin = world.offset(len(video))
    own = torch.arange(begin, begin + len(video), device=video.device)
    return both[:, 0], both[:, 1], own


def gathered(rows: torch.Tensor, world: World) -> torch.Tensor:
    """Every process's rows (B, …), one after another: (n, …)."""
    found: torch.Tensor = _Gathered.apply(rows, world)  # type: ignore[no-untyped-call]
    return found


def own_of_sum(terms: torch.Tensor, count: int, world: World) -> torch.Tensor:
    """The sum of every process's terms (n, …), of which this process needs its ``count`` rows."""
    found: torch.Tensor = _OwnOfSum.apply(terms, count, world)  # type: ignore[no-untyped-call]
    return found


class _Gathered(torch.autograd.Function):
    """`World.gather_rows`; a row's gradient is the sum of what every process's loss asks of it."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, world: World) -> torch.Tensor:
        ctx.world, ctx.count = world, len(rows)
        return world.gather_rows(rows).clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        begin = ctx.world.offset(ctx.count)
        return ctx.world.sum(gradient)[begin : begin + ctx.count], None


class _OwnOfSum(torch.autograd.Function):
    """The way back is to gather: every process's terms are part of every row."""

    @staticmethod
    def forward(ctx: Any, terms: torch.Tensor, count: int, world: World) -> torch.Tensor:
        ctx.world = world
        begin = world.offset(count)
        return world.sum(terms)[begin : begin + count].clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.world.gather_rows(gradient), None, None
