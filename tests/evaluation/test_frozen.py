"""Frozen protocols on synthetic features: training splits, and invalid manifests."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.errors import CrosspairError, ManifestError, ModelError
from crosspair.evaluation import (
    EvaluationConfig,
    Features,
    KnnConfig,
    LinearConfig,
    LowshotConfig,
    Result,
    ZeroshotConfig,
    evaluate,
    frozen_results,
    knn_predict,
)
from crosspair.evaluation.evaluate import class_task
from crosspair.models import CPD

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("cat", "dog", "cat dog")
CONFIG = EvaluationConfig(
    knn=KnnConfig(3), linear=LinearConfig(epochs=2, batch_size=8), lowshot=LowshotConfig((0.2, 1.0))
)
Row = dict[str, Any]


def rows_of(videos: int = 60) -> list[Row]:
    """Rows of three classes; of each 10, 4 are train, 2 have no split, 2 are val and 2 test."""
    splits = ["train", "train", "train", "train", None, None, "val", "val", "test", "test"]
    return [
        {
            "pair_id": f"p{i}", "path": f"{i}.mp4", "title": f"a {CLASSES[i % 3]}",
            "label": CLASSES[i % 3], "split": splits[i % 10],
        }
        for i in range(videos)
    ]  # fmt: skip


def manifest_with(change: Callable[[list[Row]], object] = len) -> Manifest:
    rows = rows_of()
    change(rows)
    return manifest_from_rows(rows, Path("m.parquet"))


@pytest.fixture
def features() -> Features:
    """Overlapping clusters; video 1 could not be read."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor([i for i in range(60) if i != 1])
    centres = torch.randn(3, 12, generator=generator)
    visual = centres[rows % 3] + 0.8 * torch.randn(59, 12, generator=generator)
    return Features(rows, visual, F.normalize(visual[:, :8], dim=1), 10, [("p1", "cut")])


def value(results: list[Result], protocol: str, feature: str = "visual") -> float:
    (found,) = (
        r.value for r in results
        if (r.protocol, r.feature, r.of) == (protocol, feature, "trained")
    )  # fmt: skip
    return found


def test_protocols_agree_with_their_functions(model: CPD, features: Features) -> None:
    manifest = manifest_with()
    results = frozen_results(model, manifest, features, config=CONFIG)
    rows = features.rows.tolist()
    tested = torch.tensor([row % 10 in (8, 9) for row in rows])
    truth = features.rows % 3
    order = torch.tensor([0, 2, 1])  # of the sorted classes: cat, cat dog, dog
    predicted = knn_predict(features.visual[~tested], order[truth[~tested]], features.visual[tested], KnnConfig(3))
    assert value(results, "kNN") == float((predicted == order[truth[tested]]).double().mean())
    assert value(results, "linear") == value(results, "low-shot 100 %")
    assert {result.count for result in results} == {12}
    assert {result.settings["clips"] for result in results} == {10}
    for result in results:
        if result.metric == "top-1" and result.of == "chance":
            assert (result.value, result.interval, result.details) == (1 / 3, None, {})
        elif result.metric == "top-1":
            low, high = result.interval
            assert low <= result.value <= high
            per_class = result.details["per_class"]
            assert sorted(per_class) == sorted(CLASSES)
            assert sum(per_class.values()) / 3 == pytest.approx(result.value)  # 4 of each


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[list[torch.Tensor]]:
    """Record the weights and statistics of each trained probe."""
    trained: list[list[torch.Tensor]] = []
    train = evaluate.train_linear

    def watched(*arguments: Any, **options: Any) -> torch.nn.Module:
        probe = train(*arguments, **options)
        trained.append([values.clone() for values in probe.state_dict().values()])
        return probe

    monkeypatch.setattr(evaluate, "train_linear", watched)
    return trained


def turn(rows: list[Row], split: str = "test") -> None:
    for i, row in enumerate(rows):
        if row["split"] == split:
            row["label"] = CLASSES[(i + 1) % 3]


def same(one: list[list[torch.Tensor]], other: list[list[torch.Tensor]]) -> bool:
    pairs = ((a, b) for each in zip(one, other, strict=True) for a, b in zip(*each, strict=True))
    return all(torch.equal(a, b) for a, b in pairs)


LEARNING = ("linear", "lowshot")


def test_labels_of_the_test_split_do_not_affect_training(
    model: CPD, features: Features, probes: list[list[torch.Tensor]]
) -> None:
    given = frozen_results(model, manifest_with(), features, LEARNING, CONFIG)
    turned = frozen_results(model, manifest_with(turn), features, LEARNING, CONFIG)
    assert len(probes) == 12
    assert same(probes[:6], probes[6:])
    assert value(given, "linear") > value(turned, "linear")


@pytest.mark.parametrize("split", ["test", "val"])
def test_test_and_later_splits_do_not_affect_a_probe(
    model: CPD, features: Features, probes: list[list[torch.Tensor]], split: str
) -> None:
    """Nor do their features, through the statistics of batch normalization."""
    config = dataclasses.replace(CONFIG, split=split)
    unseen = {"test": {8, 9}, "val": {6, 7, 8, 9}}[split]
    places = torch.tensor([row % 10 in unseen for row in features.rows.tolist()])
    frozen_results(model, manifest_with(), features, LEARNING, config)
    for values in (features.visual, features.embedding):
        values[places] = values[places] * 30 + 7
    frozen_results(model, manifest_with(turn), features, LEARNING, config)
    assert same(probes[:6], probes[6:])
    features.visual[~places] += torch.randn(int((~places).sum()), 12)
    frozen_results(model, manifest_with(), features, LEARNING, config)
    assert not same(probes[:6], probes[12:])


@pytest.mark.parametrize(
    ("split", "trained", "tested"), [("test", {0, 1, 2, 3, 4, 5, 6, 7}, {8, 9}), ("val", {0, 1, 2, 3, 4, 5}, {6, 7})]
)
def test_training_splits_of_each_test_split(
    features: Features, split: str, trained: set[int], tested: set[int]
) -> None:
    task = class_task(manifest_with(), features, split)
    assert {int(row) % 10 for row in features.rows[task.train]} == trained
    assert {int(row) % 10 for row in features.rows[task.test]} == tested
    for positions, labels in ((task.train, task.train_labels), (task.test, task.test_labels)):
        names = [CLASSES[row % 3] for row in features.rows[positions].tolist()]
        assert [task.classes[label] for label in labels.tolist()] == names
    assert len(task.train) == sum(row % 10 in trained for row in features.rows.tolist())


def test_videos_without_a_label_are_not_trained_on(features: Features) -> None:
    task = class_task(manifest_with(lambda rows: rows[0].update(label=None)), features, "test")
    assert 0 not in features.rows[task.train].tolist()


def test_zero_shot_on_draws_is_the_mean_of_zero_shots(model: CPD, features: Features) -> None:
    config = dataclasses.replace(CONFIG, zeroshot=ZeroshotConfig((2, 3), draws=4))
    results = frozen_results(model, manifest_with(), features, ("zeroshot",), config)
    whole = value(results, "zero-shot", "embedding")
    assert value(results, "zero-shot, 3 random classes", "embedding") == pytest.approx(whole)
    (drawn,) = (
        r for r in results
        if r.protocol == "zero-shot, 2 random classes" and r.of == "trained"
    )  # fmt: skip
    draws = drawn.details["draws"]
    assert len(draws) == 4
    assert drawn.value == pytest.approx(sum(draws) / 4)
    spread = (sum((draw - drawn.value) ** 2 for draw in draws) / 3) ** 0.5
    assert drawn.details["spread"] == pytest.approx(spread)
    (chance,) = (r for r in results if r.of == "chance" and r.protocol == drawn.protocol)
    assert chance.value == 0.5


def test_retrieval_skips_titles_without_a_known_word(model: CPD, features: Features) -> None:
    def change(rows: list[Row]) -> None:
        rows[8]["title"] = "nothing known"
        rows[9]["title"] = None

    found = frozen_results(model, manifest_with(change), features, ("retrieval",), CONFIG)
    assert {result.count for result in found} == {10}


def without(column: str) -> Callable[[list[Row]], None]:
    def change(rows: list[Row]) -> None:
        for row in rows:
            row[column] = None

    return change


def test_unsupported_protocols_are_skipped(model: CPD, features: Features, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = frozen_results(model, manifest_with(without("label")), features, config=CONFIG)
        assert {r.protocol.split()[0] for r in found} == {"retrieval"}
        found = frozen_results(model, manifest_with(without("title")), features, config=CONFIG)
        assert "retrieval text→video" not in {r.protocol for r in found}
    for protocol in ("knn", "retrieval"):
        assert any(protocol in message and "m.parquet" in message for message in caplog.messages)


def no_test(rows: list[Row]) -> None:
    for row in rows:
        row["split"] = "train"


def only_test(rows: list[Row]) -> None:
    for row in rows:
        row["split"] = "test"


def one_class(rows: list[Row]) -> None:
    for row in rows:
        row["label"] = "cat"


def a_class_that_is_only_tested(rows: list[Row]) -> None:
    rows[8]["label"] = "parrot"


def one_unlabelled(rows: list[Row]) -> None:
    rows[9]["label"] = None


def neither(rows: list[Row]) -> None:
    without("label")(rows)
    without("title")(rows)


@pytest.mark.parametrize(
    ("change", "protocols", "message"),
    [
        (no_test, ("knn",), "split test.*splits: train"),
        (only_test, ("knn",), "split train and val"),
        (one_class, ("zeroshot",), "'cat'"),
        (a_class_that_is_only_tested, ("linear",), "split test.*'parrot'"),
        (one_unlabelled, ("knn",), "'p9' of split test"),
        (without("label"), ("knn",), "split test.*labels"),
        (without("title"), ("retrieval",), "split test.*titles"),
        (neither, ("retrieval", "knn"), "split test.*titles.*split test.*labels"),
    ],
)
def test_an_invalid_manifest(
    change: Callable[[list[Row]], None], protocols: Any, message: str, model: CPD, features: Features
) -> None:
    with pytest.raises(CrosspairError, match=rf"^m\.parquet: .*{message}") as caught:
        frozen_results(model, manifest_with(change), features, protocols, CONFIG)
    assert "\n" not in str(caught.value)


def test_the_training_split_is_no_test_split_of_trained_classifiers(model: CPD, features: Features) -> None:
    config = dataclasses.replace(CONFIG, split="train")
    with pytest.raises(ManifestError, match="split train"):
        frozen_results(model, manifest_with(), features, ("knn",), config)
    assert frozen_results(model, manifest_with(), features, ("zeroshot", "retrieval"), config)


def test_more_neighbours_than_videos(model: CPD, features: Features) -> None:
    config = dataclasses.replace(CONFIG, knn=KnnConfig(48))
    with pytest.raises(CrosspairError, match=r"k = 48 .* 47$"):
        frozen_results(model, manifest_with(), features, ("knn",), config)


@pytest.mark.parametrize("feature", ["visual", "embedding"])
def test_features_that_are_not_finite(model: CPD, features: Features, feature: str) -> None:
    getattr(features, feature)[4, 2] = float("nan")
    with pytest.raises(ModelError, match=r"1 of 59 .*'p5'"):
        frozen_results(model, manifest_with(), features, ("knn",), CONFIG)
