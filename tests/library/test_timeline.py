"""Timelines: consecutive windows of one class are merged, gaps are kept."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from crosspair.inference import timeline

CLASSES = ["dog", "cat"]


def test_gaps_are_kept() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]], dtype=torch.float64)
    first, second = timeline([(0, 4), (2, 6), (10, 14)], scores, CLASSES)
    assert (first.start, first.end, first.label, first.score) == (0, 6, "dog", 0.8)
    assert (second.start, second.end, second.label, second.score) == (10, 14, "cat", 0.8)


def test_gaps_have_no_class() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.7, 0.3]], dtype=torch.float64)
    first, second = timeline([(0, 4), (20, 24)], scores, CLASSES)
    assert (first.start, first.end, first.label, first.score) == (0, 4, "dog", 0.9)
    assert (second.start, second.end, second.label, second.score) == (20, 24, "dog", 0.7)
    assert timeline([], torch.zeros(0, 2), CLASSES) == []


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_segments_are_contiguous(cats: list[bool]) -> None:
    spans = [(2.0 * i, 2.0 * i + 4) for i in range(len(cats))]
    found = timeline(spans, torch.tensor([[not cat, cat] for cat in cats]).float(), CLASSES)
    assert (found[0].start, found[-1].end) == (0, spans[-1][1])
    for one, following in pairwise(found):
        assert one.end == following.start
        assert one.label != following.label
    labels = {each.start: each.label for each in found}
    label = ""
    for (start, _), cat in zip(spans, cats, strict=True):
        label = labels.get(start, label)
        assert label == CLASSES[cat]
