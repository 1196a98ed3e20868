"""Evaluate frozen features: retrieval, kNN, linear and low-shot probes, zero-shot."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import pandas as pd
import torch

from crosspair.corpora.manifest import Manifest
from crosspair.errors import CrosspairError, ManifestError, ModelError
from crosspair.evaluation.encode import usable_rows
from crosspair.evaluation.features import Features, embed_texts
from crosspair.evaluation.knn import KnnConfig, knn_predict
from crosspair.evaluation.linear import (
    LinearConfig,
    LowshotConfig,
    check_training_videos,
    label_subset,
    linear_predict,
    train_linear,
)
from crosspair.evaluation.multiview import MultiviewConfig, check_labels
from crosspair.evaluation.results import MEDIAN_RANK, Result, Subject, bootstrap_interval, chance_result, class_details
from crosspair.evaluation.retrieval import retrieval
from crosspair.evaluation.zeroshot import ZeroshotConfig, class_embeddings, draw_classes, zero_shot_predict
from crosspair.models.cpd import CPD
from crosspair.models.init import FrameAverageModel

logger = logging.getLogger(__name__)

Split = Literal["test", "val", "train"]
Feature = Literal["visual", "embedding"]
FrozenProtocol = Literal["retrieval", "knn", "linear", "lowshot", "zeroshot"]
Protocols = Sequence[FrozenProtocol]
FROZEN_PROTOCOLS: Protocols = get_args(FrozenProtocol)
"""Protocols of a pre-trained model; that of a classifier is `crosspair.evaluation.multiview.multiview_results`."""

# Splits that a classifier is trained on, by test split: never the test split or a later one.
TRAIN_SPLITS: dict[Split, tuple[str, ...]] = {"test": ("train", "val"), "val": ("train",), "train": ()}


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of all protocols, by section; defaults are the paper's values where it gives them."""

    split: Split = "test"
    """Test split. Probes and kNN are trained on train and val for test, and on train for val."""
    feature: Literal["both", "visual", "embedding"] = "both"
    """Features to classify: before the projection head (visual), after it, or both."""
    seed: int = 0
    """Seed of training orders, label subsets, classes, intervals and random weights."""
    knn: KnnConfig = field(default_factory=KnnConfig)
    """kNN."""
    linear: LinearConfig = field(default_factory=LinearConfig)
    """Linear and low-shot probes."""
    lowshot: LowshotConfig = field(default_factory=LowshotConfig)
    """Low-shot probes."""
    zeroshot: ZeroshotConfig = field(default_factory=ZeroshotConfig)
    """Zero-shot classification."""
    multiview: MultiviewConfig = field(default_factory=MultiviewConfig)
    """Test of a classifier."""


def evaluate_model(
    model: CPD,
    manifest: Manifest,
    extract: Callable[[CPD, Subject], Features],
    protocols: Protocols = FROZEN_PROTOCOLS,
    config: EvaluationConfig | None = None,
    *,
    random_baseline: bool = True,
    is_main: bool = True,
) -> tuple[list[Result], Features]:
    """Evaluate a model, and the same network with random weights for comparison.

    Protocols that need labels, readable titles or a text tower are skipped with a warning if there are none.

    Args:
        extract: computes the features of the manifest's videos by the model ("trained") or by its copy with
            "random weights". All processes of a distributed evaluation call it.
        is_main: whether this process computes the results; the others only extract features.

    Returns:
        The results of both and of chance without duplicates, accuracies with an interval, those of the model with
        details by class; and the features of the model.

    Raises:
        CrosspairError: the test split is empty, its labels or titles are unsuitable, features are
            not finite, or no protocol is supported.
    """
    config = config or EvaluationConfig()
    networks: dict[Subject, CPD] = {"trained": model}
    if random_baseline:
        networks["random weights"] = randomize_weights(model, config.seed)
    features = {subject: extract(network, subject) for subject, network in networks.items()}
    results: list[Result] = []
    for subject, network in networks.items() if is_main else ():
        evaluation = _Evaluation(network, manifest, features[subject], config, subject)
        results += [result for result in evaluation.run(protocols) if result not in results]
    return results, features["trained"]


def randomize_weights(model: CPD, seed: int) -> CPD:
    """Build a model of the same architecture with random weights, but a copy of its text encoder.

    Its results show what the architecture and the data contribute without training.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = copy.deepcopy(model.text_encoder)
        video_encoder = model.video_encoder.with_random_weights()
        baseline = type(model)(encoder, model.clip, model.video, model.text, model.head, video_encoder)
    baseline.untrained = model.untrained  # so that the same protocols and features are evaluated
    return baseline.to(next(model.parameters()).device).eval()


def check_protocols(model: CPD, manifest: Manifest, protocols: Protocols, config: EvaluationConfig) -> None:
    """Check labels, titles and settings before any video is decoded.

    Raises:
        CrosspairError: as `evaluate_model` would, assuming that all videos without an error are readable.
    """
    usable, _ = usable_rows(manifest)
    if not usable:
        return  # extracting the features raises an error for this
    empty = torch.empty(len(usable), 0)
    evaluation = _Evaluation(model, manifest, Features(torch.tensor(usable), empty, empty, 0, []), config, "trained")
    for protocol in evaluation.supported(protocols, warn=False):
        if protocol == "zeroshot":
            classes = evaluation.zeroshot_task.test_classes
            for count in config.zeroshot.class_counts:
                draw_classes(classes, count, config.zeroshot.draws, config.seed)
        elif protocol == "knn":
            config.knn.check_videos(len(evaluation.task.train))
        elif protocol in ("linear", "lowshot"):
            for fraction in (1.0,) if protocol == "linear" else config.lowshot.fractions:
                check_training_videos(len(evaluation.task.subset(fraction, config.seed).train))


@dataclass(frozen=True)
class ClassTask:
    """Training and test videos, as positions in `Features`, and their indices in the sorted names of all labels."""

    classes: list[str]  # C
    train: torch.Tensor  # (N,) int64
    train_labels: torch.Tensor  # (N,) int64
    test: torch.Tensor  # (V,) int64
    test_labels: torch.Tensor  # (V,) int64

    @property
    def test_classes(self) -> list[int]:
        """Indices of the classes that occur in the test videos, sorted."""
        return sorted(set(self.test_labels.tolist()))

    def subset(self, fraction: float, seed: int) -> ClassTask:
        """Draw a fraction of the training videos of each class, at least one; see `label_subset`."""
        drawn = torch.tensor(label_subset([self.classes[i] for i in self.train_labels.tolist()], fraction, seed))
        return replace(self, train=self.train[drawn], train_labels=self.train_labels[drawn])


def class_task(manifest: Manifest, features: Features, split: Split, *, trained: bool = True) -> ClassTask:
    """Build the classification task of a manifest's labels for a test split.

    Raises:
        ManifestError: the split has no readable video, a test video has no label, all labels are equal, or, for a
            ``trained`` classifier, the test split is train or a test class has no training video.
    """
    test = _split_positions(manifest, features, split)
    check_labels(manifest.take(features.rows[test].tolist()), split)
    classes = sorted({label for label in manifest.column("label") if label})
    if len(classes) < 2:
        raise ManifestError(f"{manifest.path}: all labels are {classes[0]!r}; classification needs two classes")
    videos = manifest.take(features.rows.tolist())
    labels = torch.tensor(pd.Categorical(videos.column("label"), classes).codes).long()  # -1 for none
    in_train = torch.tensor([(name or "train") in TRAIN_SPLITS[split] for name in videos.column("split")])
    train = ((labels >= 0) & in_train).nonzero().squeeze(1)
    task = ClassTask(classes, train, labels[train], test, labels[test])
    if trained and not TRAIN_SPLITS[split]:
        raise ManifestError(f"{manifest.path}: split {split} cannot test a classifier trained on it. Use val or test")
    missing = sorted(set(task.test_classes) - set(task.train_labels.tolist()))
    if trained and missing:
        names = ", ".join(repr(classes[i]) for i in missing[:3])
        raise ManifestError(
            f"{manifest.path}: {len(missing)} classes of split {split} have no readable training video in "
            f"split {' and '.join(TRAIN_SPLITS[split])}: {names}"
        )
    return task


def _split_positions(manifest: Manifest, features: Features, split: Split) -> torch.Tensor:
    """Return the positions in ``features`` of the videos of a split, (V,) int64; rows without a split are in train."""
    splits = manifest.column("split")
    positions = [i for i, row in enumerate(features.rows.tolist()) if (splits[row] or "train") == split]
    if not positions:
        present = ", ".join(sorted({name or "train" for name in splits}))
        raise ManifestError(f"{manifest.path}: split {split} has no readable video to test on (splits: {present})")
    return torch.tensor(positions)


@dataclass(frozen=True)
class _Evaluation:
    """Inputs of all protocols, for one network."""

    model: CPD
    manifest: Manifest
    features: Features
    config: EvaluationConfig
    subject: Subject

    def run(self, protocols: Protocols) -> list[Result]:
        supported = self.supported(protocols)
        finite = self.features.visual.isfinite().all(dim=1) & self.features.embedding.isfinite().all(dim=1)
        if not finite.all():
            pair_id = self.manifest.column("pair_id")[int(self.features.rows[~finite][0])]
            raise ModelError(
                f"{int((~finite).sum())} of {len(finite)} videos have NaN or infinite features, e.g. {pair_id!r}. "
                "The model's training diverged, or the precision is too low"
            )
        results = [result for protocol in supported for result in _PROTOCOLS[protocol](self)]
        common: dict[str, Any] = {"clips": self.features.clips}
        if isinstance(self.model, FrameAverageModel):
            common["network"] = f"ImageNet ResNet-{self.model.video.depth}"
        return [replace(result, settings={**result.settings, **common}) for result in results]

    @property
    def classified(self) -> list[tuple[Feature, torch.Tensor]]:
        """Name and (V, F) values of the features to classify, without those of an untrained or no projection head."""
        named: list[tuple[Feature, torch.Tensor]] = [("visual", self.features.visual)]
        if "video_head" not in self.model.untrained and self.model.head.projection != "none":
            named.append(("embedding", self.features.embedding))
        return [(name, values) for name, values in named if self.config.feature in (name, "both")]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def task(self) -> ClassTask:
        return class_task(self.manifest, self.features, self.config.split)

    @cached_property
    def zeroshot_task(self) -> ClassTask:
        return class_task(self.manifest, self.features, self.config.split, trained=False)

    def test_column(self, name: str) -> tuple[torch.Tensor, list[str]]:
        """Return the positions of the test videos, and their values in a column of the manifest ("" for none)."""
        positions = _split_positions(self.manifest, self.features, self.config.split)
        column = self.manifest.column(name)
        return positions, [column[row] or "" for row in self.features.rows[positions].tolist()]

    def titled(self) -> tuple[torch.Tensor, list[str]]:
        """Return the positions of the test videos whose title has a word in the vocabulary, and these titles."""
        positions, titles = self.test_column(self.model.text.column)
        kept = [i for i, title in enumerate(titles) if not self.model.text_encoder.is_empty(title)]
        return positions[kept], [titles[i] for i in kept]

    def supported(self, protocols: Protocols, *, warn: bool = True) -> Protocols:
        """Select the protocols that the model and the test split support; raise CrosspairError if there are none."""
        if not self.classified:
            raise ModelError("this model has no trained embedding; evaluate the feature visual")
        reasons = {name: self._unsupported_reason(name) for name in protocols}
        if all(reasons.values()):
            raise CrosspairError("; ".join(dict.fromkeys(reasons.values())))
        for name, reason in reasons.items():
            if reason and warn:
                logger.warning("skipping %s: %s", name, reason)
        return [name for name in protocols if not reasons[name]]

    def _unsupported_reason(self, protocol: FrozenProtocol) -> str:
        """Return why a protocol is not supported, or an empty text."""
        if protocol in ("retrieval", "zeroshot") and "text_encoder" in self.model.untrained:
            return "this model has no text tower. Use knn, linear or lowshot"
        if protocol == "retrieval":
            name, available = "readable titles", bool(self.titled()[1])
        else:
            name, available = "labels", any(self.test_column("label")[1])
        return "" if available else f"{self.manifest.path}: split {self.config.split} has no {name}"

    def accuracy(
        self, protocol: str, feature: Feature, task: ClassTask, predicted: torch.Tensor, settings: dict[str, Any]
    ) -> list[Result]:
        """Return two results: the top-1 accuracy of predictions (V,), and that of chance, 1 / number of classes."""
        correct = predicted == task.test_labels
        result = self.result(
            protocol,
            "top-1",
            float(correct.double().mean()),
            feature=feature,
            count=len(correct),
            settings={**settings, "classes": len(task.classes)},
            interval=bootstrap_interval(correct, seed=self.config.seed),
            details=class_details(task.classes, task.test_labels, predicted) if self.subject == "trained" else {},
        )
        return [result, chance_result(result, 1 / len(task.classes))]

    def result(self, protocol: str, metric: str, value: float, **fields: Any) -> Result:
        return Result(protocol, metric, value, self.subject, split=self.config.split, **fields)


def _retrieval_results(evaluation: _Evaluation) -> list[Result]:
    """Evaluate retrieval between test videos and their titles (those with a known word), both ways (Section 4.2)."""
    positions, titles = evaluation.titled()
    texts, videos = embed_texts(evaluation.model, titles), evaluation.features.embedding[positions]
    n, results = len(titles), []
    for protocol, found in (
        ("retrieval text→video", retrieval(texts, videos)),
        ("retrieval video→text", retrieval(videos, texts)),
    ):
        values = {f"R@{k}": (recall, min(k / n, 1.0)) for k, recall in found.recall.items()}
        values[MEDIAN_RANK] = (found.median_rank, (n + 1) / 2)
        for metric, (value, chance) in values.items():
            result = evaluation.result(protocol, metric, value, feature="embedding", count=n)
            results += [result, chance_result(result, chance)]
    return results


def _knn_results(evaluation: _Evaluation) -> list[Result]:
    """Measure the top-1 accuracy of kNN classification with each feature (Section 4.2)."""
    task, config = evaluation.task, evaluation.config.knn
    settings = {"k": config.k} if config.weighting == "uniform" else asdict(config)
    results = []
    for feature, values in evaluation.classified:
        inputs = (values[task.train], task.train_labels, values[task.test])
        train, labels, queries = (tensor.to(evaluation.device) for tensor in inputs)
        predicted = knn_predict(train, labels, queries, config)
        results += evaluation.accuracy("kNN", feature, task, predicted.cpu(), settings)
    return results


def _linear_results(evaluation: _Evaluation) -> list[Result]:
    """Measure the top-1 accuracy of a linear probe on each feature (Section 4.2)."""
    return _probe_results(evaluation, "linear", evaluation.task)


def _lowshot_results(evaluation: _Evaluation) -> list[Result]:
    """Measure the top-1 accuracy of linear probes that are trained on fractions of the labels (Table 4)."""
    task, results = evaluation.task, []
    for fraction in evaluation.config.lowshot.fractions:
        subset = task.subset(fraction, evaluation.config.seed)
        results += _probe_results(evaluation, f"low-shot {100 * fraction:g} %", subset)
    return results


def _probe_results(evaluation: _Evaluation, protocol: str, task: ClassTask) -> list[Result]:
    config, seed = evaluation.config.linear, evaluation.config.seed
    settings = {**asdict(config), "seed": seed, "videos": len(task.train)}
    results = []
    for feature, values in evaluation.classified:
        train, classes = values[task.train], len(task.classes)
        probe = train_linear(train, task.train_labels, classes, config, seed=seed, device=evaluation.device)
        predicted = linear_predict(probe, values[task.test])
        results += evaluation.accuracy(protocol, feature, task, predicted, settings)
    return results


def _zeroshot_results(evaluation: _Evaluation) -> list[Result]:
    """Evaluate zero-shot classification on all classes, and the mean over random draws of some (Appendix C)."""
    task, config, seed = evaluation.zeroshot_task, evaluation.config.zeroshot, evaluation.config.seed
    names = class_embeddings(evaluation.model, task.classes, config.templates)
    videos = evaluation.features.embedding[task.test]
    settings = {"templates": len(config.templates)} if len(config.templates) > 1 else {}
    results = evaluation.accuracy("zero-shot", "embedding", task, zero_shot_predict(videos, names), settings)
    for count in config.class_counts:
        draws = draw_classes(task.test_classes, count, config.draws, seed)
        counted = torch.stack([torch.isin(task.test_labels, torch.tensor(draw)) for draw in draws])
        correct = torch.stack(
            [torch.tensor(draw)[zero_shot_predict(videos, names[draw])] == task.test_labels for draw in draws]
        )
        accuracies = (correct & counted).sum(dim=1).double() / counted.sum(dim=1)
        spread = float(accuracies.std(correction=1)) if len(draws) > 1 else 0.0
        result = evaluation.result(
            f"zero-shot, {count} random classes",
            "top-1",
            float(accuracies.mean()),
            feature="embedding",
            count=int(counted.any(dim=0).sum()),
            settings={**settings, "classes": count, "draws": len(draws), "seed": seed},
            interval=bootstrap_interval(correct, counted, seed=seed),
            details={"draws": accuracies.tolist(), "spread": spread},
        )
        results += [result, chance_result(result, 1 / count)]
    return results


_PROTOCOLS: dict[FrozenProtocol, Callable[[_Evaluation], list[Result]]] = {
    "retrieval": _retrieval_results,
    "knn": _knn_results,
    "linear": _linear_results,
    "lowshot": _lowshot_results,
    "zeroshot": _zeroshot_results,
}
