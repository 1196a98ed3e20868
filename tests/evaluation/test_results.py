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
from crosspair.evaluation.results import RecordingCounts, mean_results, write_results, write_split_means

pytestmark = pytest.mark.usefixtures("one_thread")


def interval(correct: torch.Tensor, counted: torch.Tensor | None = None, **options: int) -> tuple[float, float]:
    """The interval of videos that are all cut from different recordings."""
    recordings = [str(video) for video in range(correct.shape[-1])]
    return bootstrap_interval(RecordingCounts.count(correct, recordings, counted), **{"seed": 0, **options})


@pytest.mark.parametrize("accuracy", [0.1, 0.5, 0.8])
def test_an_interval_is_about_two_standard_errors_each_way(accuracy: float) -> None:
    low, high = interval(torch.arange(1000) < 1000 * accuracy)
    error = math.sqrt(accuracy * (1 - accuracy) / 1000)
    assert low == pytest.approx(accuracy - 1.96 * error, abs=0.35 * error)
    assert high == pytest.approx(accuracy + 1.96 * error, abs=0.35 * error)


@given(correct=st.lists(st.booleans(), min_size=2, max_size=40), seed=st.integers(0, 2**31))
@settings(max_examples=30)
def test_an_interval_holds_the_accuracy_and_draws_from_nothing_else(correct: list[bool], seed: int) -> None:
    state = torch.get_rng_state()
    low, high = interval(torch.tensor(correct), seed=seed)
    accuracy = sum(correct) / len(correct)
    assert 0 <= low <= accuracy + 1e-9
    assert accuracy - 1e-9 <= high <= 1
    assert torch.equal(torch.get_rng_state(), state)


def test_one_recording_has_no_interval() -> None:
    assert bootstrap_interval(RecordingCounts.count(torch.tensor([True, False]), ["a", "a"]), seed=0) is None


def test_a_resample_without_a_counted_video_is_excluded() -> None:
    counted = torch.tensor([[True] + [False] * 5])
    assert interval(torch.ones(1, 6).bool(), counted) == (1, 1)


def test_clips_of_one_recording_count_as_one() -> None:
    correct = torch.arange(250) < 125
    one_each = interval(correct)
    repeated = RecordingCounts.count(correct.repeat_interleave(4), [str(video // 4) for video in range(1000)])
    assert repeated.recordings == [str(group) for group in range(250)]
    assert repeated.correct == [[4] * 125 + [0] * 125]
    assert repeated.tested == [[4] * 250]
    assert bootstrap_interval(repeated, seed=0) == pytest.approx(one_each)
    low, high = interval(correct.repeat_interleave(4))
    assert (one_each[1] - one_each[0]) / (high - low) == pytest.approx(2, rel=0.15)


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
    found = interval(torch.tensor(correct), torch.tensor(counted), seed=7, rounds=400)
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


def split_result(split: int, correct: list[bool], recordings: list[str]) -> Result:
    counts = RecordingCounts.count(torch.tensor(correct), recordings)
    return replace(result(split, sum(correct) / len(correct)), by_recording=counts)


def test_the_interval_of_a_mean_resamples_each_recording_once() -> None:
    draw = random.Random(5)
    tests = []  # of three splits that overlap: each has 40 clips of 20 of 30 recordings
    for split in (1, 2, 3):
        used = draw.sample(range(30), 20)
        tests.append((split, [draw.random() < 0.5 for _ in range(40)], [f"r{used[clip % 20]}" for clip in range(40)]))
    (mean,) = mean_results([split_result(*test) for test in tests])
    names = list(dict.fromkeys(name for *_, recordings in tests for name in recordings))
    generator = torch.Generator().manual_seed(0)
    means = []
    for _ in range(1000):
        drawn = [names[n] for n in torch.randint(len(names), (len(names),), generator=generator).tolist()]
        accuracies = []
        for _, correct, recordings in tests:
            hits = [right for name in drawn for right, own in zip(correct, recordings, strict=True) if own == name]
            accuracies.append(sum(hits) / len(hits))
        means.append(sum(accuracies) / 3)
    expected = torch.tensor(means).quantile(torch.tensor([0.025, 0.975])).tolist()
    assert mean.interval == pytest.approx(expected, abs=1e-6)
    assert mean.by_recording is None


def test_splits_that_share_all_videos_are_one_test() -> None:
    correct, recordings = [video % 3 > 0 for video in range(60)], [f"r{video}" for video in range(60)]
    (mean,) = mean_results([split_result(split, correct, recordings) for split in (1, 2, 3)])
    assert mean.interval == pytest.approx(interval(torch.tensor(correct)))
    each = [split_result(1, correct, recordings), result(2, 0.5)]
    assert mean_results(each)[0].interval is None


def test_counts_of_recordings_are_written_on_demand(tmp_path: Path) -> None:
    origin = provenance(recipe="r", model="m", manifest="d", seed=0, manifest_file="s.parquet")
    found = split_result(1, [True, False, True], ["a", "b", "a"])
    for by_recording in (True, False):
        write_results(tmp_path / "results.json", [found], origin, by_recording=by_recording)
        (read,), _ = read_results(tmp_path / "results.json")
        assert read == (found if by_recording else replace(found, by_recording=None))


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
