"""k-nearest-neighbour classification of frozen features (Section 4.2: k = 25, cosine)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F

from crosspair.errors import CrosspairError

NEIGHBOURS = 25  # Section 4.2
TEMPERATURE = 0.07  # as in the objective
Weighting = Literal["uniform", "distance"]
_MEMORY = 2**28  # bytes of cosines in memory at a time


def knn_predict(
    train: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    *,
    k: int = NEIGHBOURS,
    weighting: Weighting = "uniform",
    temperature: float = TEMPERATURE,
    chunk: int | None = None,
) -> torch.Tensor:
    """Classify queries by a vote of their k nearest neighbours by cosine similarity.

    Args:
        train: (N, F) features.
        labels: (N,) int64, classes of ``train``, from 0.
        queries: (Q, F) features.
        k: number of neighbours.
        weighting: "uniform" gives each neighbour one vote, and ties go to the class with the
            largest sum of cosines; "distance" weights a vote by exp(cosine / temperature).
        temperature: temperature of "distance", above 0.
        chunk: number of queries compared at a time; None chooses it by memory.

    Returns:
        (Q,) int64, the predicted classes.

    Raises:
        CrosspairError: an argument is out of range, for example k exceeds N.
    """
    check_knn(len(train), k, weighting, temperature)
    classes = int(labels.max()) + 1
    # Scale the cosines, not the features: a normalized copy of these could exceed the memory.
    scale = torch.linalg.vector_norm(train, dim=1).clamp_min(1e-12).reciprocal()
    predictions = []
    for part in torch.split(queries, chunk or max(1, _MEMORY // (4 * len(train)))):
        cosines = (F.normalize(part, dim=1) @ train.T).mul_(scale)
        similarity, nearest = cosines.topk(k, dim=1)  # (q, k)
        similarity = similarity.double()
        if weighting == "uniform":
            # A sum of k cosines is in [-k, k]: scaled to less than one vote, it only breaks ties.
            weights = 1 + similarity / (2 * k + 1)
        else:
            weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(part), classes)
        votes.scatter_add_(1, labels[nearest], weights)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions) if predictions else labels.new_empty(0)


def check_knn(videos: int, k: int, weighting: str, temperature: float) -> None:
    """Check the arguments of `knn_predict` for a number of training videos.

    Raises:
        CrosspairError: an argument is out of range.
    """
    if k < 1:
        raise CrosspairError(f"kNN needs k of at least 1, not k = {k}")
    if k > videos:
        raise CrosspairError(f"kNN with k = {k} needs at least {k} training videos, not {videos}")
    if weighting not in get_args(Weighting):
        raise CrosspairError(f"kNN: weighting must be one of {', '.join(get_args(Weighting))}, not {weighting!r}")
    if not temperature > 0:
        raise CrosspairError(f"kNN: temperature must be above 0, not {temperature:g}")
