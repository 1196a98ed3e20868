"""Retrieval, against a plain loop over queries and targets."""

from __future__ import annotations

import statistics

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from crosspair.evaluation import retrieval, target_ranks, zero_shot_predict

seeds = st.integers(0, 2**31)


def vectors(count: int, dimensions: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dimensions, generator=generator), dim=1)


def ranks_by_loop(queries: torch.Tensor, targets: torch.Tensor) -> list[int]:
    scores = (queries @ targets.T).tolist()
    return [1 + sum(other >= row[own] for j, other in enumerate(row) if j != own) for own, row in enumerate(scores)]


@given(count=st.integers(1, 40), seed=seeds, chunk=st.integers(1, 50))
def test_ranks_equal_a_plain_loops_for_any_chunk(count: int, seed: int, chunk: int) -> None:
    queries, targets = vectors(count, 6, seed), vectors(count, 6, seed + 1)
    assert target_ranks(queries, targets, chunk).tolist() == ranks_by_loop(queries, targets)


@given(count=st.integers(2, 30), seed=seeds)
def test_ranks_of_many_ties_equal_a_plain_loops(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # One-hot vectors: every score is exactly 0 or 1.
    queries, targets = torch.eye(3)[torch.randint(0, 3, (2, count), generator=generator)]
    assert target_ranks(queries, targets, chunk=7).tolist() == ranks_by_loop(queries, targets)


def test_ties_are_ranked_last() -> None:
    same = torch.eye(4)[:1].expand(5, 4)
    assert target_ranks(same, same).tolist() == [5] * 5
    assert retrieval(same, same).recall == {1: 0.0, 5: 1.0, 10: 1.0}


def test_nan_embeddings_have_the_worst_ranks() -> None:
    lost = torch.full((20, 4), float("nan"))
    found = retrieval(lost, lost)
    assert found.recall == {1: 0.0, 5: 0.0, 10: 0.0}
    assert found.median_rank == 20


@given(count=st.integers(1, 40), seed=seeds)
def test_the_measures_are_those_of_the_ranks(count: int, seed: int) -> None:
    queries, targets = vectors(count, 4, seed), vectors(count, 4, seed + 1)
    ranks = ranks_by_loop(queries, targets)
    found = retrieval(queries, targets)
    for level in (1, 5, 10):
        assert found.recall[level] == pytest.approx(sum(r <= level for r in ranks) / count)
    assert found.median_rank == statistics.median(ranks)
    assert found.mrr == pytest.approx(sum(1 / r for r in ranks) / count)
    assert found.count == count


@given(seed=seeds)
def test_the_order_of_pairs_does_not_matter(seed: int) -> None:
    queries, targets = vectors(20, 5, seed), vectors(20, 5, seed + 1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    assert target_ranks(queries[order], targets[order]).tolist() == (target_ranks(queries, targets)[order].tolist())


@given(videos=st.integers(1, 20), classes=st.integers(1, 8), seed=seeds)
def test_zero_shot_takes_the_class_of_the_largest_cosine(videos: int, classes: int, seed: int) -> None:
    of_videos, names = vectors(videos, 5, seed), vectors(classes, 5, seed + 1)
    expected = [max(range(classes), key=lambda c: float(torch.dot(video, names[c]))) for video in of_videos]
    assert zero_shot_predict(of_videos, names).tolist() == expected
