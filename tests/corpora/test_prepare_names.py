"""Names of prepared files: safe, unique and readable."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.corpora.prepare import file_names


@given(st.lists(st.text(min_size=1), unique=True))
def test_names_are_safe_and_unique(pair_ids: list[str]) -> None:
    names = file_names(pair_ids)
    assert len({name.casefold() for name in names}) == len(pair_ids)
    for name in names:
        assert name.isascii()
        assert not set(name) & set('/\\:*?"<>| \0\n')
        assert 0 < len(name) <= 97
        assert name[0] not in ".-"
    order = np.random.default_rng(0).permutation(len(pair_ids))
    assert file_names([pair_ids[i] for i in order]) == [names[i] for i in order]


@pytest.mark.parametrize(
    ("pair_ids", "begin"),
    [
        (["v_Rowing_g01_c01", "x.y"], ["v_Rowing_g01_c01", "x.y"]),
        (["../etc/passwd", "-rf"], ["etc_passwd-", "rf-"]),
        (["Abc", "aBC"], ["Abc-", "aBC-"]),
        (["é", "漢字", "a" * 300], ["e-", "clip-", "a" * 80 + "-"]),
        (["a-0123456789abcdef"], ["a-0123456789abcdef-"]),
    ],
)
def test_names_are_readable(pair_ids: list[str], begin: list[str]) -> None:
    for name, start in zip(file_names(pair_ids), begin, strict=True):
        assert name.startswith(start)
        assert name == start or len(name) == len(start) + 16
