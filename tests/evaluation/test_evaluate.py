"""Frozen protocols on synthetic features: training splits, invalid manifests and settings, checks before decoding."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.errors import CrosspairError, ModelError, RecipeError
from crosspair.evaluation import (
    EvaluationConfig,
    Features,
    FewshotConfig,
    KnnConfig,
    LinearConfig,
    LowshotConfig,
    MultiviewConfig,
    Result,
    ZeroshotConfig,
    check_protocols,
    embed_texts,
    evaluate,
    evaluate_model,
    few_labels,
    knn_predict,
    logistic_predict,
    randomize_weights,
    retrieval,
)
from crosspair.evaluation.evaluate import PAPER_PROTOCOLS
from crosspair.evaluation.task import class_task
from crosspair.models import CPD, FrameAverageModel, WordAverage, load_imagenet_model
from tests.models.test_inflate import resnet2d, saved

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("cat", "dog", "cat dog")
LINEAR = LinearConfig(epochs=2, batch_size=8)
CONFIG = EvaluationConfig(knn=KnnConfig(3), linear=LINEAR, lowshot=LowshotConfig((0.2, 1.0)))
Row = dict[str, Any]
Change = Callable[[list[Row]], object]


def manifest_with(change: Change = len) -> Manifest:
    """Rows of three classes; of each 10, 4 are train, 2 have no split, 2 are val and 2 test."""
    splits = ["train", "train", "train", "train", None, None, "val", "val", "test", "test"]
    rows: list[Row] = []
    for i in range(60):
        name = CLASSES[i % 3]
        rows.append(
            {"pair_id": f"p{i}", "path": f"{i}.mp4", "title": f"a {name}", "label": name, "split": splits[i % 10]}
        )
    change(rows)
    return manifest_from_rows(rows, Path("m.parquet"))


def changed(column: str, value: object, *rows: int) -> Change:
    """Return a function that changes a column of the given rows, or of all."""

    def change(manifest: list[Row]) -> None:
        for row in rows or range(60):
            manifest[row][column] = value

    return change


@pytest.fixture
def features() -> Features:
    """Overlapping clusters; video 1 could not be read."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor([i for i in range(60) if i != 1])
    centres = torch.randn(3, 12, generator=generator)
    visual = centres[rows % 3] + 0.8 * torch.randn(59, 12, generator=generator)
    return Features(rows, visual, F.normalize(visual[:, :8], dim=1), 10, [("p1", "cut")])


@pytest.fixture
def all_readable() -> Features:
    visual, embedding = torch.randn(2, 60, 8, generator=torch.Generator().manual_seed(0))
    return Features(torch.arange(60), visual, embedding, 10, [])


def frozen_results(
    model: CPD,
    manifest: Manifest,
    features: Features,
    protocols: Any = PAPER_PROTOCOLS,
    config: EvaluationConfig = CONFIG,
) -> list[Result]:
    return evaluate_model(model, manifest, lambda *_: features, protocols, config, random_baseline=False)[0]


def value(results: list[Result], protocol: str, feature: str = "visual") -> float:
    (found,) = (r.value for r in results if (r.protocol, r.feature, r.of) == (protocol, feature, "trained"))
    return found


def test_protocols_agree_with_their_functions(model: CPD, features: Features) -> None:
    results = frozen_results(model, manifest_with(), features)
    tested = torch.tensor([row % 10 in (8, 9) for row in features.rows.tolist()])
    labels = torch.tensor([0, 2, 1])[features.rows % 3]  # of the sorted classes: cat, cat dog, dog
    predicted = knn_predict(features.visual[~tested], labels[~tested], features.visual[tested], KnnConfig(3))
    assert value(results, "kNN") == float((predicted == labels[tested]).double().mean())
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


def test_random_weights_are_evaluated_and_chance_is_listed_once(model: CPD, features: Features) -> None:
    networks: list[CPD] = []

    def extract(network: CPD, subject: str) -> Features:
        networks.append(network)
        return features if subject == "trained" else replace(features, visual=torch.flip(features.visual, (0,)))

    results, found = evaluate_model(model, manifest_with(), extract, ("knn", "retrieval"), CONFIG)
    assert found is features
    assert networks[0] is model
    assert networks[1].hash != model.hash
    for name in ("kNN", "retrieval text→video"):
        of = [result.of for result in results if result.protocol == name]
        assert of.count("trained") == of.count("random weights") == of.count("chance")
    assert not [result.details for result in results if result.of == "random weights" and result.details]
    alone, _ = evaluate_model(model, manifest_with(), extract, ("knn",), CONFIG, random_baseline=False)
    assert {result.of for result in alone} == {"trained", "chance"}
    assert evaluate_model(model, manifest_with(), extract, ("knn",), CONFIG, is_main=False)[0] == []


def test_another_model_is_evaluated_with_the_same_protocols(
    model: CPD, features: Features, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """One that knows fewer words: both retrieve the titles that both know; and one without a text tower."""
    torch.manual_seed(1)
    dogs = CPD(WordAverage(["dog"], torch.randn(1, 6)), model.clip, model.video, model.text, model.head).eval()
    frames = load_imagenet_model(saved(resnet2d(10), tmp_path / "w.pth"))
    others, used = {"dogs": dogs, "frames": frames}, list[str]()

    def extract(network: CPD, subject: str) -> Features:
        assert others.get(subject, network) is network
        used.append(subject)
        return features if subject == "trained" else replace(features, visual=torch.flip(features.visual, (0,)))

    check_protocols(model, manifest_with(), PAPER_PROTOCOLS, CONFIG, others)
    results, _ = evaluate_model(model, manifest_with(), extract, PAPER_PROTOCOLS, CONFIG, others=others)
    assert used == ["trained", "dogs", "frames", "random weights"]
    alone = frozen_results(dogs, manifest_with(), extract(dogs, "dogs"))
    found = {(r.protocol, r.metric, r.feature): r.value for r in results if r.of == "dogs"}
    assert found == {(r.protocol, r.metric, r.feature): r.value for r in alone if r.of == "trained"}
    assert {r.count for r in results if r.protocol.startswith("retrieval")} == {8}  # 4 of "dog", 4 of "cat dog"
    assert not [r for r in results if r.of not in ("trained", "chance") and "per_class" in r.details]
    by_frames = {r.protocol.split()[0] for r in results if r.of == "frames"}
    assert by_frames == {"kNN", "linear", "low-shot"}
    keys = [(r.protocol, r.metric, r.feature) for r in results if r.of == "chance"]
    assert len(keys) == len(set(keys))
    skipped = [message for message in caplog.messages if "skipping" in message]
    assert len(skipped) == 2
    assert all("frames" in message for message in skipped)
    results, _ = evaluate_model(model, manifest_with(), extract, ("zeroshot",), CONFIG, others=others)
    assert {r.of for r in results} == {"trained", "dogs", "random weights", "chance"}


def test_few_shot_is_the_mean_of_logistic_regressions(model: CPD, features: Features) -> None:
    config = replace(CONFIG, fewshot=FewshotConfig(labels=2, draws=3), seed=5)
    found, chance, *_ = frozen_results(model, manifest_with(), features, ("fewshot",), config)
    task = class_task(manifest_with(), features, "test")
    accuracies = []
    for draw in range(3):
        drawn = few_labels([CLASSES[row % 3] for row in features.rows[task.train].tolist()], 2, 5, draw)
        assert len(drawn) == 6
        train = task.train[drawn]
        predicted = logistic_predict(features.visual[train], task.train_labels[drawn], features.visual[task.test])
        accuracies.append(float((predicted == task.test_labels).double().mean()))
    assert found.protocol == "few-shot, 2 labels"
    assert found.details["draws"] == accuracies
    assert found.value == pytest.approx(statistics.fmean(accuracies))
    assert found.details["spread"] == pytest.approx(statistics.stdev(accuracies))
    low, high = found.interval
    assert low <= found.value <= high
    assert (chance.of, chance.value) == ("chance", 1 / 3)


def test_retrieval_with_several_captions(model: CPD, features: Features) -> None:
    """Of the test videos, one has three captions, of which one has no known word."""
    manifest = manifest_with(changed("titles", ["a cat dog", "no word", "dog dog"], 8))
    results = frozen_results(model, manifest, features, ("retrieval",))
    tested = [i for i, row in enumerate(features.rows.tolist()) if row % 10 in (8, 9)]
    texts, owners = [], []
    for place, i in enumerate(tested):
        row = int(features.rows[i])
        for text in ["a cat dog", "dog dog"] if row == 8 else [f"a {CLASSES[row % 3]}"]:
            texts.append(text)
            owners.append(place)
    videos, items = features.embedding[tested], torch.tensor(owners)
    encoded = embed_texts(model, texts)
    expected = {
        "retrieval text→video": retrieval(encoded, videos, query_items=items),
        "retrieval video→text": retrieval(videos, encoded, target_items=items),
    }
    for name, by_hand in expected.items():
        found = {r.metric: r for r in results if (r.protocol, r.of) == (name, "trained")}
        assert {f"R@{k}": found[f"R@{k}"].value for k in (1, 5, 10)} == {f"R@{k}": v for k, v in by_hand.recall.items()}
        assert found["median rank"].value == by_hand.median_rank
    counts = [{r.count for r in results if r.protocol == name} for name in expected]
    assert counts == [{13}, {12}]
    chance = {(r.protocol, r.metric): r.value for r in results if r.of == "chance"}
    assert chance["retrieval text→video", "R@1"] == 1 / 12
    assert chance["retrieval video→text", "R@1"] == pytest.approx((11 / 13 + 2 / 13) / 12)


def test_cleaned_titles_are_not_replaced_by_captions(model: CPD, features: Features) -> None:
    changes = (changed("title_clean", "dog"), changed("titles", ["a cat dog", "dog dog"], 8))
    manifest = manifest_with(lambda rows: [change(rows) for change in changes])
    model.text = replace(model.text, column="title_clean")
    assert {r.count for r in frozen_results(model, manifest, features, ("retrieval",))} == {12}


# --- what is trained on -------------------------------------------------------------------------


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


def turn(rows: list[Row]) -> None:
    for i, row in enumerate(rows):
        if row["split"] == "test":
            row["label"] = CLASSES[(i + 1) % 3]


def same(one: list[list[torch.Tensor]], other: list[list[torch.Tensor]]) -> bool:
    pairs = ((a, b) for each in zip(one, other, strict=True) for a, b in zip(*each, strict=True))
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("split", ["test", "val"])
def test_test_and_later_splits_do_not_affect_a_probe(
    model: CPD, features: Features, probes: list[list[torch.Tensor]], split: Any
) -> None:
    """Neither their labels nor their features, through the statistics of batch normalization."""
    config, protocols = replace(CONFIG, split=split), ("linear", "lowshot")
    unseen = {"test": {8, 9}, "val": {6, 7, 8, 9}}[split]
    places = torch.tensor([row % 10 in unseen for row in features.rows.tolist()])
    frozen_results(model, manifest_with(), features, protocols, config)
    for values in (features.visual, features.embedding):
        values[places] = values[places] * 30 + 7
    frozen_results(model, manifest_with(turn), features, protocols, config)
    assert len(probes) == 12
    assert same(probes[:6], probes[6:])
    features.visual[~places] += torch.randn(int((~places).sum()), 12)
    frozen_results(model, manifest_with(), features, protocols, config)
    assert not same(probes[:6], probes[12:])


@pytest.mark.parametrize(
    ("split", "trained", "tested"), [("test", {0, 1, 2, 3, 4, 5, 6, 7}, {8, 9}), ("val", {0, 1, 2, 3, 4, 5}, {6, 7})]
)
def test_training_splits_of_each_test_split(
    features: Features, split: Any, trained: set[int], tested: set[int]
) -> None:
    task = class_task(manifest_with(changed("label", None, 0)), features, split)  # video 0 is not trained on
    assert {int(row) % 10 for row in features.rows[task.train]} == trained
    assert {int(row) % 10 for row in features.rows[task.test]} == tested
    for positions, labels in ((task.train, task.train_labels), (task.test, task.test_labels)):
        names = [CLASSES[row % 3] for row in features.rows[positions].tolist()]
        assert [task.classes[label] for label in labels.tolist()] == names
    assert len(task.train) == sum(row % 10 in trained for row in features.rows.tolist()) - 1


def test_zero_shot_on_draws_is_the_mean_of_zero_shots(model: CPD, features: Features) -> None:
    config = replace(CONFIG, zeroshot=ZeroshotConfig((2, 3), draws=4))
    results = frozen_results(model, manifest_with(), features, ("zeroshot",), config)
    whole = value(results, "zero-shot", "embedding")
    assert value(results, "zero-shot, 3 random classes", "embedding") == pytest.approx(whole)
    drawn, chance = (r for r in results if r.protocol == "zero-shot, 2 random classes")
    draws = drawn.details["draws"]
    assert len(draws) == 4
    assert drawn.value == pytest.approx(sum(draws) / 4)
    spread = (sum((draw - drawn.value) ** 2 for draw in draws) / 3) ** 0.5
    assert drawn.details["spread"] == pytest.approx(spread)
    assert chance.value == 0.5


def test_retrieval_skips_titles_without_a_known_word(model: CPD, features: Features) -> None:
    manifest = manifest_with(lambda rows: (changed("title", "nothing known", 8)(rows), changed("title", None, 9)(rows)))
    found = frozen_results(model, manifest, features, ("retrieval",), CONFIG)
    assert {result.count for result in found} == {10}


# --- invalid and unsupported input --------------------------------------------------------------


def neither(rows: list[Row]) -> None:
    changed("label", None)(rows)
    changed("title", None)(rows)


FAULTS: list[tuple[Change, tuple[str, ...], EvaluationConfig, str]] = [
    (changed("split", "train"), ("knn",), CONFIG, "split test.*splits: train"),
    (changed("split", "test"), ("linear",), CONFIG, "split train and val"),
    (changed("label", "cat"), ("lowshot",), CONFIG, "'cat'"),
    (changed("label", "cat"), ("zeroshot",), CONFIG, "'cat'"),
    (changed("label", "parrot", 8), ("linear",), CONFIG, "split test.*'parrot'"),
    (changed("label", None, 9), ("zeroshot",), CONFIG, "'p9' of split test"),
    (changed("label", None), ("knn",), CONFIG, "split test.*labels"),
    (changed("title", None), ("retrieval",), CONFIG, "split test.*titles"),
    (neither, ("retrieval", "knn"), CONFIG, "split test.*titles.*split test.*labels"),
    (len, ("knn",), replace(CONFIG, knn=KnnConfig(49)), "k = 49 .* 48"),
    (changed("error", "cut", 0), ("knn",), replace(CONFIG, knn=KnnConfig(48)), "k = 48 .* 47"),
    (len, ("knn",), replace(CONFIG, split="train"), "split train"),
    (len, ("zeroshot",), replace(CONFIG, zeroshot=ZeroshotConfig((2, 4))), " 4 .* 3 "),
]


@pytest.mark.parametrize(("change", "protocols", "config", "message"), FAULTS)
def test_faults_are_found_before_a_video_is_read(
    change: Change, protocols: Any, config: EvaluationConfig, message: str, model: CPD, all_readable: Features
) -> None:
    manifest = manifest_with(change)
    with pytest.raises(CrosspairError, match=message) as before:
        check_protocols(model, manifest, protocols, config)
    if not any(manifest.column("error")):
        with pytest.raises(type(before.value)) as later:
            frozen_results(model, manifest, all_readable, protocols, config)
        assert str(before.value) == str(later.value)


@pytest.mark.parametrize("change", [len, changed("label", None)])
def test_supported_protocols_pass_the_check(
    model: CPD, all_readable: Features, change: Change, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = manifest_with(change)
    config = replace(CONFIG, zeroshot=ZeroshotConfig((2, 3), draws=2), knn=KnnConfig(48))
    check_protocols(model, manifest, PAPER_PROTOCOLS, config)
    assert not caplog.records  # the evaluation logs the skipped protocols
    assert frozen_results(model, manifest, all_readable, config=config)


def test_unsupported_protocols_are_skipped(model: CPD, features: Features, caplog: pytest.LogCaptureFixture) -> None:
    found = frozen_results(model, manifest_with(changed("label", None)), features)
    assert {r.protocol.split()[0] for r in found} == {"retrieval"}
    found = frozen_results(model, manifest_with(changed("title", None)), features)
    assert "retrieval text→video" not in {r.protocol for r in found}
    for protocol in ("knn", "retrieval"):
        assert any(protocol in message and "m.parquet" in message for message in caplog.messages)
    check_protocols(model, manifest_with(changed("error", "cut")), ("knn",), CONFIG)  # nothing to check


@pytest.mark.parametrize("feature", ["visual", "embedding"])
def test_features_that_are_not_finite(model: CPD, features: Features, feature: str) -> None:
    getattr(features, feature)[4, 2] = float("nan")
    with pytest.raises(ModelError, match=r"1 of 59 .*'p5'"):
        frozen_results(model, manifest_with(), features, ("knn",), CONFIG)


@pytest.mark.parametrize(
    ("section", "key", "invalid"),
    [
        (KnnConfig, "k", 0), (KnnConfig, "temperature", 0.0), (LinearConfig, "epochs", 0),
        (LinearConfig, "batch_size", 1), (LinearConfig, "drop_every", 0), (LinearConfig, "lr", 0.0),
        (LinearConfig, "lr", float("nan")), (LowshotConfig, "fractions", (0.1, 1.5)),
        (ZeroshotConfig, "class_counts", (1,)), (ZeroshotConfig, "draws", 0), (ZeroshotConfig, "templates", ()),
        (ZeroshotConfig, "templates", ("a clip",)), (MultiviewConfig, "clips", 0),
        (FewshotConfig, "labels", 0), (FewshotConfig, "draws", 0),
    ],
)  # fmt: skip
def test_invalid_settings(section: Any, key: str, invalid: object) -> None:
    with pytest.raises(RecipeError, match=rf"\.{key} "):
        section(**{key: invalid})


# --- frame networks -----------------------------------------------------------------------------


def test_a_frame_network_is_evaluated_with_its_visual_feature_only(
    all_readable: Features, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_imagenet_model(saved(resnet2d(10), tmp_path / "w.pth"))
    found = frozen_results(model, manifest_with(), all_readable)
    assert {r.protocol.split()[0] for r in found} == {"kNN", "linear", "low-shot"}
    assert {r.feature for r in found} == {"visual"}
    assert {r.settings["network"] for r in found} == {"ImageNet ResNet-10"}
    for protocol in ("retrieval", "zeroshot"):
        assert any(protocol in message for message in caplog.messages)
        with pytest.raises(CrosspairError, match="text tower"):
            check_protocols(model, manifest_with(), (protocol,), CONFIG)
    with pytest.raises(ModelError, match="embedding"):
        check_protocols(model, manifest_with(), ("knn",), replace(CONFIG, feature="embedding"))
    twin = randomize_weights(model, 0)
    assert isinstance(twin, FrameAverageModel)
    assert twin.hash != model.hash
    of_twin = frozen_results(twin, manifest_with(), all_readable)
    assert {(r.protocol, r.feature) for r in of_twin} == {(r.protocol, r.feature) for r in found}
