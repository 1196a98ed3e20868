"""Linear probe on frozen features: batch normalization and one linear layer (Section 4.2)."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import nn

from crosspair.config import POSITIVE, check_fields
from crosspair.errors import CrosspairError, RecipeError


@dataclass(frozen=True)
class LinearConfig:
    """Training of linear and low-shot probes."""

    epochs: int = 30
    """Section 4.2."""
    lr: float = 1e-3
    """Initial learning rate of Adam (Section 4.2)."""
    drop_every: int = 10
    """Number of epochs after which the learning rate is divided by 10, each time (Section 4.2)."""
    batch_size: int = 64
    """Minimum number of videos per batch, not given in the paper. With larger batches, 30 epochs
    of a small corpus have too few steps for convergence."""

    def __post_init__(self) -> None:
        check_fields("linear", self, POSITIVE, "epochs", "drop_every", "lr")
        check_fields("linear", self, ("at least 2", lambda value: value >= 2), "batch_size")


@dataclass(frozen=True)
class LowshotConfig:
    """Training of linear probes with few labels; the paper fine-tunes instead (Appendix B, Table 4)."""

    fractions: tuple[float, ...] = (0.01, 0.1, 0.2)
    """Fractions of each class's labels, in (0, 1]."""

    def __post_init__(self) -> None:
        for fraction in self.fractions:
            if not 0 < fraction <= 1:
                raise RecipeError(f"lowshot.fractions has {fraction}; each must lie in (0, 1]")


def train_linear(
    features: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    config: LinearConfig | None = None,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """Train a linear probe with cross-entropy.

    The layer is initialized with zeros, so only the order of the videos is random. Batch normalization has no scale
    and shift; in eval mode it uses the mean statistics of all training batches.

    Args:
        features: (N, F) float32, of the training videos only.
        labels: (N,) int64, their classes, from 0.
        classes: number of classes.
        config: None for the paper's values.
        seed: of the order of the videos.
        device: None for that of ``features``.
        progress: called with the number of finished epochs and of all epochs.

    Returns:
        A module from features (B, F) to logits (B, classes), in eval mode.

    Raises:
        CrosspairError: there are fewer than two videos, or the loss is not finite.
    """
    config = config or LinearConfig()
    check_training_videos(len(features))
    device = device or features.device
    probe = _build_probe(features.shape[1], classes).to(device)
    optimizer = torch.optim.Adam(probe.parameters(), config.lr, fused=True)
    generator = torch.Generator().manual_seed(seed)
    # Batches of nearly equal size: normalization fails for a last batch of one video.
    batches = max(1, len(features) // config.batch_size)
    with torch.enable_grad():
        for epoch in range(config.epochs):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * 0.1 ** (epoch // config.drop_every)
            for rows in torch.randperm(len(features), generator=generator).tensor_split(batches):
                logits = probe(features[rows].to(device))
                loss = F.cross_entropy(logits, labels[rows].to(device))
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
            if not loss.isfinite():
                raise CrosspairError(
                    f"linear probe: the loss of epoch {epoch + 1} is not finite; lower linear.lr, or check that the "
                    "features are finite"
                )
            if progress:
                progress(epoch + 1, config.epochs)
    return probe.eval()


@torch.no_grad()
def linear_predict(probe: nn.Module, features: torch.Tensor, chunk: int = 4096) -> torch.Tensor:
    """Classify features (V, F) with a probe; return the classes (V,) int64 on the CPU."""
    device = next(probe.parameters()).device
    parts = [probe(part.to(device)).argmax(dim=1).cpu() for part in torch.split(features, chunk)]
    return torch.cat(parts)


def check_training_videos(videos: int) -> None:
    """Raise CrosspairError if there are fewer than two training videos."""
    if videos < 2:
        raise CrosspairError(f"a linear probe needs at least 2 training videos, not {videos}")


def _build_probe(features: int, classes: int) -> nn.Module:
    """Return batch normalization without scale and shift, followed by a linear layer of zeros."""
    # A layer on the meta device draws no random numbers.
    layer = nn.Linear(features, classes, device="meta").to_empty(device="cpu")
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    # Without momentum, the statistics are the mean over all batches, as frozen features are fixed.
    return nn.Sequential(nn.BatchNorm1d(features, momentum=None, affine=False), layer)


def label_subset(labels: Sequence[str], fraction: float, seed: int) -> list[int]:
    """Draw a fraction, in (0, 1], of the items of each class: rounded half up, and at least one item.

    For one seed the subsets are nested: that of 1 % is part of that of 10 %. The items drawn of a
    class depend only on the seed, its label and the number of its items, not on the other classes.

    Returns:
        Positions of the drawn items in ``labels``, ascending.

    >>> len(label_subset(["dog"] * 100 + ["cat"] * 20, 0.1, seed=0))
    12
    """
    shuffled = _shuffle_by_class(labels, str(seed))
    drawn = [members[: max(1, math.floor(round(fraction * len(members), 9) + 0.5))] for members in shuffled]
    return sorted(chain.from_iterable(drawn))


def few_labels(labels: Sequence[str], count: int, seed: int, draw: int = 0) -> list[int]:
    """Draw ``count`` items of each class, or all of a smaller class; draws with other numbers are independent.

    Returns:
        Positions of the drawn items in ``labels``, ascending.
    """
    return sorted(chain.from_iterable(members[:count] for members in _shuffle_by_class(labels, f"{seed}, draw {draw}")))


def _shuffle_by_class(labels: Sequence[str], seed: str) -> list[list[int]]:
    """Return the positions of the items of each class in random order."""
    positions: dict[str, list[int]] = defaultdict(list)
    for position, label in enumerate(labels):
        positions[label].append(position)
    for label, members in positions.items():
        random.Random(f"{seed} {label}").shuffle(members)
    return list(positions.values())
