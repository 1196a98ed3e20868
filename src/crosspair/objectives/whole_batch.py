"""The whole batch on every process, for objectives whose negatives are the batch's other pairs."""

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
    both: torch.Tensor = _Gathered.apply(torch.stack([video, text], dim=1), world)  # type: ignore[no-untyped-call]
    begin = world.offset(len(video))
    own = torch.arange(begin, begin + len(video), device=video.device)
    return both[:, 0], both[:, 1], own


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
