"""`crosspair.objectives.nce.gather_dot` as a Triton kernel that reads table rows without copying.

Set TRITON_INTERPRET=1 in the environment to run it on a machine without a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]

BLOCK = 32  # rows per block
SPLITS = 8  # programs per query in the backward pass, since queries alone do not fill a GPU


def triton_gather_dot(query: torch.Tensor, columns: Sequence[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """Compute `crosspair.objectives.nce.gather_dot` in float32 for a table that needs no gradient."""
    parts = torch.split(query, [column.shape[1] for column in columns], dim=1)
    dots: list[torch.Tensor] = [
        _GatherDot.apply(*operands, rows)  # type: ignore[no-untyped-call]
        for operands in zip(parts, columns, strict=True)
    ]
    return functools.reduce(torch.add, dots)


class _GatherDot(torch.autograd.Function):
    """Dot products (B, m) of queries (B, d) with table[rows]; only the queries have a gradient."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        query, table, rows = query.contiguous(), table.contiguous(), rows.contiguous()
        ctx.save_for_backward(table, rows)
        ctx.dtype = query.dtype
        (batch, m), width = rows.shape, query.shape[1]
        dots = torch.empty(batch, m, dtype=torch.float32, device=query.device)
        _gather_dot[(batch, triton.cdiv(m, BLOCK))](
            query, table, rows, dots, m, width, triton.next_power_of_2(width), BLOCK
        )
        return dots

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        table, rows = ctx.saved_tensors
        (batch, m), width = rows.shape, table.shape[1]
        sums = torch.empty(batch, SPLITS, width, dtype=torch.float32, device=table.device)
        _weighted_sums[(batch, SPLITS)](
            gradient.contiguous(), table, rows, sums, m, width, triton.next_power_of_2(width),
            BLOCK, SPLITS,
        )  # fmt: skip
        return sums.sum(dim=1).to(ctx.dtype), None, None


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _gather_dot(  # type: ignore[no-untyped-def]
    query, table, rows, dots, m,
    width: tl.constexpr, padded: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """dots[b, k] = Σ_j query[b, j]·table[rows[b, k], j] for one b and one block of k."""
    pair = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * block + tl.arange(0, block)
    j = tl.arange(0, padded)
    values = tl.load(query + pair * width + j, mask=j < width, other=0.0).to(tl.float32)
    row = tl.load(rows + pair * m + k, mask=k < m, other=0)
    inside = (k < m)[:, None] & (j < width)[None, :]
    entries = tl.load(table + row[:, None] * width + j[None, :], mask=inside, other=0.0)
    products = tl.sum(entries.to(tl.float32) * values[None, :], axis=1)
    tl.store(dots + pair * m + k, products, mask=k < m)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _weighted_sums(  # type: ignore[no-untyped-def]
    weights, table, rows, sums, m,
    width: tl.constexpr, padded: tl.constexpr, block: tl.constexpr, splits: tl.constexpr,
):  # fmt: skip
    """sums[b, s] = Σ_k weights[b, k]·table[rows[b, k]] for one b and every ``splits``-th block."""
    pair, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    j = tl.arange(0, padded)
    total = tl.zeros([padded], dtype=tl.float32)
    for start in range(split * block, m, splits * block):
        k = start + tl.arange(0, block)
        row = tl.load(rows + pair * m + k, mask=k < m, other=0)
        weight = tl.load(weights + pair * m + k, mask=k < m, other=0.0).to(tl.float32)
        inside = (k < m)[:, None] & (j < width)[None, :]
        entries = tl.load(table + row[:, None] * width + j[None, :], mask=inside, other=0.0)
        total += tl.sum(entries.to(tl.float32) * weight[:, None], axis=0)
    tl.store(sums + (pair * splits + split) * width + j, total, mask=j < width)
