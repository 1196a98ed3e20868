"""What fine-tuning may see: labels in shares, validation out of train, and never the test."""

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


def seen(rows: list[dict], share: float = 1.0, hold_out: float = 0.1, **options):
    config = LabelsConfig(share, hold_out)
    return select_labelled_videos(
        manifest_from_rows(rows, "m.parquet"), config, **{"seed": 0, **options}
    )


def ids(split: Manifest) -> set[str]:
    return set(split.column("pair_id"))


def test_validation_is_held_out_of_train_by_whole_recordings() -> None:
    found = seen(ucf(), hold_out=0.2)
    assert len(found.train) == 64
    assert len(found.validation) == 16
    recordings = [{name[:-4] for name in ids(each)} for each in (found.train, found.validation)]
    assert not recordings[0] & recordings[1]


def test_what_is_held_out_depends_on_the_seed_alone() -> None:
    first, again, other = (seen(ucf(), seed=seed).validation for seed in (0, 0, 1))
    assert ids(first) == ids(again) != ids(other)


def test_a_split_val_is_validation() -> None:
    found = seen([*ucf(), row("v", "a", "val"), row("w", "b", "val")])
    assert ids(found.validation) == {"v", "w"}
    assert len(found.train) == 80


def test_what_is_tested_is_neither_learnt_from_nor_validated_on() -> None:
    tested = [row("v", "a", "val"), row("w", "new", "val")]
    found = seen([*ucf(), *tested, row("t", "b", "test")], tested="val")
    assert not (ids(found.train) | ids(found.validation)) & {"v", "w", "t"}
    assert found.classes == ["a", "b"]
    assert len(found.validation) == 8


@given(st.lists(st.sampled_from(["a", "b", "zebra", None]), min_size=1, max_size=8))
def test_labels_of_the_test_change_nothing(labels: list[str | None]) -> None:
    def with_test(names: list[str | None]):
        return seen([*ucf(4), *(row(f"t{i}", name, "test") for i, name in enumerate(names))])

    one, other = with_test(labels), with_test(["a"] * len(labels))
    assert one.classes == other.classes
    for name in ("train", "validation"):
        assert getattr(one, name).table.equals(getattr(other, name).table)


@pytest.mark.parametrize(("share", "train", "validation"), [(0.1, 36, 4), (0.2, 72, 8)])
def test_a_share_of_labels_is_of_training_and_validation(
    share: float, train: int, validation: int
) -> None:
    rows = [row(f"{label}{i}", label) for label in "abcd" for i in range(90)]
    rows += [row(f"v{label}{i}", label, "val") for label in "abcd" for i in range(10)]
    found = seen(rows, share)
    for split, count in ((found.train, train), (found.validation, validation)):
        assert len(split) == count
        assert set(Counter(split.column("label")).values()) == {count // 4}


def test_shares_of_labels_lie_in_each_other() -> None:
    one, two, five = (seen(ucf(30), share).train for share in (0.01, 0.2, 0.5))
    assert ids(one) < ids(two) < ids(five)
    assert len(one) == 2  # a class has one at least


def test_videos_with_an_error_or_without_a_label_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        found = seen([*ucf(), row("x", None), row("y", "a", error="cut"), row("z", "a", "val")])
    assert not ids(found.train) & {"x", "y"}
    assert "left out x: no label" in caplog.text
    assert "left out y: cut" in caplog.text


def test_validation_does_without_classes_that_cannot_be_learnt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = seen([*ucf(), row("v", "a", "val"), row("w", "new", "val")])
    assert ids(found.validation) == {"v"}
    assert "validation does without 1 classes that split train lacks: new" in caplog.text


def test_a_class_of_one_recording_stays_with_training() -> None:
    rows = ucf(groups=1, clips=3, classes=tuple("abcdef"))
    found = seen(rows, hold_out=0.9)
    assert set(found.train.column("label")) == set("abcdef")


def test_nothing_may_be_held_out() -> None:
    found = seen(ucf(), hold_out=0.0)
    assert (len(found.train), len(found.validation)) == (80, 0)


def test_targets_are_positions_among_the_classes() -> None:
    found = seen([row("1", "zoo"), row("2", "art"), row("3", "zoo"), row("4", "art", "val")])
    assert found.classes == ["art", "zoo"]
    assert found.targets(found.train) == [1, 0, 1]
    assert found.targets(found.validation) == [0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ucf(classes=("a",)), "split train has one class only, 'a'; a classifier needs two"),
        ([row("x", None)], "split train has no readable video with a label; a classifier needs"),
        ([row("x", "a", "test")], "split train has no readable video with a label; a classifier"),
    ],
)
def test_too_few_classes(rows: list[dict], message: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ManifestError, match=f"^m.parquet: {message}"):
        seen(rows)
    assert not caplog.records
