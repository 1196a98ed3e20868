"""Intervals and details of accuracies."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspair.evaluation import bootstrap_interval, class_details

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("accuracy", [0.1, 0.5, 0.8])
def test_an_interval_is_about_two_standard_errors_each_way(accuracy: float) -> None:
    correct = torch.arange(1000) < 1000 * accuracy
    low, high = bootstrap_interval(correct, seed=0)
    error = math.sqrt(accuracy * (1 - accuracy) / 1000)
    assert low == pytest.approx(accuracy - 1.96 * error, abs=0.35 * error)
    assert high == pytest.approx(accuracy + 1.96 * error, abs=0.35 * error)


@given(correct=st.lists(st.booleans(), min_size=1, max_size=40), seed=st.integers(0, 2**31))
@settings(max_examples=30)
def test_an_interval_holds_the_accuracy(correct: list[bool], seed: int) -> None:
    low, high = bootstrap_interval(torch.tensor(correct), seed=seed)
    accuracy = sum(correct) / len(correct)
    assert 0 <= low <= accuracy + 1e-9
    assert accuracy - 1e-9 <= high <= 1


def test_the_seed_decides_and_nothing_else_is_drawn_from() -> None:
    correct = torch.arange(50) % 3 == 0
    state = torch.get_rng_state()
    one, same = (bootstrap_interval(correct, seed=4) for _ in range(2))
    assert one == same
    assert one != bootstrap_interval(correct, seed=5, rounds=37)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_resample_without_a_counted_video_is_excluded() -> None:
    counted = torch.tensor([[True] + [False] * 5])
    low, high = bootstrap_interval(torch.ones(1, 6), counted, seed=0)
    assert (low, high) == (1, 1)


def test_the_mean_of_several_tests_equals_a_plain_loops() -> None:
    draw = random.Random(3)
    correct = [[draw.random() < 0.6 for _ in range(30)] for _ in range(3)]
    counted = [[draw.random() < 0.5 for _ in range(30)] for _ in range(3)]
    generator = torch.Generator().manual_seed(7)
    accuracies = []
    for _ in range(400):
        drawn = torch.randint(30, (30,), generator=generator).tolist()
        of_tests = []
        for right, about in zip(correct, counted, strict=True):
            seen = [right[video] for video in drawn if about[video]]
            of_tests.append(sum(seen) / len(seen))
        accuracies.append(sum(of_tests) / 3)
    expected = torch.tensor(accuracies).quantile(torch.tensor([0.025, 0.975]))
    found = bootstrap_interval(torch.tensor(correct), torch.tensor(counted), seed=7, rounds=400)
    assert found == pytest.approx(expected.tolist(), abs=1e-6)


@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=50))
def test_details_count_every_video(pairs: list[tuple[int, int]]) -> None:
    names = ["a", "b", "c", "d"]
    truth, predicted = (torch.tensor(column) for column in zip(*pairs, strict=True))
    found = class_details(names, truth, predicted)
    assert set(found["per_class"]) == {names[of] for of, _ in pairs}
    for of in names:
        for given_ in names:
            count = sum((names[t], names[p]) == (of, given_) for t, p in pairs)
            assert found["confusion"].get(of, {}).get(given_, 0) == count
    for name, accuracy in found["per_class"].items():
        videos = [p for t, p in pairs if names[t] == name]
        assert accuracy == sum(names[p] == name for p in videos) / len(videos)
