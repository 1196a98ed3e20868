"""The linear probe: batch normalisation, then one layer, on frozen features (Section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from crosspair.errors import CrosspairError


@dataclass(frozen=True)
class LinearConfig:
    """How a linear probe is trained."""

    epochs: int = 30
    """Section 4.2."""
    lr: float = 1e-3
    """Of Adam, at the beginning (Section 4.2)."""
    drop_every: int = 10
    """Epochs after which the learning rate is divided by 10, each time (Section 4.2)."""
    batch_size: int = 64
    """Videos in a batch, at least. The paper does not say; with larger ones, 30 epochs of a small
    corpus end before the probe has learnt what it can."""


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
    """Train a linear probe by cross-entropy. The features are never changed.

    Batch normalisation has no scales and shifts, as the layer after it does without them; its
    statistics for the test are the mean over all batches of the training. The layer starts at zero:
    all that is random is the order of the videos.

    Args:
        features: (N, F) float32, of the training videos alone.
        labels: (N,) int64, their classes from 0.
        classes: how many there are.
        config: the paper's where it is None.
        seed: of the order.
        device: where to train; the features stay where they are.
        progress: called with the epochs done and their number.

    Returns:
        A module from features (B, F) to logits (B, classes), in eval mode.

    Raises:
        CrosspairError: there are fewer than two videos, or the configuration is none.
    """
    config = config or LinearConfig()
    check_linear(len(features), config)
    device = device or features.device
    probe = _probe(features.shape[1], classes).to(device)
    optimizer = torch.optim.Adam(probe.parameters(), config.lr, fused=True)
    generator = torch.Generator().manual_seed(seed)
    # Equal parts rather than a remainder: normalisation needs two videos in each.
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
    """(V,) int64, the classes that a probe gives features (V, F)."""
    device = next(probe.parameters()).device
    parts = [probe(part.to(device)).argmax(dim=1).cpu() for part in torch.split(features, chunk)]
    return torch.cat(parts)


def check_linear(videos: int, config: LinearConfig) -> None:
    """See that so many training videos do; errors are those of `train_linear`."""
    for least, what, found in (
        (2, "training videos", videos),
        (2, "videos in a batch", config.batch_size),
        (1, "epoch", config.epochs),
        (1, "epoch before the rate drops", config.drop_every),
    ):
        if found < least:
            raise CrosspairError(f"a linear probe needs {least} {what} or more, not {found}")
    if not config.lr > 0:
        raise CrosspairError(f"a linear probe needs a learning rate above 0, not {config.lr:g}")


def _probe(features: int, classes: int) -> nn.Module:
    layer = nn.Linear(features, classes, device="meta").to_empty(device="cpu")  # draws nothing
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    # Without a momentum, statistics are the mean over all batches: frozen features do not drift.
    return nn.Sequential(nn.BatchNorm1d(features, momentum=None, affine=False), layer)
