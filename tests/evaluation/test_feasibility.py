"""Invalid settings, labels and titles are errors before a video is read."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crosspair.errors import CrosspairError, ModelError, RecipeError
from crosspair.evaluation import (
    EvaluationConfig,
    Features,
    KnnConfig,
    LinearConfig,
    LowshotConfig,
    MultiviewConfig,
    ZeroshotConfig,
    check_protocols,
    frozen_results,
    randomize_weights,
)
from crosspair.models import CPD, FrameAverageModel, load_imagenet_model
from tests.evaluation.test_frozen import (
    CONFIG,
    Row,
    a_class_that_is_only_tested,
    manifest_with,
    no_test,
    one_class,
    one_unlabelled,
    only_test,
    without,
)
from tests.models.test_inflate import resnet2d, saved

pytestmark = pytest.mark.usefixtures("one_thread")


def changed(**settings: Any) -> EvaluationConfig:
    return dataclasses.replace(CONFIG, **settings)


def all_readable(size: int = 8) -> Features:
    generator = torch.Generator().manual_seed(0)
    visual, embedding = torch.randn(2, 60, size, generator=generator)
    return Features(torch.arange(60), visual, embedding, 10, [])


FAULTS: list[tuple[Callable[[list[Row]], object], str, EvaluationConfig]] = [
    (no_test, "knn", CONFIG),
    (only_test, "linear", CONFIG),
    (one_class, "lowshot", CONFIG),
    (one_class, "zeroshot", CONFIG),
    (a_class_that_is_only_tested, "linear", CONFIG),
    (one_unlabelled, "zeroshot", CONFIG),
    (without("label"), "knn", CONFIG),
    (without("title"), "retrieval", CONFIG),
    (len, "knn", changed(knn=KnnConfig(49))),
    (len, "knn", changed(split="train")),
    (len, "zeroshot", changed(zeroshot=ZeroshotConfig((2, 4)))),
]


@pytest.mark.parametrize(("change", "protocol", "config"), FAULTS)
def test_the_check_raises_the_error_of_the_evaluation(
    change: Callable[[list[Row]], object], protocol: Any, config: EvaluationConfig, model: CPD
) -> None:
    manifest = manifest_with(change)
    with pytest.raises(CrosspairError) as later:
        frozen_results(model, manifest, all_readable(), (protocol,), config)
    with pytest.raises(CrosspairError) as before:
        check_protocols(model, manifest, (protocol,), config)
    assert str(before.value) == str(later.value)
    assert type(before.value) is type(later.value)


@pytest.mark.parametrize("label", [True, False])
def test_supported_protocols_pass_the_check(model: CPD, label: bool, caplog: pytest.LogCaptureFixture) -> None:
    manifest = manifest_with(len if label else without("label"))
    config = changed(zeroshot=ZeroshotConfig((2, 3), draws=2), knn=KnnConfig(48))
    protocols: Any = ("retrieval", "knn", "linear", "lowshot", "zeroshot")
    check_protocols(model, manifest, protocols, config)
    assert not caplog.records  # the evaluation logs the skipped protocols
    assert frozen_results(model, manifest, all_readable(), protocols, config)


def test_a_manifest_of_errors_passes_the_check(model: CPD) -> None:
    def broken(rows: list[Row]) -> None:
        for row in rows:
            row["error"] = "cut"

    check_protocols(model, manifest_with(broken), ("knn",), CONFIG)


def test_videos_with_an_error_are_not_counted_as_training(model: CPD) -> None:
    def broken(rows: list[Row]) -> None:
        rows[0]["error"] = "cut"

    with pytest.raises(CrosspairError, match=r"k = 48 .* 47$"):
        check_protocols(model, manifest_with(broken), ("knn",), changed(knn=KnnConfig(48)))


# --- frame networks -----------------------------------------------------------------------------


@pytest.fixture
def frame_model(tmp_path: Path) -> FrameAverageModel:
    return load_imagenet_model(saved(resnet2d(10), tmp_path / "w.pth"))


def test_a_frame_network_is_evaluated_with_its_visual_feature_only(
    frame_model: FrameAverageModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = frozen_results(frame_model, manifest_with(), all_readable(), config=CONFIG)
    assert {r.protocol.split()[0] for r in found} == {"kNN", "linear", "low-shot"}
    assert {r.feature for r in found} == {"visual"}
    assert {r.settings["network"] for r in found} == {"ImageNet ResNet-10"}
    for protocol in ("retrieval", "zeroshot"):
        assert any(protocol in message for message in caplog.messages)


@pytest.mark.parametrize("protocol", ["retrieval", "zeroshot"])
def test_a_frame_network_does_not_support_text_protocols(frame_model: FrameAverageModel, protocol: Any) -> None:
    with pytest.raises(CrosspairError, match="knn, linear or lowshot"):
        check_protocols(frame_model, manifest_with(), (protocol,), CONFIG)


def test_a_missing_embedding_is_an_error(frame_model: FrameAverageModel) -> None:
    with pytest.raises(ModelError, match="feature=visual"):
        check_protocols(frame_model, manifest_with(), ("knn",), changed(feature="embedding"))


def test_a_randomized_frame_network_is_a_frame_network(frame_model: FrameAverageModel) -> None:
    twin = randomize_weights(frame_model, 0)
    assert isinstance(twin, FrameAverageModel)
    assert twin.hash != frame_model.hash
    tested = [
        {(r.protocol, r.feature) for r in frozen_results(each, manifest_with(), all_readable())}
        for each in (frame_model, twin)
    ]
    assert tested[0] == tested[1]


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (KnnConfig, {"k": 0}), (KnnConfig, {"temperature": 0.0}),
        (LinearConfig, {"epochs": 0}), (LinearConfig, {"batch_size": 1}), (LinearConfig, {"drop_every": 0}),
        (LinearConfig, {"lr": 0.0}), (LinearConfig, {"lr": float("nan")}),
        (LowshotConfig, {"fractions": (0.1, 1.5)}),
        (ZeroshotConfig, {"class_counts": (1,)}), (ZeroshotConfig, {"draws": 0}),
        (ZeroshotConfig, {"templates": ()}), (ZeroshotConfig, {"templates": ("a clip",)}),
        (MultiviewConfig, {"clips": 0}),
    ],
)  # fmt: skip
def test_invalid_settings(section: Any, values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=rf"\.{next(iter(values))} "):
        section(**values)
