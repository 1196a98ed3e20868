"""One model, some videos, one protocol: what each frozen protocol measures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch

from crosspair.corpora import Manifest
from crosspair.evaluation.accuracy import bootstrap_interval, class_details
from crosspair.evaluation.classtask import ClassTask, class_task, tested_positions
from crosspair.evaluation.features import Features, embed_texts
from crosspair.evaluation.knn import NEIGHBOURS, TEMPERATURE, Weighting, knn_predict
from crosspair.evaluation.linear import LinearConfig, linear_predict, train_linear
from crosspair.evaluation.lowshot import SHARES, label_subset
from crosspair.evaluation.results import MEDIAN_RANK, Result, Subject, of_chance
from crosspair.evaluation.retrieval import retrieval
from crosspair.evaluation.zeroshot import DRAWS, class_embeddings, draw_classes, zero_shot_predict
from crosspair.models import CPD

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
class Trial:
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
        return [result, of_chance(result, 1 / len(task.classes))]


def retrieval_results(trial: Trial) -> list[Result]:
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
            results += [one, of_chance(one, min(guess, 1.0) if metric != MEDIAN_RANK else guess)]
    return results


def knn_results(trial: Trial) -> list[Result]:
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


def linear_results(trial: Trial) -> list[Result]:
    """A linear probe on each feature."""
    task = trial.task()
    results = []
    for feature in trial.classified:
        results += _probed(trial, "linear", feature, task, task.training, task.labels)
    return results


def lowshot_results(trial: Trial) -> list[Result]:
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
    trial: Trial,
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


def zeroshot_results(trial: Trial) -> list[Result]:
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
        results += [result, of_chance(result, 1 / count)]
    return results


def readable_titles(trial: Trial, tested: torch.Tensor) -> torch.Tensor:
    """(V,) bool: which tested videos' titles hold a known word."""
    titles = trial.manifest.column(trial.model.text.column)
    is_empty = trial.model.text_encoder.is_empty
    rows = trial.features.rows[tested].tolist()
    return torch.tensor([not is_empty(titles[row] or "") for row in rows])
