"""Linear probe on frozen features: batch normalization and one linear layer (Section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from crosspair.errors import CrosspairError


@dataclass(frozen=True)
class LinearConfig:
    """Training of a linear probe."""

    epochs: int = 30
    """Section 4.2."""
    lr: float = 1e-3
    """Initial learning rate of Adam (Section 4.2)."""
    drop_every: int = 10
    """Number of epochs after which the learning rate is divided by 10, each time (Section 4.2)."""
    batch_size: int = 64
    """Minimum number of videos per batch, not given in the paper. With larger batches, 30 epochs
    of a small corpus have too few steps for convergence."""


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
        seed: seed of the order of the videos.
        device: device to train on; None for that of ``features``.
        progress: called with the number of finished epochs and of all epochs.

    Returns:
        A module from features (B, F) to logits (B, classes), in eval mode.

    Raises:
        CrosspairError: there are fewer than two videos, or ``config`` is invalid.
    """
    config = config or LinearConfig()
    check_linear(len(features), config)
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
            if progress:
                progress(epoch + 1, config.epochs)
    return probe.eval()


@torch.no_grad()
def linear_predict(probe: nn.Module, features: torch.Tensor, chunk: int = 4096) -> torch.Tensor:
    """Classify features (V, F) with a probe; returns the classes (V,) int64 on the CPU."""
    device = next(probe.parameters()).device
    parts = [probe(part.to(device)).argmax(dim=1).cpu() for part in torch.split(features, chunk)]
    return torch.cat(parts)


def check_linear(videos: int, config: LinearConfig) -> None:
    """Check the configuration of a probe for a number of training videos.

    Raises:
        CrosspairError: a value is too small.
    """
    for minimum, name, value in (
        (2, "training videos", videos),
        (2, "videos per batch", config.batch_size),
        (1, "epochs", config.epochs),
        (1, "epochs before each drop of the learning rate", config.drop_every),
    ):
        if value < minimum:
            raise CrosspairError(f"linear probe: at least {minimum} {name} needed, not {value}")
    if not config.lr > 0:
        raise CrosspairError(f"linear probe: lr must be above 0, not {config.lr:g}")


def _build_probe(features: int, classes: int) -> nn.Module:
    """Return batch normalization without scale and shift, followed by a linear layer of zeros."""
    # A layer on the meta device draws no random numbers.
    layer = nn.Linear(features, classes, device="meta").to_empty(device="cpu")
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    # Without momentum, the statistics are the mean over all batches, as frozen features are fixed.
    return nn.Sequential(nn.BatchNorm1d(features, momentum=None, affine=False), layer)
