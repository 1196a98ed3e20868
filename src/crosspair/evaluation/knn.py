"""k-nearest-neighbour classification of frozen features (Section 4.2: k = 25, cosine)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from crosspair.config import POSITIVE, check_fields
from crosspair.errors import CrosspairError

Weighting = Literal["uniform", "distance"]
_MEMORY = 2**28  # bytes of cosines in memory at a time


@dataclass(frozen=True)
class KnnConfig:
    """Settings of kNN."""

    k: int = 25
    """Number of neighbours (Section 4.2)."""
    weighting: Weighting = "uniform"
    """"uniform" gives each neighbour one vote, and ties go to the class with the largest sum of cosines; "distance"
    weights a vote by exp(cosine / temperature)."""
    temperature: float = 0.07
    """Temperature of "distance"; the default is that of the objective."""

    def __post_init__(self) -> None:
        check_fields("knn", self, POSITIVE, "k", "temperature")

    def check_videos(self, videos: int) -> None:
        """Raise CrosspairError if there are fewer training videos than neighbours."""
        if self.k > videos:
            raise CrosspairError(f"kNN with k = {self.k} needs at least {self.k} training videos, not {videos}")


def knn_predict(
    train: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    config: KnnConfig | None = None,
    *,
    chunk: int | None = None,
) -> torch.Tensor:
    """Classify queries by a vote of their k nearest neighbours by cosine similarity.

    Args:
        train: (N, F) features.
        labels: (N,) int64, classes of ``train``, from 0.
        queries: (Q, F) features.
        config: None for the paper's values.
        chunk: number of queries compared at a time; None chooses it by memory.

    Returns:
        (Q,) int64, the predicted classes.

    Raises:
        CrosspairError: k exceeds N.
    """
    config = config or KnnConfig()
    k = config.k
    config.check_videos(len(train))
    classes = int(labels.max()) + 1
    # Scale the cosines, not the features: a normalized copy of these could exceed the memory.
    scale = torch.linalg.vector_norm(train, dim=1).clamp_min(1e-12).reciprocal()
    predictions = []
    for part in torch.split(queries, chunk or max(1, _MEMORY // (4 * len(train)))):
        cosines = (F.normalize(part, dim=1) @ train.T).mul_(scale)
        similarity, nearest = cosines.topk(k, dim=1)  # (q, k)
        similarity = similarity.double()
        if config.weighting == "uniform":
            # A sum of k cosines is in [-k, k]: scaled to less than one vote, it only breaks ties.
            weights = 1 + similarity / (2 * k + 1)
        else:
            weights = ((similarity - similarity[:, :1]) / config.temperature).exp()
        votes = weights.new_zeros(len(part), classes)
        votes.scatter_add_(1, labels[nearest], weights)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions) if predictions else labels.new_empty(0)
