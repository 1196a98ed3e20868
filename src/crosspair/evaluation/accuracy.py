"""Top-1 accuracy: how far it may be off, and which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

ROUNDS = 1000  # resamples of the tested videos
LEVEL = 0.95


def bootstrap_interval(
    correct: torch.Tensor,
    counted: torch.Tensor | None = None,
    *,
    seed: int,
    rounds: int = ROUNDS,
) -> tuple[float, float]:
    """The 95 % interval of an accuracy, by drawing the tested videos again, with replacement.

    Args:
        correct: (V,) or (D, V) bool, which videos are classified rightly; accuracies of D tests of
            the same videos are averaged.
        counted: (D, V) bool, which videos each test is about; all where it is None.
        seed: of the draws.
        rounds: how many draws of V videos.

    Returns:
        The 2.5th and the 97.5th percentile of the accuracies, 0 to 1.
    """
    right = correct.view(-1, correct.shape[-1]).double()
    about = torch.ones_like(right) if counted is None else counted.double()
    generator = torch.Generator().manual_seed(seed)
    videos = right.shape[1]
    accuracies = []
    for _ in range(rounds):
        drawn = torch.randint(videos, (videos,), generator=generator)
        times = torch.bincount(drawn, minlength=videos).double()
        # A test none of whose videos was drawn has no accuracy, and is no part of the mean.
        accuracies.append(((right * about) @ times / (about @ times)).nanmean())
    tail = (1 - LEVEL) / 2
    ends = torch.tensor([tail, 1 - tail]).double()
    low, high = torch.stack(accuracies).nanquantile(ends).tolist()
    return low, high


def class_details(
    classes: Sequence[str], truth: torch.Tensor, predicted: torch.Tensor
) -> dict[str, Any]:
    """What became of each class, for `crosspair.evaluation.Result.details`.

    Args:
        classes: C names.
        truth: (V,) int64, the videos' classes.
        predicted: (V,) int64.

    Returns:
        ``per_class``: name to accuracy, of classes that have videos; ``confusion``: name to the
        names that its videos were given, each with how many were.

    >>> found = class_details(["cat", "dog"], torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    >>> found["per_class"], found["confusion"]["cat"]
    ({'cat': 0.5, 'dog': 1.0}, {'cat': 1, 'dog': 1})
    """
    confusion: dict[str, dict[str, int]] = {}
    for of, given in zip(truth.tolist(), predicted.tolist(), strict=True):
        row = confusion.setdefault(classes[of], {})
        row[classes[given]] = row.get(classes[given], 0) + 1
    ordered = {name: dict(sorted(confusion[name].items())) for name in sorted(confusion)}
    per_class = {name: row.get(name, 0) / sum(row.values()) for name, row in ordered.items()}
    return {"per_class": per_class, "confusion": ordered}
