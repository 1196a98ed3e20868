"""Similarities of queries with rows of a table, for each query its own: noise of each pair.

Plain PyTorch copies the rows first, (B, m, d) values: 1 GiB for 256 pairs with 4096 rows of 256,
which stay until the backward pass. On a GPU a Triton kernel multiplies them where they are.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence

import torch

from crosspair.distributed import World
from crosspair.objectives.whole_batch import gathered, own_of_sum

logger = logging.getLogger(__name__)

Dots = Callable[[torch.Tensor, Sequence[torch.Tensor], torch.Tensor], torch.Tensor]


def spread_dots(
    query: torch.Tensor, columns: Sequence[torch.Tensor], rows: torch.Tensor, world: World
) -> torch.Tensor:
    """Each query times its own rows of a table that is spread over processes.

    Queries travel to the rows, and similarities back: with m rows of d values for each of n queries
    n·(m + d) values, and not n·m·d.

    Args:
        query: (B, d) of this process.
        columns: this process's rows of the table, of which row i is on i % world.size; otherwise as
            of `gathered_dots`.
        rows: (n, m) int64, for the queries of all processes one after another.
        world: the processes that the table is spread over.

    Returns:
        (B, m), with a gradient as that of `gathered_dots`.
    """
    mine = rows % world.size == world.rank
    here = torch.where(mine, rows // world.size, 0)
    return own_of_sum(
        gathered_dots(gathered(query, world), columns, here) * mine, len(query), world
    )


def gathered_dots(
    query: torch.Tensor, columns: Sequence[torch.Tensor], rows: torch.Tensor
) -> torch.Tensor:
    """Each query times its own rows of a table.

    Args:
        query: (B, d).
        columns: the table, as columns (N, d₁), (N, d₂), … that sum up to d; float32 or bfloat16.
        rows: (B, m) int64, 0 to N - 1.

    Returns:
        (B, m), with a gradient for the queries, and for the table where that learns.
    """
    kernel = _kernel() if query.is_cuda and not any(c.requires_grad for c in columns) else None
    return (kernel or plain_dots)(query, columns, rows)


def plain_dots(
    query: torch.Tensor, columns: Sequence[torch.Tensor], rows: torch.Tensor
) -> torch.Tensor:
    """`gathered_dots` anywhere; it holds (B, m, d) values."""
    table = torch.cat([column[rows] for column in columns], dim=-1)  # (B, m, d)
    return torch.einsum("bd,bmd->bm", query, table.to(query.dtype))


@functools.cache
def _kernel() -> Dots | None:
    try:
        from crosspair.objectives.gathered_kernel import kernel_dots
    except ImportError as error:
        logger.warning("no Triton (%s): noise of each pair takes more memory and time", error)
        return None
    return kernel_dots
