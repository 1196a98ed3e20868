"""Discrimination (Section 3.1): a query is told its own class from those of all N pairs.

What the classes are is one question (`CrossPair`, `SelfInstance`, `LearnedInstance`); how the
likelihood of a query's own is had is another (`NoiseContrastive`, `ExactSoftmax`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch

from crosspair.distributed import World
from crosspair.objectives.bank import MemoryBank


class Discrimination(Protocol):
    """K distributions over N classes each: p(i) = exp(q·c_i/τ) / Σ_j exp(q·c_j/τ).

    Attributes:
        names: for each of them what its loss, and what its normaliser is called in logs.
        temperature: τ.
        world: the processes that the classes are spread over, class i on i % world.size.
    """

    names: Mapping[str, str]
    temperature: float
    world: World

    def queries(self, video: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
        """For each distribution its queries, (B, d), of embeddings f_v and f_t (B, D)."""

    def lookup(
        self, index: torch.Tensor, bank: MemoryBank, *, shared: bool = False
    ) -> list[torch.Tensor]:
        """For each distribution the classes (..., d) of given pairs; see `MemoryBank.lookup`."""

    def classes(self, bank: MemoryBank) -> list[tuple[torch.Tensor, ...]]:
        """For each distribution this process's classes, as columns that stand side by side."""


def logged(
    names: Mapping[str, str],
    losses: Iterable[torch.Tensor],
    log_z: Iterable[torch.Tensor],
    positive: torch.Tensor,
    noise: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Scalars of a step: the losses, mean posteriors of positives and of noise, and log Z."""
    return {
        **{f"loss_{name}": loss.detach() for name, loss in zip(names, losses, strict=True)},
        "posterior_positive": positive.detach(),
        "posterior_noise": noise.detach(),
        **{f"log_z_{name}": z.clone() for name, z in zip(names.values(), log_z, strict=True)},
    }
