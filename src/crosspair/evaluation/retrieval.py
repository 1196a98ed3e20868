"""Retrieval between videos and texts: recall at K and the median rank (Section 4.2)."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

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


def retrieval(
    queries: torch.Tensor,
    targets: torch.Tensor,
    query_items: torch.Tensor | None = None,
    target_items: torch.Tensor | None = None,
) -> Retrieval:
    """Compute recall at 1, 5 and 10, the median rank and the mean reciprocal rank.

    Args:
        queries: (N, D) unit vectors.
        targets: (M, D) unit vectors.
        query_items: (N,) int64, the item that each query belongs to, such as the video of a caption; None: row i
            belongs to item i.
        target_items: (M,) int64, likewise; each item of a query has at least one target.

    >>> retrieval(torch.eye(4), torch.eye(4)).recall
    {1: 1.0, 5: 1.0, 10: 1.0}
    """
    ranks = target_ranks(queries, targets, query_items, target_items).double()
    return Retrieval(
        recall={k: float((ranks <= k).double().mean()) for k in LEVELS},
        median_rank=float(ranks.quantile(0.5)),
        mrr=float((1 / ranks).mean()),
        count=len(ranks),
    )


def target_ranks(
    queries: torch.Tensor,
    targets: torch.Tensor,
    query_items: torch.Tensor | None = None,
    target_items: torch.Tensor | None = None,
    chunk: int = 256,
) -> torch.Tensor:
    """Rank each query's target among all targets by cosine similarity; see `retrieval`.

    Of several targets of a query's item, the best one is ranked among those of other items. A target that ties with n
    others is ranked after them.

    Returns:
        (N,) int64; 1 is best.
    """
    query_items = torch.arange(len(queries)) if query_items is None else query_items
    target_items = torch.arange(len(targets)) if target_items is None else target_items
    ranks = []
    for begin in range(0, len(queries), chunk):  # limits the memory
        scores = queries[begin : begin + chunk] @ targets.T
        own = query_items[begin : begin + chunk, None].to(scores.device) == target_items.to(scores.device)
        best = scores.masked_fill(~own, -math.inf).amax(dim=1, keepdim=True)
        # NaN scores count as ties.
        ranks.append(1 + (~(scores < best) & ~own).sum(dim=1))
    return torch.cat(ranks)


def chance_recall(k: int, own: Sequence[int], targets: int) -> float:
    """Compute the expected recall at K of random rankings of ``targets``, of which each query's item has ``own``.

    >>> chance_recall(5, [1, 1], targets=20), chance_recall(1, [2, 1], targets=3)
    (0.25, 0.5)
    """
    k = min(k, targets)
    missed = sum(
        times * Fraction(math.comb(targets - count, k), math.comb(targets, k)) for count, times in Counter(own).items()
    )
    return float(1 - missed / len(own))


def chance_rank(own: Sequence[int], targets: int) -> float:
    """Compute the mean rank for random rankings; see `chance_recall`.

    >>> chance_rank([1, 1], targets=20), chance_rank([2, 5], targets=5)
    (10.5, 1.5)
    """
    return statistics.fmean((targets + 1) / (count + 1) for count in own)
