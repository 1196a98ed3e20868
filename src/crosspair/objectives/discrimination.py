"""Discrimination (Section 3.1): a query is told its own class from those of all N pairs.

What the classes are is one question (`CrossPair`, `SelfInstance`, `LearnedInstance`); how the
likelihood of a query's own is had is another (`NoiseContrastive`, `ExactSoftmax`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import nn

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


def step_metrics(
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


DIRECTIONS: Mapping[str, str] = {"video_to_text": "text", "text_to_video": "video"}


class CrossPair:
    """A `Discrimination` with p(i_t|v), classes f̄ᵗ, and p(i_v|t), classes f̄ᵛ.

    Args:
        temperature: τ (0.07 in the paper).
        world: the processes that share the bank.
    """

    names = DIRECTIONS

    def __init__(self, temperature: float, world: World) -> None:
        self.temperature, self.world = temperature, world

    def queries(self, video: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
        return [video, text]

    def lookup(
        self, index: torch.Tensor, bank: MemoryBank, *, shared: bool = False
    ) -> list[torch.Tensor]:
        video, text = bank.lookup(index, shared=shared)
        return [text, video]

    def classes(self, bank: MemoryBank) -> list[tuple[torch.Tensor, ...]]:
        return [(bank.text,), (bank.video,)]


NAMES: Mapping[str, str] = {"pair": "pair"}


class SelfInstance:
    """The non-parametric `Discrimination` of Equation 2: classes (f̄ᵛ, f̄ᵗ).

    Args:
        temperature: τ (0.07 in the paper).
        world: the processes that share the bank.
    """

    names = NAMES

    def __init__(self, temperature: float, world: World) -> None:
        self.temperature, self.world = temperature, world

    def queries(self, video: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
        return [torch.cat([video, text], dim=1)]

    def lookup(
        self, index: torch.Tensor, bank: MemoryBank, *, shared: bool = False
    ) -> list[torch.Tensor]:
        return [torch.cat(bank.lookup(index, shared=shared), dim=-1)]

    def classes(self, bank: MemoryBank) -> list[tuple[torch.Tensor, ...]]:
        return [(bank.video, bank.text)]


class LearnedInstance(nn.Module):
    """The parametric `Discrimination` of Equation 1: learned classes (wᵛ, wᵗ), no temperature.

    Every process holds all of them, with the same optimiser beside: 2·N·D values, as one bank.
    Their gradients are to be averaged over the processes, as those of the towers are.

    Args:
        pairs: N.
        dimensions: D of the common space.
        seed: of the random unit vectors that they start with, as a bank does.
        device: where they lie.
    """

    names = NAMES
    temperature = 1.0

    def __init__(self, pairs: int, dimensions: int, seed: int, device: torch.device) -> None:
        super().__init__()
        self.world = World(device=device)  # spread over none
        start = MemoryBank(pairs, dimensions, 0.0, seed, self.world)
        self.weights = nn.Parameter(torch.cat([start.video, start.text], dim=1))  # (N, 2D)

    def queries(self, video: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
        return [torch.cat([video, text], dim=1)]

    def lookup(
        self, index: torch.Tensor, bank: MemoryBank, *, shared: bool = False
    ) -> list[torch.Tensor]:
        del bank, shared
        return [self.weights[index]]

    def classes(self, bank: MemoryBank) -> list[tuple[torch.Tensor, ...]]:
        del bank
        return [(self.weights,)]
