"""Low-shot subsets: a share of every class, nested, seeded."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.errors import CrosspairError
from crosspair.evaluation.tasks import SHARES, label_subset

labels = st.lists(st.sampled_from("abcde"), max_size=200)
shares = st.floats(0.001, 1)
seeds = st.integers(0, 2**31)


@given(labels=labels, one=shares, other=shares, seed=seeds)
def test_a_smaller_share_lies_within_a_larger(labels, one, other, seed) -> None:
    small, large = sorted([one, other])
    assert set(label_subset(labels, small, seed)) <= set(label_subset(labels, large, seed))


@given(labels=labels, share=shares, seed=seeds)
def test_every_class_gives_its_share_and_at_least_one(labels, share, seed) -> None:
    drawn = label_subset(labels, share, seed)
    assert drawn == sorted(set(drawn))
    given_ = Counter(labels)
    of_drawn = Counter(labels[i] for i in drawn)
    assert set(of_drawn) == set(given_)
    for label, count in of_drawn.items():
        assert count == 1 or abs(count - share * given_[label]) <= 0.5 + 1e-8


def test_half_an_item_is_one_whatever_floats_make_of_it() -> None:
    assert len(label_subset(["a"] * 50, 0.29, 0)) == 15  # 14.5, in floats a little less


def test_the_papers_shares_are_nested_and_the_whole_is_all() -> None:
    labels = [f"class {i % 7}" for i in range(700)]
    drawn = [label_subset(labels, share, seed=3) for share in (*SHARES, 1.0)]
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


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan")])
def test_a_share_that_is_none(share) -> None:
    message = rf"^a share of labels lies above 0 and goes up to 1; {share:g} does not$"
    with pytest.raises(CrosspairError, match=message):
        label_subset(["a"], share, 0)


def test_an_item_without_a_label() -> None:
    with pytest.raises(CrosspairError, match=r"^item 1 has no label; low-shot draws from label"):
        label_subset(["a", ""], 0.5, 0)
