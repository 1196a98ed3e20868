"""Names of splits, and validation splits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.corpora.build import parse_split, split_validation
from crosspair.errors import ManifestError


def rows(count: int) -> list[dict[str, Any]]:
    """Of train, whether they say so or not, and as many of test."""
    train = [{"pair_id": f"v{i}", "split": "train" if i % 2 else None} for i in range(count)]
    return [*train, *({"pair_id": f"t{i}", "split": "test"} for i in range(count))]


def held(of: list[dict[str, Any]]) -> list[str]:
    return [row["pair_id"] for row in of if row["split"] == "val"]


@pytest.mark.parametrize(
    ("name", "split"),
    [("train", "train"), ("training", "train"), ("validate", "val"), ("validation", "val"),
     ("Val", "val"), ("test", "test"), ("testing", "test"), ("", None)],
)  # fmt: skip
def test_the_names_that_corpora_give(name: str, split: str | None) -> None:
    assert parse_split(name, "") == split


def test_unknown_split() -> None:
    with pytest.raises(ManifestError, match=r"^a.csv, line 2: split 'dev'"):
        parse_split("dev", "a.csv, line 2")


@given(count=st.integers(0, 40), share=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 99))
def test_validation_fraction(count: int, share: float, seed: int) -> None:
    first, second = rows(count), rows(count)
    split_validation(first, share, seed)
    split_validation(second, share, seed)
    assert len(held(first)) == round(share * count)
    assert held(first) == held(second)
    assert not any(name.startswith("t") for name in held(first))


def test_another_seed_holds_out_others() -> None:
    chosen = set()
    for seed in range(4):
        of_seed = rows(20)
        split_validation(of_seed, 0.3, seed)
        chosen.add(tuple(held(of_seed)))
    assert len(chosen) > 1


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), share=st.floats(0.01, 0.9), seed=st.integers(0, 99))
def test_groups_are_never_divided(sizes: list[int], share: float, seed: int) -> None:
    of = [{"pair_id": f"{g}-{i}", "split": None} for g, n in enumerate(sizes) for i in range(n)]
    split_validation(of, share, seed, lambda row: row["pair_id"].split("-")[0])
    groups = [name.split("-")[0] for name in held(of)]
    wanted = round(share * len(of))
    assert all(groups.count(group) == sizes[int(group)] for group in groups)
    assert len(groups) <= wanted or len(set(groups)) == 1
    if wanted:
        left = [size for group, size in enumerate(sizes) if str(group) not in groups]
        assert groups
        assert len(groups) >= wanted or len(groups) + min(left) > wanted


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_fraction_out_of_range(share: float) -> None:
    with pytest.raises(ManifestError, match=str(share)):
        split_validation(rows(3), share, 0)
