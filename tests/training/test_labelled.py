"""Selection of labelled videos: low-shot fractions, held-out validation, unread test split."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.config import LabelsConfig
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.errors import ManifestError
from crosspair.training.finetune import select_labelled_videos


def row(name: str, label: str | None, split: str | None = "train", **more: object) -> dict:
    return {"pair_id": name, "path": "x", "title": "", "label": label, "split": split, **more}


def ucf(groups: int = 10, clips: int = 4, classes: tuple[str, ...] = ("a", "b")) -> list[dict]:
    return [
        row(f"v_{label}_g{group:02d}_c{clip:02d}", label)
        for label in classes
        for group in range(groups)
        for clip in range(clips)
    ]


def select(rows: list[dict], fraction: float = 1.0, hold_out: float = 0.1, **options):
    config = LabelsConfig(fraction, hold_out)
    return select_labelled_videos(manifest_from_rows(rows, "m.parquet"), config, **{"seed": 0, **options})


def ids(split: Manifest) -> set[str]:
    return set(split.column("pair_id"))


def test_whole_recordings_are_held_out() -> None:
    found = select(ucf(), hold_out=0.2)
    assert len(found.train) == 64
    assert len(found.validation) == 16
    recordings = [{name[:-4] for name in ids(each)} for each in (found.train, found.validation)]
    assert not recordings[0] & recordings[1]


def test_held_out_videos_depend_on_the_seed_only() -> None:
    first, again, other = (select(ucf(), seed=seed).validation for seed in (0, 0, 1))
    assert ids(first) == ids(again) != ids(other)


def test_split_val_is_validation() -> None:
    found = select([*ucf(), row("v", "a", "val"), row("w", "b", "val")])
    assert ids(found.validation) == {"v", "w"}
    assert len(found.train) == 80


def test_test_split_is_not_used() -> None:
    tested = [row("v", "a", "val"), row("w", "new", "val")]
    found = select([*ucf(), *tested, row("t", "b", "test")], test_split="val")
    assert not (ids(found.train) | ids(found.validation)) & {"v", "w", "t"}
    assert found.classes == ["a", "b"]
    assert len(found.validation) == 8


@given(st.lists(st.sampled_from(["a", "b", "zebra", None]), min_size=1, max_size=8))
def test_labels_of_the_test_split_have_no_effect(labels: list[str | None]) -> None:
    def with_test(names: list[str | None]):
        return select([*ucf(4), *(row(f"t{i}", name, "test") for i, name in enumerate(names))])

    one, other = with_test(labels), with_test(["a"] * len(labels))
    assert one.classes == other.classes
    for name in ("train", "validation"):
        assert getattr(one, name).table.equals(getattr(other, name).table)


@pytest.mark.parametrize(("share", "train", "validation"), [(0.1, 36, 4), (0.2, 72, 8)])
def test_fraction_of_labels_applies_to_training_and_validation(share: float, train: int, validation: int) -> None:
    rows = [row(f"{label}{i}", label) for label in "abcd" for i in range(90)]
    rows += [row(f"v{label}{i}", label, "val") for label in "abcd" for i in range(10)]
    found = select(rows, share)
    for split, count in ((found.train, train), (found.validation, validation)):
        assert len(split) == count
        assert set(Counter(split.column("label")).values()) == {count // 4}


def test_fractions_of_labels_are_nested() -> None:
    one, two, five = (select(ucf(30), share).train for share in (0.01, 0.2, 0.5))
    assert ids(one) < ids(two) < ids(five)
    assert len(one) == 2  # at least one per class


def test_unusable_videos_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = select([*ucf(), row("x", None), row("y", "a", error="cut"), row("z", "a", "val")])
    assert not ids(found.train) & {"x", "y"}
    logged = [record.args for record in caplog.records]
    assert logged == [("x", "no label"), ("y", "cut")]


def test_validation_skips_classes_that_are_not_in_train(caplog: pytest.LogCaptureFixture) -> None:
    found = select([*ucf(), row("v", "a", "val"), row("w", "new", "val")])
    assert ids(found.validation) == {"v"}
    assert [record.args for record in caplog.records] == [(1, "new")]


def test_class_with_one_recording_is_not_held_out() -> None:
    rows = ucf(groups=1, clips=3, classes=tuple("abcdef"))
    found = select(rows, hold_out=0.9)
    assert set(found.train.column("label")) == set("abcdef")


def test_hold_out_of_zero() -> None:
    found = select(ucf(), hold_out=0.0)
    assert (len(found.train), len(found.validation)) == (80, 0)


def test_targets_are_class_indices() -> None:
    found = select([row("1", "zoo"), row("2", "art"), row("3", "zoo"), row("4", "art", "val")])
    assert found.classes == ["art", "zoo"]
    assert found.targets(found.train) == [1, 0, 1]
    assert found.targets(found.validation) == [0]


@pytest.mark.parametrize("rows", [ucf(classes=("a",)), [row("x", None)], [row("x", "a", "test")]])
def test_too_few_classes(rows: list[dict], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ManifestError, match=r"m\.parquet: split train"):
        select(rows)
    assert not caplog.records
