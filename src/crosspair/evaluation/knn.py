"""k-nearest-neighbour classification of frozen features (Section 4.2: k = 25, cosine)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F

from crosspair.errors import CrosspairError

NEIGHBOURS = 25  # Section 4.2
TEMPERATURE = 0.07  # that of the objective
Weighting = Literal["uniform", "distance"]
_MEMORY = 2**28  # bytes of cosines held at a time


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
    """Classify by the votes of the k nearest, by cosine.

    Args:
        train: (N, F) features.
        labels: (N,) int64, their classes from 0.
        queries: (Q, F) features.
        k: neighbours that vote.
        weighting: uniform: each has one vote; of classes with as many votes, the one whose voters
            are nearer in sum wins. distance: a vote weighs exp(cosine / temperature).
        temperature: above 0; the smaller, the more the nearest decide.
        chunk: queries compared at a time; as many as a bounded memory holds where it is None.

    Returns:
        (Q,) int64, the predicted classes.

    Raises:
        CrosspairError: k exceeds the training set or is below 1, or another argument is none.
    """
    check_knn(len(train), k, weighting, temperature)
    classes = int(labels.max()) + 1
    # Cosines are scaled rather than features, whose copy may be all that memory holds.
    scale = torch.linalg.vector_norm(train, dim=1).clamp_min(1e-12).reciprocal()
    predictions = []
    for part in torch.split(queries, chunk or max(1, _MEMORY // (4 * len(train)))):
        cosines = (F.normalize(part, dim=1) @ train.T).mul_(scale)
        similarity, nearest = cosines.topk(k, dim=1)  # (q, k)
        similarity = similarity.double()
        if weighting == "uniform":
            # A sum of k cosines lies in [-k, k]: scaled below one vote, it only breaks ties.
            weights = 1 + similarity / (2 * k + 1)
        else:
            weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(part), classes)
        votes.scatter_add_(1, labels[nearest], weights)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions) if predictions else labels.new_empty(0)


def check_knn(videos: int, k: int, weighting: str, temperature: float) -> None:
    """See that so many training videos do; arguments and errors are those of `knn_predict`."""
    if k < 1:
        raise CrosspairError(f"kNN needs at least 1 neighbour, not k = {k}")
    if k > videos:
        raise CrosspairError(f"kNN with k = {k} needs at least {k} training videos, not {videos}")
    if weighting not in get_args(Weighting):
        raise CrosspairError(
            f"kNN's weighting {weighting!r} is none of {', '.join(get_args(Weighting))}"
        )
    if not temperature > 0:
        raise CrosspairError(f"kNN's temperature must be above 0, not {temperature:g}")
