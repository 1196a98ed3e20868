"""Evaluate frozen features: retrieval, kNN, linear and low-shot probes, zero-shot."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch

from crosspair.config import MultiviewConfig
from crosspair.corpora.manifest import Manifest
from crosspair.corpora.ucf_hmdb import recording_ids
from crosspair.errors import CrosspairError, ModelError
from crosspair.evaluation.attentive import AttentiveConfig, extract_tokens, train_attentive
from crosspair.evaluation.encode import usable_rows
from crosspair.evaluation.features import Features, embed_texts
from crosspair.evaluation.fewshot import FewshotConfig, logistic_predict
from crosspair.evaluation.knn import KnnConfig, knn_predict
from crosspair.evaluation.linear import (
    LinearConfig,
    LowshotConfig,
    check_training_videos,
    few_labels,
    linear_predict,
    train_linear,
)
from crosspair.evaluation.results import (
    MEDIAN_RANK,
    SUBJECTS,
    RecordingCounts,
    Result,
    Subject,
    bootstrap_interval,
    chance_result,
    class_details,
)
from crosspair.evaluation.retrieval import chance_rank, chance_recall, retrieval
from crosspair.evaluation.task import ClassTask, Split, class_task, split_positions
from crosspair.evaluation.zeroshot import ZeroshotConfig, class_embeddings, draw_classes, zero_shot_predict
from crosspair.models.cpd import CPD
from crosspair.models.init import FrameAverageModel
from crosspair.models.text import TextEncoder

logger = logging.getLogger(__name__)

Feature = Literal["visual", "embedding"]
FrozenProtocol = Literal["retrieval", "knn", "linear", "lowshot", "zeroshot", "fewshot", "attentive"]
Protocols = Sequence[FrozenProtocol]
Tokens = Callable[[CPD, Sequence[int], Manifest, AttentiveConfig], tuple[torch.Tensor, torch.Tensor]]
FROZEN_PROTOCOLS: Protocols = get_args(FrozenProtocol)
"""Protocols of a pre-trained model; that of a classifier is `crosspair.evaluation.multiview.multiview_results`."""
PAPER_PROTOCOLS: Protocols = FROZEN_PROTOCOLS[:5]
"""Protocols of the paper."""


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
    fewshot: FewshotConfig = field(default_factory=FewshotConfig)
    """Few-shot classification."""
    attentive: AttentiveConfig = field(default_factory=AttentiveConfig)
    """Attentive probe."""


def evaluate_model(
    model: CPD,
    manifest: Manifest,
    extract: Callable[[CPD, Subject], Features],
    protocols: Protocols = PAPER_PROTOCOLS,
    config: EvaluationConfig | None = None,
    *,
    random_baseline: bool = True,
    others: Mapping[str, CPD] | None = None,
    tokens: Tokens = extract_tokens,
    is_main: bool = True,
) -> tuple[list[Result], Features]:
    """Evaluate a model and, for comparison, the same network with random weights, and other models.

    Protocols that need labels, readable titles or a text tower are skipped with a warning if there are none. All models
    retrieve the same titles: those in which each model with a text tower knows a word.

    Args:
        extract: computes the features of the manifest's videos by the model ("trained"), by its copy with
            "random weights", or by another model. All processes of a distributed evaluation call it.
        others: other models by name, each with its own clip format.
        tokens: extracts tokens for the attentive probe: `extract_tokens`, or a function of its first four arguments.
            Only the main process calls it.
        is_main: whether this process computes the results; the others only extract features.

    Returns:
        The results of all models and of chance without duplicates, accuracies with an interval, those of the model
        with details by class; and the features of the model.

    Raises:
        CrosspairError: the test split is empty, its labels or titles are unsuitable, features are
            not finite, or no protocol is supported.
    """
    config = config or EvaluationConfig()
    networks: dict[Subject, CPD] = {"trained": model, **(others or {})}
    text_encoders = _text_encoders(networks.values())
    if random_baseline:
        networks["random weights"] = randomize_weights(model, config.seed)
    features = {subject: extract(network, subject) for subject, network in networks.items()}
    results: dict[tuple[str, ...], Result] = {}
    for subject, network in networks.items() if is_main else ():
        evaluation = _Evaluation(network, manifest, features[subject], config, subject, text_encoders, tokens)
        for result in evaluation.run(protocols):
            results.setdefault((result.protocol, result.metric, result.feature, result.of), result)
    return list(results.values()), features["trained"]


def _text_encoders(models: Iterable[CPD]) -> list[TextEncoder]:
    return [model.text_encoder for model in models if "text_encoder" not in model.untrained]


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


def check_protocols(
    model: CPD,
    manifest: Manifest,
    protocols: Protocols,
    config: EvaluationConfig,
    others: Mapping[str, CPD] | None = None,
) -> None:
    """Check labels, titles and settings before any video is decoded.

    Raises:
        CrosspairError: as `evaluate_model` would, assuming that all videos without an error are readable.
    """
    usable, _ = usable_rows(manifest)
    if not usable:
        return  # extracting the features raises an error for this
    empty = torch.empty(len(usable), 0)
    features = Features(torch.tensor(usable), empty, empty, 0, [])
    networks = {"trained": model, **(others or {})}
    for subject, network in networks.items():
        evaluation = _Evaluation(network, manifest, features, config, subject, _text_encoders(networks.values()))
        for protocol in evaluation.supported(protocols, warn=False):
            evaluation.check(protocol)


@dataclass(frozen=True)
class _Evaluation:
    """Inputs of all protocols, for one network; `text_encoders` are the text encoders of all networks."""

    model: CPD
    manifest: Manifest
    features: Features
    config: EvaluationConfig
    subject: Subject
    text_encoders: Sequence[TextEncoder]
    tokens: Tokens = extract_tokens

    @property
    def name(self) -> str:
        """Name of the network in messages."""
        return "this model" if self.subject in SUBJECTS else self.subject

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
        if isinstance(self.model, FrameAverageModel) and self.subject in SUBJECTS:
            common["network"] = f"ImageNet ResNet-{self.model.video.depth}"
        return [replace(result, settings={**common, **result.settings}) for result in results]

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

    def recordings(self, task: ClassTask) -> list[str]:
        """Return the recordings of the test videos, V."""
        return recording_ids(self.manifest.take(self.features.rows[task.test].tolist()))

    def test_column(self, name: str) -> tuple[torch.Tensor, list[Any]]:
        """Return the positions of the test videos, and their values in a column of the manifest ("" for none)."""
        positions = split_positions(self.manifest, self.features, self.config.split)
        column = self.manifest.column(name)
        return positions, [column[row] or "" for row in self.features.rows[positions].tolist()]

    def captions(self) -> tuple[torch.Tensor, list[str], torch.Tensor]:
        """Return the test videos with captions that have a word in all vocabularies.

        Captions are those of the column ``titles``, if a video has any, instead of ``title``.

        Returns:
            The positions of the videos, (n,); the captions, (q,); and the video of each caption, from 0 to n, (q,).
        """
        positions, titles = self.test_column(self.model.text.column)
        texts = [[title] for title in titles]
        if self.model.text.column == "title":
            texts = [several or single for several, single in zip(self.test_column("titles")[1], texts, strict=True)]
        known = [[text for text in each if not any(r.is_empty(text) for r in self.text_encoders)] for each in texts]
        kept = [i for i, each in enumerate(known) if each]
        videos = torch.tensor([video for video, i in enumerate(kept) for _ in known[i]]).long()
        return positions[kept], [text for i in kept for text in known[i]], videos

    def supported(self, protocols: Protocols, *, warn: bool = True) -> Protocols:
        """Select the protocols that the model and the test split support; raise CrosspairError if there are none."""
        if not self.classified:
            raise ModelError(f"{self.name} has no trained embedding; evaluate the feature visual")
        reasons = {name: self._unsupported_reason(name) for name in protocols}
        if all(reasons.values()) and self.subject == "trained":
            raise CrosspairError("; ".join(dict.fromkeys(reasons.values())))
        for name, reason in reasons.items():
            if reason and warn and (self.subject == "trained" or reason.startswith(self.subject)):
                logger.warning("skipping %s: %s", name, reason)
        return [name for name in protocols if not reasons[name]]

    def check(self, protocol: FrozenProtocol) -> None:
        """Raise CrosspairError if labels or settings are invalid for a protocol."""
        config = self.config
        if protocol == "zeroshot":
            classes = self.zeroshot_task.test_classes
            for count in config.zeroshot.class_counts:
                draw_classes(classes, count, config.zeroshot.draws, config.seed)
        elif protocol == "knn":
            config.knn.check_videos(len(self.task.train))
        elif protocol in ("linear", "lowshot"):
            for fraction in (1.0,) if protocol == "linear" else config.lowshot.fractions:
                check_training_videos(len(self.task.subset(fraction, config.seed).train))
        elif protocol in ("fewshot", "attentive"):
            check_training_videos(len(self.task.train))

    def _unsupported_reason(self, protocol: FrozenProtocol) -> str:
        """Return why a protocol is not supported, or an empty text."""
        if protocol in ("retrieval", "zeroshot") and "text_encoder" in self.model.untrained:
            return f"{self.name} has no text tower. Use knn, linear or lowshot"
        if protocol == "attentive" and self.config.feature == "embedding":
            return "the attentive probe has no projection head. Evaluate the feature visual"
        if protocol == "retrieval":
            name, available = "readable titles", bool(self.captions()[1])
        else:
            name, available = "labels", any(self.test_column("label")[1])
        return "" if available else f"{self.manifest.path}: split {self.config.split} has no {name}"

    def accuracy(
        self,
        protocol: str,
        feature: Feature,
        task: ClassTask,
        predicted: torch.Tensor,
        settings: dict[str, Any],
        details: dict[str, Any] | None = None,
    ) -> list[Result]:
        """Return two results: the top-1 accuracy of predictions (V,), and that of chance, 1 / number of classes."""
        by_class = class_details(task.classes, task.test_labels, predicted) if self.subject == "trained" else {}
        correct = predicted == task.test_labels
        counts = RecordingCounts.count(correct, self.recordings(task))
        result = self.result(
            protocol,
            "top-1",
            float(correct.double().mean()),
            feature=feature,
            count=len(correct),
            settings={**settings, "classes": len(task.classes)},
            interval=bootstrap_interval(counts, seed=self.config.seed),
            details={**by_class, **(details or {})},
            by_recording=counts,
        )
        return [result, chance_result(result, 1 / len(task.classes))]

    def mean_accuracy(
        self,
        protocol: str,
        feature: Feature,
        task: ClassTask,
        correct: torch.Tensor,
        counted: torch.Tensor | None,
        settings: dict[str, Any],
        chance: float,
    ) -> list[Result]:
        """Return the mean top-1 accuracy over draws, and that of chance; the details have the standard deviation.

        Args:
            correct: (D, V) bool, whether a video is classified correctly in a draw.
            counted: (D, V) bool, videos that belong to each draw; None for all.
        """
        mask = torch.ones_like(correct) if counted is None else counted
        accuracies = (correct & mask).sum(dim=1).double() / mask.sum(dim=1)
        counts = RecordingCounts.count(correct, self.recordings(task), counted)
        result = self.result(
            protocol,
            "top-1",
            float(accuracies.mean()),
            feature=feature,
            count=int(mask.any(dim=0).sum()),
            settings=settings,
            interval=bootstrap_interval(counts, seed=self.config.seed),
            details={
                "draws": accuracies.tolist(),
                "spread": float(accuracies.std(correction=1)) if len(accuracies) > 1 else 0.0,
            },
            by_recording=counts,
        )
        return [result, chance_result(result, chance)]

    def result(self, protocol: str, metric: str, value: float, **fields: Any) -> Result:
        return Result(protocol, metric, value, self.subject, split=self.config.split, **fields)


def _retrieval_results(evaluation: _Evaluation) -> list[Result]:
    """Evaluate retrieval between test videos and their titles (those with a known word), both ways (Section 4.2).

    Of several captions of a video, each is a query for the video, and the best one is ranked if the video is the query.
    """
    positions, captions, video_of = evaluation.captions()
    texts, videos = embed_texts(evaluation.model, captions), evaluation.features.embedding[positions]
    settings = {"captions": len(captions)} if len(captions) > len(videos) else {}
    ways = {
        "retrieval text→video": (retrieval(texts, videos, query_items=video_of), [1] * len(texts), len(videos)),
        "retrieval video→text": (
            retrieval(videos, texts, target_items=video_of), torch.bincount(video_of).tolist(), len(texts)
        ),
    }  # fmt: skip
    results = []
    for protocol, (found, own, targets) in ways.items():
        values = {f"R@{k}": (recall, chance_recall(k, own, targets)) for k, recall in found.recall.items()}
        values[MEDIAN_RANK] = (found.median_rank, chance_rank(own, targets))
        for metric, (value, chance) in values.items():
            result = evaluation.result(
                protocol, metric, value, feature="embedding", count=found.count, settings=settings
            )
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
    """Measure the top-1 accuracy of linear probes that are trained on fractions of the labels; not in the paper."""
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
        drawn = {**settings, "classes": count, "draws": len(draws), "seed": seed}
        protocol = f"zero-shot, {count} random classes"
        results += evaluation.mean_accuracy(protocol, "embedding", task, correct, counted, drawn, 1 / count)
    return results


def _fewshot_results(evaluation: _Evaluation) -> list[Result]:
    """Measure the mean top-1 accuracy of logistic regressions on random draws of few labels per class."""
    task, config, seed = evaluation.task, evaluation.config.fewshot, evaluation.config.seed
    draws = [torch.tensor(few_labels(task.train_names, config.labels, seed, draw)) for draw in range(config.draws)]
    settings = {"draws": config.draws, "seed": seed, "classes": len(task.classes)}
    fewest = int(torch.bincount(task.train_labels).min())
    if fewest < config.labels and evaluation.subject == "trained":
        logger.warning("few-shot: a class has %d labels, fewer than fewshot.labels=%d", fewest, config.labels)
    results = []
    for feature, values in evaluation.classified:
        labels, features = task.train_labels.to(evaluation.device), values.to(evaluation.device)
        predicted = [
            logistic_predict(features[task.train[drawn]], labels[drawn], features[task.test]).cpu() for drawn in draws
        ]
        correct = torch.stack(predicted) == task.test_labels
        protocol = f"few-shot, {config.labels} labels"
        results += evaluation.mean_accuracy(protocol, feature, task, correct, None, settings, 1 / len(task.classes))
    return results


def _attentive_results(evaluation: _Evaluation) -> list[Result]:
    """Measure the top-1 accuracy of an attentive probe on the tokens of the video encoder."""
    task, config, seed = evaluation.task, evaluation.config.attentive, evaluation.config.seed
    rows = evaluation.features.rows[torch.cat([task.train, task.test])].tolist()
    readable, tokens = evaluation.tokens(evaluation.model, rows, evaluation.manifest, config)
    of_train, of_test = readable[: len(task.train)], readable[len(task.train) :]
    labels = task.train_labels[of_train]
    tested = replace(task, test=task.test[of_test], test_labels=task.test_labels[of_test])
    probe = train_attentive(
        tokens[: len(labels)], labels, len(task.classes), config, seed=seed, device=evaluation.device
    )
    predicted = linear_predict(probe, tokens[len(labels) :], config.batch_size)
    settings = {**asdict(config), "seed": seed, "videos": len(labels)}
    return evaluation.accuracy("attentive", "visual", tested, predicted, settings, {"tokens": tokens.shape[1]})


_PROTOCOLS: dict[FrozenProtocol, Callable[[_Evaluation], list[Result]]] = {
    "retrieval": _retrieval_results,
    "knn": _knn_results,
    "linear": _linear_results,
    "lowshot": _lowshot_results,
    "zeroshot": _zeroshot_results,
    "fewshot": _fewshot_results,
    "attentive": _attentive_results,
}
