"""Intervals and details of accuracies; means over official splits."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspair.evaluation import Result, bootstrap_interval, class_details, provenance, read_results
from crosspair.evaluation.results import mean_results, write_split_means

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("accuracy", [0.1, 0.5, 0.8])
def test_an_interval_is_about_two_standard_errors_each_way(accuracy: float) -> None:
    low, high = bootstrap_interval(torch.arange(1000) < 1000 * accuracy, seed=0)
    error = math.sqrt(accuracy * (1 - accuracy) / 1000)
    assert low == pytest.approx(accuracy - 1.96 * error, abs=0.35 * error)
    assert high == pytest.approx(accuracy + 1.96 * error, abs=0.35 * error)


@given(correct=st.lists(st.booleans(), min_size=1, max_size=40), seed=st.integers(0, 2**31))
@settings(max_examples=30)
def test_an_interval_holds_the_accuracy_and_draws_from_nothing_else(correct: list[bool], seed: int) -> None:
    state = torch.get_rng_state()
    low, high = bootstrap_interval(torch.tensor(correct), seed=seed)
    accuracy = sum(correct) / len(correct)
    assert 0 <= low <= accuracy + 1e-9
    assert accuracy - 1e-9 <= high <= 1
    assert torch.equal(torch.get_rng_state(), state)


def test_a_resample_without_a_counted_video_is_excluded() -> None:
    counted = torch.tensor([[True] + [False] * 5])
    assert bootstrap_interval(torch.ones(1, 6), counted, seed=0) == (1, 1)


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


# --- official splits ----------------------------------------------------------------------------


def result(split: int, value: float, of: Any = "trained", metric: str = "top-1", **more: Any) -> Result:
    return Result(
        "30 views", metric, value, of, count=10 * split, settings={"clips": 10, "official split": split, **more}
    )


def test_means_are_by_metric_subject_and_feature() -> None:
    each = [
        result(1, 0.5, init="CPD a"), result(1, 0.1, "chance"), result(1, 0.9, metric="top-5"),
        result(2, 0.6, init="CPD b"), result(2, 0.1, "chance"), result(2, 0.8, metric="top-5"),
        result(3, 0.1, init="CPD c"), result(3, 0.1, "chance"), result(3, 1.0, metric="top-5"),
        replace(result(1, 0.2, init="random"), feature="visual"),
        replace(result(2, 0.4, init="random"), feature="visual"),
    ]  # fmt: skip
    trained, chance, top5, visual = mean_results(each)
    assert trained.value == pytest.approx(0.4)
    assert trained.details == {"draws": [0.5, 0.6, 0.1]}
    assert trained.settings == {"clips": 10, "mean of splits": [1, 2, 3]}
    assert trained.count == 60
    assert [chance.value, top5.value, visual.value] == pytest.approx([0.1, 0.9, 0.3])
    assert visual.settings["init"] == "random"  # equal in all splits


def test_three_like_intervals_give_one_narrower_by_the_root_of_three() -> None:
    each = [replace(result(s, 0.5), interval=(0.4, 0.6)) for s in (1, 2, 3)]
    (mean,) = mean_results(each)
    assert mean.interval == pytest.approx((0.5 - 0.1 / math.sqrt(3), 0.5 + 0.1 / math.sqrt(3)))
    assert mean_results([replace(each[0], interval=None), *each[1:]])[0].interval is None


def test_the_file_holds_means_then_each_split_and_chance_once(tmp_path: Path) -> None:
    found = {}
    for split in (1, 2):
        origin = provenance(recipe="r", model=f"m{split}", manifest="d", seed=0, manifest_file=f"s{split}.parquet")
        found[split] = [result(split, split / 10), result(split, 0.1, "chance")], origin
    shown = write_split_means(tmp_path / "results.json", found)
    results, origin = read_results(tmp_path / "results.json")
    assert [each.value for each in results] == pytest.approx([0.15, 0.1, 0.1, 0.2])
    assert results[:2] == shown
    assert [each.settings["official split"] for each in results[2:]] == [1, 2]
    assert (origin.model, origin.manifest, origin.manifest_file) == ("m1+m2", "d", "s1.parquet+s2.parquet")
