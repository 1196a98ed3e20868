"""Evaluate frozen features: retrieval, kNN, linear and low-shot probes, zero-shot."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from crosspair.corpora.manifest import Manifest
from crosspair.errors import CrosspairError, ModelError
from crosspair.evaluation.features import Features, embed_texts, usable_rows
from crosspair.evaluation.knn import NEIGHBOURS, TEMPERATURE, Weighting, check_knn, knn_predict
from crosspair.evaluation.linear import LinearConfig, check_linear, linear_predict, train_linear
from crosspair.evaluation.results import MEDIAN_RANK, Result, Subject, bootstrap_interval, chance_result, class_details
from crosspair.evaluation.retrieval import retrieval
from crosspair.evaluation.tasks import LABEL_FRACTIONS, ClassTask, class_task, label_subset, split_positions
from crosspair.evaluation.zeroshot import DRAWS, class_embeddings, draw_classes, zero_shot_predict
from crosspair.models.cpd import CPD
from crosspair.models.init import FrameAverageModel

logger = logging.getLogger(__name__)

VISUAL, EMBEDDING = "visual", "embedding"
ProtocolName = Literal["retrieval", "knn", "linear", "lowshot", "zeroshot"]
Protocols = Sequence[ProtocolName]
ALL_PROTOCOLS: Protocols = get_args(ProtocolName)
TEXT_PROTOCOLS = ("retrieval", "zeroshot")


@dataclass(frozen=True)
class FrozenConfig:
    """Settings of the frozen protocols; defaults are the paper's values where it gives them."""

    split: str = "test"
    """Test split. Classifiers are trained on train and val for test, and on train for val."""
    features: tuple[str, ...] = (VISUAL, EMBEDDING)
    """Features to classify: before and after the projection head."""
    k: int = NEIGHBOURS
    """Number of neighbours of kNN."""
    weighting: Weighting = "uniform"
    """Weighting of kNN's votes, see `crosspair.evaluation.knn_predict`."""
    temperature: float = TEMPERATURE
    """Temperature of kNN's votes for weighting "distance"."""
    linear: LinearConfig = field(default_factory=LinearConfig)
    """Training of linear and low-shot probes."""
    fractions: tuple[float, ...] = LABEL_FRACTIONS
    """Fractions of the labels for low-shot probes."""
    classes: tuple[int, ...] = ()
    """Numbers of random classes for additional zero-shot results, such as 20 (Appendix C)."""
    draws: int = DRAWS
    """Number of draws of random classes."""
    templates: tuple[str, ...] = ("{}",)
    """Templates of class names, see `crosspair.evaluation.class_embeddings`."""
    seed: int = 0
    """Seed of training orders, label subsets, classes, intervals and random weights."""


def frozen_results(
    model: CPD,
    manifest: Manifest,
    features: Features,
    protocols: Protocols = ALL_PROTOCOLS,
    config: FrozenConfig | None = None,
    *,
    subject: Subject = "trained",
) -> list[Result]:
    """Evaluate a model with frozen protocols.

    Protocols that need labels, readable titles or a text tower are skipped with a warning if there are none.

    Args:
        model: model to evaluate.
        manifest: videos, titles, labels and splits.
        features: features of the manifest's videos, by this model.
        protocols: protocols to run.
        config: settings of the protocols.
        subject: value of `Result.of`.

    Returns:
        The results, accuracies with an interval, and those of chance. Those of a trained model have details by class.

    Raises:
        CrosspairError: the test split is empty, its labels or titles are unsuitable, features are
            not finite, or no protocol is supported.
    """
    context = EvaluationContext(model, manifest, features, config or FrozenConfig(), subject)
    supported = supported_protocols(context, protocols)
    _check_finite(manifest, features)
    results = [result for protocol in supported for result in _PROTOCOLS[protocol](context)]
    common: dict[str, Any] = {"clips": features.clips}
    if isinstance(model, FrameAverageModel):
        common["network"] = f"ImageNet ResNet-{model.video.depth}"
    return [dataclasses.replace(result, settings={**result.settings, **common}) for result in results]


def results_with_random_baseline(
    model: CPD,
    manifest: Manifest,
    extract: Callable[[CPD], Features],
    protocols: Protocols = ALL_PROTOCOLS,
    config: FrozenConfig | None = None,
) -> tuple[list[Result], Features]:
    """Evaluate a model and the same network with random weights.

    Args:
        model: model to evaluate.
        manifest: videos, titles, labels and splits.
        extract: computes the features of the manifest's videos by a model.
        protocols: protocols to run.
        config: settings of the protocols.

    Returns:
        The results of both and of chance without duplicates, and the features of ``model``.
    """
    config = config or FrozenConfig()
    features = extract(model)
    results = frozen_results(model, manifest, features, protocols, config)
    baseline = randomize_weights(model, config.seed)
    results += frozen_results(baseline, manifest, extract(baseline), protocols, config, subject="random weights")
    unique = [result for i, result in enumerate(results) if result not in results[:i]]
    return unique, features


def randomize_weights(model: CPD, seed: int) -> CPD:
    """Build a model of the same architecture with random weights, but a copy of its text encoder.

    Its results show what the architecture and the data contribute without training.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = copy.deepcopy(model.text_encoder)
        baseline = type(model)(encoder, model.clip, model.video, model.text, model.head)
    baseline.untrained = model.untrained  # so that the same protocols and features are evaluated
    return baseline.to(next(model.parameters()).device).eval()


def check_protocols(model: CPD, manifest: Manifest, protocols: Protocols, config: FrozenConfig) -> None:
    """Check settings, labels and titles before any video is decoded.

    Raises:
        CrosspairError: as `frozen_results` would, assuming that all videos without an error are readable.
    """
    usable, _ = usable_rows(manifest)
    if not usable:
        return  # extracting the features raises an error for this
    empty = torch.empty(len(usable), 0)
    videos = Features(torch.tensor(usable), empty, empty, 0, [])
    context = EvaluationContext(model, manifest, videos, config, "trained")
    for protocol in supported_protocols(context, protocols, warn=False):
        if protocol == "retrieval":
            continue
        task = context.task(trained=protocol != "zeroshot")
        if protocol == "knn":
            check_knn(len(task.train), config.k, config.weighting, config.temperature)
        elif protocol == "linear":
            check_linear(len(task.train), config.linear)
        elif protocol == "lowshot":
            for fraction in config.fractions:
                check_linear(len(_draw_labels(task, fraction, config.seed)), config.linear)
        else:
            for count in config.classes:
                draw_classes(_test_classes(task), count, config.draws, config.seed)


@dataclass(frozen=True)
class EvaluationContext:
    """Inputs of all protocols, see `frozen_results`."""

    model: CPD
    manifest: Manifest
    features: Features
    config: FrozenConfig
    subject: Subject

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @property
    def classified(self) -> tuple[str, ...]:
        """Names of the features to classify, without those of an untrained projection head."""
        untrained = (EMBEDDING,) if "video_head" in self.model.untrained else ()
        return tuple(name for name in self.config.features if name not in untrained)

    def values(self, feature: str) -> torch.Tensor:
        """Return the (V, F) features of all videos by name: "visual" or "embedding"."""
        values: torch.Tensor = getattr(self.features, feature)
        return values

    def task(self, trained: bool = True) -> ClassTask:
        """Build the classification task; ``trained``: check that every test class has training videos."""
        task = class_task(self.manifest, self.features, self.config.split)
        if trained:
            task.check_training(self.manifest)
        return task

    def has_known_words(self, positions: torch.Tensor) -> torch.Tensor:
        """Return whether the title of each video at ``positions`` has a word in the vocabulary, (V,) bool."""
        titles = self.manifest.column(self.model.text.column)
        is_empty = self.model.text_encoder.is_empty
        rows = self.features.rows[positions].tolist()
        return torch.tensor([not is_empty(titles[row] or "") for row in rows])

    def accuracy(
        self, protocol: str, feature: str, task: ClassTask, predicted: torch.Tensor, settings: dict[str, Any]
    ) -> list[Result]:
        """Return two results: the top-1 accuracy of predictions (V,), and that of chance, 1 / number of classes."""
        correct = predicted == task.test_labels
        result = Result(
            protocol,
            "top-1",
            float(correct.double().mean()),
            self.subject,
            split=task.split,
            feature=feature,
            count=len(correct),
            settings={**settings, "classes": len(task.classes)},
            interval=bootstrap_interval(correct, seed=self.config.seed),
            details=class_details(task.classes, task.test_labels, predicted) if self.subject == "trained" else {},
        )
        return [result, chance_result(result, 1 / len(task.classes))]


def supported_protocols(context: EvaluationContext, protocols: Protocols, *, warn: bool = True) -> list[ProtocolName]:
    """Select the protocols that the model and the test split support.

    Args:
        context: model and manifest.
        protocols: requested protocols.
        warn: whether to log a warning for each skipped protocol.

    Raises:
        CrosspairError: the test split is empty, no feature to classify is trained, or no protocol is supported.
    """
    positions = split_positions(context.manifest, context.features, context.config.split)
    if not context.classified:
        raise ModelError("this model has no trained embedding. Use --feature visual")
    reasons = {name: _unsupported_reason(context, name, positions) for name in protocols}
    if all(reasons.values()):
        raise CrosspairError("; ".join(dict.fromkeys(reasons.values())))
    for name, reason in reasons.items():
        if reason and warn:
            logger.warning("skipping %s: %s", name, reason)
    return [name for name in protocols if not reasons[name]]


def _unsupported_reason(context: EvaluationContext, protocol: ProtocolName, positions: torch.Tensor) -> str:
    """Return why a protocol is not supported, or an empty text."""
    if protocol in TEXT_PROTOCOLS and "text_encoder" in context.model.untrained:
        return "this model has no text tower. Use knn, linear or lowshot"
    if protocol == "retrieval":
        available, name = bool(context.has_known_words(positions).any()), "readable titles"
    else:
        labels = context.manifest.column("label")
        available = any(labels[row] for row in context.features.rows[positions].tolist())
        name = "labels"
    split = context.config.split
    return "" if available else f"{context.manifest.path}: split {split} has no {name}"


def retrieval_results(context: EvaluationContext) -> list[Result]:
    """Evaluate retrieval between test videos and their titles (those with a known word), both ways (Section 4.2)."""
    model, config = context.model, context.config
    positions = split_positions(context.manifest, context.features, config.split)
    titles = context.manifest.column(model.text.column)
    kept = positions[context.has_known_words(positions)]
    texts = embed_texts(model, [titles[row] for row in context.features.rows[kept].tolist()])
    videos = context.features.embedding[kept]
    results = []
    for protocol, found in (
        ("retrieval text→video", retrieval(texts, videos)),
        ("retrieval video→text", retrieval(videos, texts)),
    ):
        n = found.count
        values = {f"R@{k}": (recall, min(k / n, 1.0)) for k, recall in found.recall.items()}
        values[MEDIAN_RANK] = (found.median_rank, (n + 1) / 2)
        for metric, (value, chance) in values.items():
            result = Result(
                protocol, metric, value, context.subject,
                split=config.split, feature=EMBEDDING, count=n,
            )  # fmt: skip
            results += [result, chance_result(result, chance)]
    return results


def knn_results(context: EvaluationContext) -> list[Result]:
    """Measure the top-1 accuracy of kNN classification with each feature, and that of chance."""
    task, config = context.task(), context.config
    settings: dict[str, Any] = {"k": config.k}
    if config.weighting != "uniform":
        settings |= {"weighting": config.weighting, "temperature": config.temperature}
    results = []
    for feature in context.classified:
        values = context.values(feature)
        train, labels, queries = (
            tensor.to(context.device) for tensor in (values[task.train], task.train_labels, values[task.test])
        )
        predicted = knn_predict(
            train, labels, queries,
            k=config.k, weighting=config.weighting, temperature=config.temperature,
        )  # fmt: skip
        results += context.accuracy("kNN", feature, task, predicted.cpu(), settings)
    return results


def linear_results(context: EvaluationContext) -> list[Result]:
    """Measure the top-1 accuracy of a linear probe on each feature, and that of chance."""
    task = context.task()
    results = []
    for feature in context.classified:
        results += _probe_results(context, "linear", feature, task)
    return results


def lowshot_results(context: EvaluationContext) -> list[Result]:
    """Evaluate linear probes that are trained on fractions of the labels (Section 4.4)."""
    task = context.task()
    results = []
    for fraction in context.config.fractions:
        drawn = torch.tensor(_draw_labels(task, fraction, context.config.seed))
        subset = dataclasses.replace(task, train=task.train[drawn], train_labels=task.train_labels[drawn])
        for feature in context.classified:
            results += _probe_results(context, f"low-shot {100 * fraction:g} %", feature, subset)
    return results


def _draw_labels(task: ClassTask, fraction: float, seed: int) -> list[int]:
    """Draw a fraction of the training videos of each class, at least one; return their positions in ``task.train``."""
    return label_subset([task.classes[i] for i in task.train_labels.tolist()], fraction, seed)


def _probe_results(context: EvaluationContext, name: str, feature: str, task: ClassTask) -> list[Result]:
    """Train a linear classifier; return its top-1 accuracy on the test videos and that of chance (Section 4.3)."""
    values, config = context.values(feature), context.config
    probe = train_linear(
        values[task.train], task.train_labels, len(task.classes), config.linear,
        seed=config.seed, device=context.device,
    )  # fmt: skip
    predicted = linear_predict(probe, values[task.test])
    settings = {
        **dataclasses.asdict(config.linear), "seed": config.seed, "videos": len(task.train),
    }  # fmt: skip
    return context.accuracy(name, feature, task, predicted, settings)


def zeroshot_results(context: EvaluationContext) -> list[Result]:
    """Evaluate zero-shot classification on all classes, and the mean over random draws of some (Appendix C)."""
    task, config = context.task(trained=False), context.config
    names = class_embeddings(context.model, task.classes, config.templates)
    videos = context.features.embedding[task.test]
    settings = {"templates": len(config.templates)} if len(config.templates) > 1 else {}
    predicted = zero_shot_predict(videos, names)
    results = context.accuracy("zero-shot", EMBEDDING, task, predicted, settings)
    for count in config.classes:
        draws = draw_classes(_test_classes(task), count, config.draws, config.seed)
        counted = torch.stack([torch.isin(task.test_labels, torch.tensor(draw)) for draw in draws])
        correct = torch.stack(
            [torch.tensor(draw)[zero_shot_predict(videos, names[draw])] == task.test_labels for draw in draws]
        )
        accuracies = (correct & counted).sum(dim=1).double() / counted.sum(dim=1)
        spread = float(accuracies.std(correction=1)) if len(draws) > 1 else 0.0
        result = Result(
            f"zero-shot, {count} random classes",
            "top-1",
            float(accuracies.mean()),
            context.subject,
            split=task.split,
            feature=EMBEDDING,
            count=int(counted.any(dim=0).sum()),
            settings={**settings, "classes": count, "draws": len(draws), "seed": config.seed},
            interval=bootstrap_interval(correct, counted, seed=config.seed),
            details={"draws": accuracies.tolist(), "spread": spread},
        )
        results += [result, chance_result(result, 1 / count)]
    return results


def _test_classes(task: ClassTask) -> list[int]:
    """Return the indices of the classes that occur in the test videos, sorted."""
    return sorted(set(task.test_labels.tolist()))


_PROTOCOLS: dict[ProtocolName, Callable[[EvaluationContext], list[Result]]] = {
    "retrieval": retrieval_results,
    "knn": knn_results,
    "linear": linear_results,
    "lowshot": lowshot_results,
    "zeroshot": zeroshot_results,
}


def _check_finite(manifest: Manifest, features: Features) -> None:
    """Raise ModelError if any video has a NaN or infinite feature."""
    finite = features.visual.isfinite().all(dim=1) & features.embedding.isfinite().all(dim=1)
    if not finite.all():
        row = int(features.rows[~finite][0])
        raise ModelError(
            f"{int((~finite).sum())} of {len(finite)} videos have NaN or infinite features, e.g. "
            f"{manifest.column('pair_id')[row]!r}. The model's training diverged, or the precision "
            "is too low"
        )
