"""One model, some videos, one protocol: what each frozen protocol measures."""

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
from crosspair.evaluation.results import (
    MEDIAN_RANK,
    Result,
    Subject,
    bootstrap_interval,
    chance_result,
    class_details,
)
from crosspair.evaluation.retrieval import retrieval
from crosspair.evaluation.tasks import SHARES, ClassTask, class_task, label_subset, tested_positions
from crosspair.evaluation.zeroshot import DRAWS, class_embeddings, draw_classes, zero_shot_predict
from crosspair.models.cpd import CPD
from crosspair.models.init import FrameAverageModel

logger = logging.getLogger(__name__)

VISUAL, EMBEDDING = "visual", "embedding"


@dataclass(frozen=True)
class FrozenConfig:
    """What the protocols leave open; the paper's values where it has them."""

    split: str = "test"
    """That is tested. Classifiers learn from train and val when it is test, from train when it is
    val."""
    features: tuple[str, ...] = (VISUAL, EMBEDDING)
    """Which features are classified: before the mapping layer, after it."""
    k: int = NEIGHBOURS
    """Neighbours of kNN."""
    weighting: Weighting = "uniform"
    """Of kNN's votes, see `crosspair.evaluation.knn_predict`."""
    temperature: float = TEMPERATURE
    """Of votes weighted by distance."""
    linear: LinearConfig = field(default_factory=LinearConfig)
    """Of the linear probe, low-shot or not."""
    shares: tuple[float, ...] = SHARES
    """Of the labels, for low-shot."""
    classes: tuple[int, ...] = ()
    """Zero-shot on so many random classes, besides all; 20 and others in Appendix C."""
    draws: int = DRAWS
    """Of random classes, each time."""
    templates: tuple[str, ...] = ("{}",)
    """Of class names, see `crosspair.evaluation.class_embeddings`."""
    seed: int = 0
    """Of all that is drawn: orders of training, labels, classes, intervals, random weights."""


@dataclass(frozen=True)
class EvaluationContext:
    """A model and what it is tested on; see `crosspair.evaluation.frozen_results`."""

    model: CPD
    manifest: Manifest
    features: Features
    config: FrozenConfig
    of: Subject

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        return next(self.model.parameters()).device

    def task(self, learns: bool = True) -> ClassTask:
        """The task that the labels make; ``learns``: from other videos than the tested."""
        task = class_task(self.manifest, self.features, self.config.split)
        if learns:
            task.check_training(self.manifest)
        return task

    @property
    def classified(self) -> tuple[str, ...]:
        """The features to classify; those after an untrained mapping layer are none of them."""
        untrained = (EMBEDDING,) if "video_head" in self.model.untrained else ()
        return tuple(name for name in self.config.features if name not in untrained)

    def values(self, feature: str) -> torch.Tensor:
        """Features of that name, of all videos."""
        values: torch.Tensor = getattr(self.features, feature)
        return values

    def accuracy(
        self,
        protocol: str,
        feature: str,
        task: ClassTask,
        predicted: torch.Tensor,
        settings: dict[str, Any],
    ) -> list[Result]:
        """A result, and that of chance."""
        correct = predicted == task.truth
        result = Result(
            protocol,
            "top-1",
            float(correct.double().mean()),
            self.of,
            split=task.split,
            feature=feature,
            count=len(correct),
            settings={**settings, "classes": len(task.classes)},
            interval=bootstrap_interval(correct, seed=self.config.seed),
            details=class_details(task.classes, task.truth, predicted)
            if self.of == "trained"
            else {},
        )
        return [result, chance_result(result, 1 / len(task.classes))]


def retrieval_results(trial: EvaluationContext) -> list[Result]:
    """Retrieval both ways between the tested videos and their titles (Section 4.2)."""
    model, config = trial.model, trial.config
    tested = tested_positions(trial.manifest, trial.features, config.split)
    titles = trial.manifest.column(model.text.column)
    kept = tested[readable_titles(trial, tested)]
    texts = embed_texts(model, [titles[row] for row in trial.features.rows[kept].tolist()])
    videos = trial.features.embedding[kept]
    results = []
    for protocol, found in (
        ("retrieval text→video", retrieval(texts, videos)),
        ("retrieval video→text", retrieval(videos, texts)),
    ):
        n = found.count
        values = {f"R@{level}": (recall, level / n) for level, recall in found.recall.items()}
        values[MEDIAN_RANK] = (found.median_rank, (n + 1) / 2)
        for metric, (value, guess) in values.items():
            one = Result(
                protocol, metric, value, trial.of,
                split=config.split, feature=EMBEDDING, count=n,
            )  # fmt: skip
            results += [
                one,
                chance_result(one, min(guess, 1.0) if metric != MEDIAN_RANK else guess),
            ]
    return results


def knn_results(trial: EvaluationContext) -> list[Result]:
    """kNN on each feature."""
    task, config = trial.task(), trial.config
    settings: dict[str, Any] = {"k": config.k}
    if config.weighting != "uniform":
        settings |= {"weighting": config.weighting, "temperature": config.temperature}
    results = []
    for feature in trial.classified:
        values = trial.values(feature)
        train, labels, queries = (
            each.to(trial.device)
            for each in (values[task.training], task.labels, values[task.tested])
        )
        predicted = knn_predict(
            train, labels, queries,
            k=config.k, weighting=config.weighting, temperature=config.temperature,
        )  # fmt: skip
        results += trial.accuracy("kNN", feature, task, predicted.cpu(), settings)
    return results


def linear_results(trial: EvaluationContext) -> list[Result]:
    """A linear probe on each feature."""
    task = trial.task()
    results = []
    for feature in trial.classified:
        results += _probed(trial, "linear", feature, task, task.training, task.labels)
    return results


def lowshot_results(trial: EvaluationContext) -> list[Result]:
    """Linear probes that see but a share of the labels."""
    task, config = trial.task(), trial.config
    names = [task.classes[label] for label in task.labels.tolist()]
    results = []
    for share in config.shares:
        drawn = torch.tensor(label_subset(names, share, config.seed))
        name = f"low-shot {100 * share:g} %"
        for feature in trial.classified:
            training, labels = task.training[drawn], task.labels[drawn]
            results += _probed(trial, name, feature, task, training, labels)
    return results


def _probed(
    trial: EvaluationContext,
    name: str,
    feature: str,
    task: ClassTask,
    training: torch.Tensor,
    labels: torch.Tensor,
) -> list[Result]:
    values, config = trial.values(feature), trial.config
    probe = train_linear(
        values[training], labels, len(task.classes), config.linear,
        seed=config.seed, device=trial.device,
    )  # fmt: skip
    predicted = linear_predict(probe, values[task.tested])
    settings = {**dataclasses.asdict(config.linear), "seed": config.seed, "videos": len(training)}
    return trial.accuracy(name, feature, task, predicted, settings)


def zeroshot_results(trial: EvaluationContext) -> list[Result]:
    """Zero-shot on all classes, and on draws of some (Appendix C)."""
    task, config = trial.task(learns=False), trial.config
    names = class_embeddings(trial.model, task.classes, config.templates)
    videos = trial.features.embedding[task.tested]
    settings = {"templates": len(config.templates)} if len(config.templates) > 1 else {}
    predicted = zero_shot_predict(videos, names)
    results = trial.accuracy("zero-shot", EMBEDDING, task, predicted, settings)
    there = sorted(set(task.truth.tolist()))
    for count in config.classes:
        draws = draw_classes(there, count, config.draws, config.seed)
        counted = torch.stack([torch.isin(task.truth, torch.tensor(draw)) for draw in draws])
        correct = torch.stack([
            torch.tensor(draw)[zero_shot_predict(videos, names[draw])] == task.truth
            for draw in draws
        ])  # fmt: skip
        of_draws = (correct & counted).sum(dim=1).double() / counted.sum(dim=1)
        spread = float(of_draws.std(correction=1)) if len(draws) > 1 else 0.0
        result = Result(
            f"zero-shot, {count} random classes",
            "top-1",
            float(of_draws.mean()),
            trial.of,
            split=task.split,
            feature=EMBEDDING,
            count=int(counted.any(dim=0).sum()),
            settings={**settings, "classes": count, "draws": len(draws), "seed": config.seed},
            interval=bootstrap_interval(correct, counted, seed=config.seed),
            details={"draws": of_draws.tolist(), "spread": spread},
        )
        results += [result, chance_result(result, 1 / count)]
    return results


def readable_titles(trial: EvaluationContext, tested: torch.Tensor) -> torch.Tensor:
    """(V,) bool: which tested videos' titles hold a known word."""
    titles = trial.manifest.column(trial.model.text.column)
    is_empty = trial.model.text_encoder.is_empty
    rows = trial.features.rows[tested].tolist()
    return torch.tensor([not is_empty(titles[row] or "") for row in rows])


ProtocolName = Literal["retrieval", "knn", "linear", "lowshot", "zeroshot"]
WITH_TEXT = ("retrieval", "zeroshot")


def check_protocols(
    model: CPD, manifest: Manifest, protocols: Sequence[ProtocolName], config: FrozenConfig
) -> None:
    """See, before any video is read, that nothing but videos can stop the protocols.

    Raises:
        CrosspairError: what `crosspair.evaluation.frozen_results` would raise if all videos could
            be read that have no error.
    """
    usable, _ = usable_rows(manifest)
    if not usable:
        return  # that, too, is told by who reads them
    nothing = torch.empty(len(usable), 0)
    videos = Features(torch.tensor(usable), nothing, nothing, 0, [])
    trial = EvaluationContext(model, manifest, videos, config, "trained")
    for protocol in supported_protocols(trial, protocols, warn=False):
        if protocol == "retrieval":
            continue
        task = trial.task(learns=protocol != "zeroshot")
        if protocol == "knn":
            check_knn(len(task.training), config.k, config.weighting, config.temperature)
        if protocol == "linear":
            check_linear(len(task.training), config.linear)
        if protocol == "lowshot":
            names = [task.classes[label] for label in task.labels.tolist()]
            for share in config.shares:
                check_linear(len(label_subset(names, share, config.seed)), config.linear)
        if protocol == "zeroshot":
            for count in config.classes:
                draw_classes(sorted(set(task.truth.tolist())), count, config.draws, config.seed)


def supported_protocols(
    trial: EvaluationContext, protocols: Sequence[ProtocolName], *, warn: bool = True
) -> list[ProtocolName]:
    """Those that there are a text tower, labels and titles for.

    Args:
        trial: model and manifest.
        protocols: that are asked for.
        warn: whether to tell of those that are passed over.

    Raises:
        CrosspairError: the tested split is empty, or model and split lack what all of them need.
    """
    tested = tested_positions(trial.manifest, trial.features, trial.config.split)
    if not trial.classified:
        raise ModelError("this model has no embedding; it can be tested by --feature visual")
    lacking = {protocol: _lacking(trial, protocol, tested) for protocol in protocols}
    if all(lacking.values()):
        raise CrosspairError("; ".join(dict.fromkeys(lacking.values())))
    for protocol, what in lacking.items():
        if what and warn:
            logger.warning("%s is left out: %s", protocol, what)
    return [protocol for protocol in protocols if not lacking[protocol]]


def _lacking(trial: EvaluationContext, protocol: ProtocolName, tested: torch.Tensor) -> str:
    """What there is not for a protocol, or nothing."""
    if protocol in WITH_TEXT and "text_encoder" in trial.model.untrained:
        return "this model has no text tower; it can be tested by knn, linear and lowshot"
    if protocol == "retrieval":
        there, what = bool(readable_titles(trial, tested).any()), "readable titles"
    else:
        labels = trial.manifest.column("label")
        there = any(labels[row] for row in trial.features.rows[tested].tolist())
        what = "labels"
    return "" if there else f"{trial.manifest.path}: split {trial.config.split} has no {what}"


Protocols = Sequence[ProtocolName]
ALL: Protocols = get_args(ProtocolName)


def frozen_results(
    model: CPD,
    manifest: Manifest,
    features: Features,
    protocols: Protocols = ALL,
    config: FrozenConfig | None = None,
    *,
    of: Subject = "trained",
) -> list[Result]:
    """Test a model by frozen protocols.

    Protocols are passed over, with a warning, that the tested videos have no labels or no readable
    titles for, or a `FrameModel` no text tower; where none is left, that is an error.

    Args:
        model: the model to test.
        manifest: its videos, titles, labels and splits.
        features: of the manifest's videos, by this model.
        protocols: which.
        config: what they leave open.
        of: what the model is, for the results.

    Returns:
        The results, and those of chance beside them. Accuracies have an interval; those of a
        trained model have details by class.

    Raises:
        CrosspairError: the tested split is empty, its labels or titles do not do, features are not
            finite, or a `FrameModel` is asked for what it has not.
    """
    config = config or FrozenConfig()
    trial = EvaluationContext(model, manifest, features, config, of)
    possible = supported_protocols(trial, protocols)
    _check_finite(manifest, features)
    results = [result for protocol in possible for result in _RUN[protocol](trial)]
    told: dict[str, Any] = {"clips": features.clips}
    if isinstance(model, FrameAverageModel):
        told["network"] = f"ImageNet ResNet-{model.video.depth}"
    return [dataclasses.replace(result, settings={**result.settings, **told}) for result in results]


def results_with_random_baseline(
    model: CPD,
    manifest: Manifest,
    extract: Callable[[CPD], Features],
    protocols: Protocols = ALL,
    config: FrozenConfig | None = None,
) -> tuple[list[Result], Features]:
    """The results of a model, of the same network with random weights, and of chance.

    Args:
        model: the model to test.
        manifest: see `frozen_results`, as for ``protocols`` and ``config``.
        extract: gives the features of the manifest's videos by a model.
        protocols: which.
        config: what they leave open.

    Returns:
        The results, and the features of the model itself.
    """
    config = config or FrozenConfig()
    features = extract(model)
    results = frozen_results(model, manifest, features, protocols, config)
    untrained = randomize_weights(model, config.seed)
    results += frozen_results(
        untrained, manifest, extract(untrained), protocols, config, of="random weights"
    )
    unique = [result for i, result in enumerate(results) if result not in results[:i]]
    return unique, features


def randomize_weights(model: CPD, seed: int) -> CPD:
    """A model of the same architecture with random weights; the language model stays.

    It tells what comes from the architecture and the data rather than from the training.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = copy.deepcopy(model.text_encoder)
        fresh = type(model)(encoder, model.clip, model.video, model.text, model.head)
    fresh.untrained = model.untrained  # tested by the same protocols, on the same features
    return fresh.to(next(model.parameters()).device).eval()


_RUN: dict[str, Callable[[EvaluationContext], list[Result]]] = {
    "retrieval": retrieval_results,
    "knn": knn_results,
    "linear": linear_results,
    "lowshot": lowshot_results,
    "zeroshot": zeroshot_results,
}


def _check_finite(manifest: Manifest, features: Features) -> None:
    finite = features.visual.isfinite().all(dim=1) & features.embedding.isfinite().all(dim=1)
    if not finite.all():
        row = int(features.rows[~finite][0])
        raise ModelError(
            f"{int((~finite).sum())} of {len(finite)} videos have features that are no finite "
            f"numbers, as {manifest.column('pair_id')[row]!r}; the model's training diverged, or "
            "its precision does not do"
        )
