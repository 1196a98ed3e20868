"""Which protocols a model and a manifest allow: told before hours of encoding, not after."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import torch

from crosspair.corpora import Manifest
from crosspair.errors import CrosspairError, ModelError
from crosspair.evaluation.classtask import tested_positions
from crosspair.evaluation.features import Features, usable_rows
from crosspair.evaluation.knn import check_knn
from crosspair.evaluation.linear import check_linear
from crosspair.evaluation.lowshot import label_subset
from crosspair.evaluation.trial import FrozenConfig, Trial, readable_titles
from crosspair.evaluation.zeroshot import draw_classes
from crosspair.models import CPD

logger = logging.getLogger(__name__)

Protocol = Literal["retrieval", "knn", "linear", "lowshot", "zeroshot"]
WITH_TEXT = ("retrieval", "zeroshot")


def check_protocols(
    model: CPD, manifest: Manifest, protocols: Sequence[Protocol], config: FrozenConfig
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
    trial = Trial(model, manifest, videos, config, "trained")
    for protocol in possible_protocols(trial, protocols, warn=False):
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


def possible_protocols(
    trial: Trial, protocols: Sequence[Protocol], *, warn: bool = True
) -> list[Protocol]:
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


def _lacking(trial: Trial, protocol: Protocol, tested: torch.Tensor) -> str:
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
