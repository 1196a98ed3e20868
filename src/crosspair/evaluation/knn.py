"""k-nearest-neighbour classification of frozen features (Section 4.2: k = 25, cosine)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from crosspair.errors import CrosspairError


def knn_predict(
    train: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    *,
    k: int = 25,
    chunk: int = 1024,
) -> torch.Tensor:
    """Classify by the majority of the k nearest, by cosine.

    Of classes with as many votes, the one whose voters are nearer in sum wins.

    Args:
        train: (N, F) features.
        labels: (N,) int64, their classes from 0.
        queries: (Q, F) features.
        k: neighbours that vote.
        chunk: queries compared at a time, to bound memory.

    Returns:
        (Q,) int64, the predicted classes.

    Raises:
        CrosspairError: k exceeds the training set, or is below 1.
    """
    if k < 1:
        raise CrosspairError(f"kNN needs at least 1 neighbour, not k = {k}")
    if k > len(train):
        raise CrosspairError(
            f"kNN with k = {k} needs at least {k} training videos, not {len(train)}"
        )
    classes = int(labels.max()) + 1
    train = F.normalize(train, dim=1)
    predictions = []
    for part in torch.split(F.normalize(queries, dim=1), chunk):
        similarity, nearest = (part @ train.T).topk(k, dim=1)  # (q, k)
        voted = labels[nearest]
        votes = torch.zeros(len(part), classes, dtype=torch.float64)
        votes.scatter_add_(1, voted, torch.ones_like(similarity, dtype=torch.float64))
        # A sum of k cosines lies in [-k, k]: scaled below one vote, it only breaks ties.
        votes.scatter_add_(1, voted, similarity.double() / (2 * k + 1))
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)
