"""The protocols that leave a model as it is (Sections 4.2 and 4.4, Appendix C)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch

from crosspair.corpora import Manifest
from crosspair.errors import ModelError
from crosspair.evaluation.feasibility import Protocol, possible_protocols
from crosspair.evaluation.features import Features
from crosspair.evaluation.results import Result, Subject
from crosspair.evaluation.trial import (
    FrozenConfig,
    Trial,
    knn_results,
    linear_results,
    lowshot_results,
    retrieval_results,
    zeroshot_results,
)
from crosspair.models import CPD, FrameModel

Protocols = Sequence[Protocol]
ALL: Protocols = get_args(Protocol)


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
    trial = Trial(model, manifest, features, config, of)
    possible = possible_protocols(trial, protocols)
    _check_finite(manifest, features)
    results = [result for protocol in possible for result in _RUN[protocol](trial)]
    told: dict[str, Any] = {"clips": features.clips}
    if isinstance(model, FrameModel):
        told["network"] = f"ImageNet ResNet-{model.video.depth}"
    return [dataclasses.replace(result, settings={**result.settings, **told}) for result in results]


def results_beside_random(
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
    untrained = random_like(model, config.seed)
    results += frozen_results(
        untrained, manifest, extract(untrained), protocols, config, of="random weights"
    )
    unique = [result for i, result in enumerate(results) if result not in results[:i]]
    return unique, features


def random_like(model: CPD, seed: int) -> CPD:
    """A model of the same architecture with random weights; the language model stays.

    It tells what comes from the architecture and the data rather than from the training.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = copy.deepcopy(model.text_encoder)
        fresh = type(model)(encoder, model.clip, model.video, model.text, model.head)
    fresh.untrained = model.untrained  # tested by the same protocols, on the same features
    return fresh.to(next(model.parameters()).device).eval()


_RUN: dict[str, Callable[[Trial], list[Result]]] = {
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
