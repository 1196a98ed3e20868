"""Retrieval between videos and texts: recall at K and the median rank (Section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LEVELS = (1, 5, 10)


@dataclass(frozen=True)
class Retrieval:
    """Retrieval metrics of a set of queries.

    Attributes:
        recall: Maps K to the fraction of queries whose target is among the first K, 0 to 1.
        median_rank: Median rank of the target; 1 is best.
        mrr: Mean reciprocal rank, which varies more smoothly than the other metrics.
        count: Number of queries.
    """

    recall: dict[int, float]
    median_rank: float
    mrr: float
    count: int


def retrieval(queries: torch.Tensor, targets: torch.Tensor) -> Retrieval:
    """Compute recall at 1, 5 and 10, the median rank and the mean reciprocal rank.

    Args:
        queries: (N, D) unit vectors.
        targets: (M, D) unit vectors, M ≥ N; row i is the target of query i.

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


def target_ranks(queries: torch.Tensor, targets: torch.Tensor, chunk: int = 256) -> torch.Tensor:
    """Rank each query's target among all targets by cosine similarity; see `retrieval`.

    A target that ties with n others is ranked after them.

    Returns:
        (N,) int64; 1 is best.
    """
    ranks = []
    for begin in range(0, len(queries), chunk):  # limits the memory
        scores = queries[begin : begin + chunk] @ targets.T
        positive = scores.diagonal(begin).unsqueeze(1)
        # Counts the target itself and ties; NaN scores count as ties.
        ranks.append((~(scores < positive)).sum(dim=1))
    return torch.cat(ranks)
