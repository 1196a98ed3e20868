"""Label subsets: a fraction of every class, nested, seeded."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.errors import CrosspairError
from crosspair.evaluation.tasks import LABEL_FRACTIONS, label_subset

labels = st.lists(st.sampled_from("abcde"), max_size=200)
fractions = st.floats(0.001, 1)
seeds = st.integers(0, 2**31)


@given(labels=labels, one=fractions, other=fractions, seed=seeds)
def test_a_smaller_subset_is_part_of_a_larger(labels, one, other, seed) -> None:
    small, large = sorted([one, other])
    assert set(label_subset(labels, small, seed)) <= set(label_subset(labels, large, seed))


@given(labels=labels, fraction=fractions, seed=seeds)
def test_every_class_gives_its_fraction_and_at_least_one(labels, fraction, seed) -> None:
    drawn = label_subset(labels, fraction, seed)
    assert drawn == sorted(set(drawn))
    given_ = Counter(labels)
    of_drawn = Counter(labels[i] for i in drawn)
    assert set(of_drawn) == set(given_)
    for label, count in of_drawn.items():
        assert count == 1 or abs(count - fraction * given_[label]) <= 0.5 + 1e-8


def test_half_items_are_rounded_up() -> None:
    assert len(label_subset(["a"] * 50, 0.29, 0)) == 15  # 14.5, slightly less in floating point


def test_the_papers_fractions_are_nested() -> None:
    labels = [f"class {i % 7}" for i in range(700)]
    drawn = [label_subset(labels, fraction, seed=3) for fraction in (*LABEL_FRACTIONS, 1.0)]
    assert [len(each) for each in drawn] == [7, 70, 140, 700]
    for small, large in itertools.pairwise(drawn):
        assert set(small) < set(large)


def test_the_seed_decides() -> None:
    labels = ["a", "b"] * 50
    assert label_subset(labels, 0.1, 0) == label_subset(labels, 0.1, 0)
    assert label_subset(labels, 0.1, 0) != label_subset(labels, 0.1, 1)


def test_other_classes_change_nothing() -> None:
    alone = label_subset(["a"] * 30, 0.2, 5)
    assert label_subset(["a"] * 30 + ["b"] * 9, 0.2, 5)[: len(alone)] == alone


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
def test_an_invalid_fraction(fraction) -> None:
    with pytest.raises(CrosspairError, match=rf"{fraction:g}$"):
        label_subset(["a"], fraction, 0)


def test_an_item_without_a_label() -> None:
    with pytest.raises(CrosspairError, match="item 1 "):
        label_subset(["a", ""], 0.5, 0)
