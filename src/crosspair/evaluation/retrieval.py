"""Retrieval between videos and texts: recall at K and the median rank (Section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LEVELS = (1, 5, 10)


@dataclass(frozen=True)
class Retrieval:
    """How well one kind finds the other.

    Attributes:
        recall: K to the share of queries whose own counterpart is among the first K.
        median_rank: median rank of the counterpart, 1 is best.
        mrr: mean of 1/rank, which moves more smoothly than the others.
        count: number of queries.
    """

    recall: dict[int, float]
    median_rank: float
    mrr: float
    count: int


def target_ranks(queries: torch.Tensor, targets: torch.Tensor, chunk: int = 256) -> torch.Tensor:
    """Rank of each query's own target among all targets, by cosine; ties count against us.

    Args:
        queries: (N, D) unit vectors.
        targets: (M, D) unit vectors, M ≥ N; row i belongs to query i.
        chunk: queries compared at a time, to bound memory.

    Returns:
        (N,) int64, 1 is best.
    """
    ranks = []
    for begin in range(0, len(queries), chunk):
        scores = queries[begin : begin + chunk] @ targets.T
        own = scores.diagonal(begin).unsqueeze(1)
        # Counts the counterpart itself, and everything where a diverged network gives no numbers.
        ranks.append((~(scores < own)).sum(dim=1))
    return torch.cat(ranks)


def retrieval(queries: torch.Tensor, targets: torch.Tensor) -> Retrieval:
    """Recall at 1, 5 and 10, and the median rank.

    >>> retrieval(torch.eye(4), torch.eye(4)).recall
    {1: 1.0, 5: 1.0, 10: 1.0}
    """
    ranks = target_ranks(queries, targets).double()
    return Retrieval(
        recall={k: float((ranks <= k).double().mean()) for k in LEVELS},
        median_rank=float(ranks.quantile(0.5)),
        mrr=float((1 / ranks).mean()),
        count=len(ranks),
    )
