"""Retrieval and zero-shot, against plain loops; templates, draws of classes."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from crosspair.errors import CrosspairError
from crosspair.evaluation import class_embeddings, draw_classes, retrieval, target_ranks, zero_shot_predict
from crosspair.evaluation.zeroshot import read_templates
from crosspair.models import CPD

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
    lost = torch.full((20, 4), float("nan"))
    assert target_ranks(lost, lost).tolist() == [20] * 20


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


@given(videos=st.integers(1, 20), classes=st.integers(1, 8), seed=seeds)
def test_zero_shot_takes_the_class_of_the_largest_cosine(videos: int, classes: int, seed: int) -> None:
    of_videos, names = vectors(videos, 5, seed), vectors(classes, 5, seed + 1)
    expected = [max(range(classes), key=lambda c: float(torch.dot(video, names[c]))) for video in of_videos]
    assert zero_shot_predict(of_videos, names).tolist() == expected


@torch.no_grad()
def test_a_class_is_the_mean_over_templates_of_unit_norm(model: CPD) -> None:
    found = class_embeddings(model, ["Dog", "cat_dog"], ["{}", "a cat and a {}", "{} {}"])
    for row, phrase in zip(found, ["dog", "cat dog"], strict=True):
        texts = [phrase, f"a cat and a {phrase}", f"{phrase} {phrase}"]
        mean = sum(model.eval().encode_text([text])[0] for text in texts) / 3
        torch.testing.assert_close(row, mean / mean.norm())


@given(
    among=st.sets(st.integers(0, 50), min_size=2),
    fraction=st.floats(0, 1),
    draws=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_draws_are_classes_of_those_given(among: set[int], fraction: float, draws: int, seed: int) -> None:
    count = 2 + int(fraction * (len(among) - 2))
    found = draw_classes(sorted(among), count, draws, seed)
    assert len(found) == draws
    for draw in found:
        assert draw == sorted(set(draw))
        assert len(draw) == count
        assert set(draw) <= among
    assert found == draw_classes(sorted(among), count, draws, seed)
    assert found[:1] == draw_classes(sorted(among), count, 1, seed)


def test_more_classes_than_there_are() -> None:
    with pytest.raises(CrosspairError, match=" 6 "):
        draw_classes(range(5), 6, 10, 0)


def test_templates_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("\ufeff{}\n\n  a video of {} \n", encoding="utf-8")
    assert read_templates(path) == ("{}", "a video of {}")


@pytest.mark.parametrize(
    ("content", "message"), [(b"{}\na clip\n", "line 2: 'a clip'"), (b"\n\n", "empty"), (b"\xff\xfe{}", "UTF-8")]
)
def test_an_invalid_template_file(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_bytes(content)
    with pytest.raises(CrosspairError, match=rf"templates\.txt.*{message}"):
        read_templates(path)
