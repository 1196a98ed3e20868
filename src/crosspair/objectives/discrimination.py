"""Pair discrimination (Section 3.1): classify each query as its own pair among all N pairs.

A `Discrimination` defines queries and classes (`CrossPair`, `SelfInstance`, `LearnedInstance`). The
likelihood of the correct class is estimated by `crosspair.objectives.NoiseContrastive` or computed
by `crosspair.objectives.ExactSoftmax`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import nn

from crosspair.config import MIN_TEMPERATURE
from crosspair.distributed import World
from crosspair.objectives.bank import MemoryBank

# Loss name to normaliser name of the two directions, as logged.
DIRECTIONS: Mapping[str, str] = {"video_to_text": "text", "text_to_video": "video"}


class Discrimination(Protocol):
    """K distributions, each over N classes: p(i) = exp(q·c_i/τ) / Σ_j exp(q·c_j/τ).

    Attributes:
        names: for each distribution, the log names of its loss and of its normaliser.
        temperature: τ.
        world: processes that the classes are sharded over; class i is on process i % world.size.
    """

    names: Mapping[str, str]
    temperature: float
    world: World

    def queries(self, video: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
        """Return the queries (B, d) of each distribution for embeddings f_v and f_t (B, D)."""

    def lookup(self, index: torch.Tensor, bank: MemoryBank, *, shared: bool = False) -> list[torch.Tensor]:
        """Return the classes (..., d) of pairs for each distribution; see `MemoryBank.lookup`."""

    def classes(self, bank: MemoryBank) -> list[tuple[torch.Tensor, ...]]:
        """Return, for each distribution, the class vectors that this process holds.

        They are given as blocks of columns, (n, d_i) each: concatenating them would copy the bank.
        """


class LearnedTemperature(nn.Module):
    """A learned τ: its parameter is log(1/τ), and τ is at least `MIN_TEMPERATURE`, as in CLIP.

    Args:
        temperature: initial τ.
        device: device of the parameter.
    """

    def __init__(self, temperature: float, device: torch.device) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature), device=device))

    def forward(self) -> torch.Tensor:
        """Return τ, a differentiable scalar."""
        with torch.no_grad():
            self.log_scale.clamp_(max=-math.log(MIN_TEMPERATURE))
        return (-self.log_scale).exp()


class CrossPair:
    """Cross-pair discrimination (Equation 3): queries f_v with the bank's texts f̄ᵗ as classes, and f_t with f̄ᵛ.

    Args:
        temperature: τ (0.07 in the paper).
        world: processes that the bank is sharded over.
    """

    names = DIRECTIONS

    def __init__(self, temperature: float, world: World) -> None:
        self.temperature, self.world = temperature, world

    def queries(self, video: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
        return [video, text]

    def lookup(self, index: torch.Tensor, bank: MemoryBank, *, shared: bool = False) -> list[torch.Tensor]:
        video, text = bank.lookup(index, shared=shared)
        return [text, video]

    def classes(self, bank: MemoryBank) -> list[tuple[torch.Tensor, ...]]:
        return [(bank.text,), (bank.video,)]


class SelfInstance:
    """Non-parametric instance discrimination (Equation 2): queries (f_v, f_t), the bank's (f̄ᵛ, f̄ᵗ) as classes.

    The arguments are those of `CrossPair`.
    """

    names: Mapping[str, str] = {"pair": "pair"}

    def __init__(self, temperature: float, world: World) -> None:
        self.temperature, self.world = temperature, world

    def queries(self, video: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
        return [torch.cat([video, text], dim=1)]

    def lookup(self, index: torch.Tensor, bank: MemoryBank, *, shared: bool = False) -> list[torch.Tensor]:
        return [torch.cat(bank.lookup(index, shared=shared), dim=-1)]

    def classes(self, bank: MemoryBank) -> list[tuple[torch.Tensor, ...]]:
        return [(bank.video, bank.text)]


class LearnedInstance(nn.Module):
    """Parametric instance discrimination (Equation 1): queries (f_v, f_t), learned classes (wᵛ, wᵗ), no bank, τ = 1.

    Every process holds all 2·N·D weights and their optimizer state. The caller averages their
    gradients over the processes.

    Args:
        pairs: number of pairs N.
        dimensions: embedding dimension D.
        seed: seed of the initial unit vectors, which are those of a `MemoryBank`.
        device: device of the weights.
    """

    names: Mapping[str, str] = {"pair": "pair"}
    temperature = 1.0

    def __init__(self, pairs: int, dimensions: int, seed: int, device: torch.device) -> None:
        super().__init__()
        self.world = World(device=device)  # not sharded
        init = MemoryBank(pairs, dimensions, 0.0, seed, self.world)
        self.weights = nn.Parameter(torch.cat([init.video, init.text], dim=1))  # (N, 2D)

    def queries(self, video: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
        return [torch.cat([video, text], dim=1)]

    def lookup(self, index: torch.Tensor, bank: MemoryBank, *, shared: bool = False) -> list[torch.Tensor]:
        del bank, shared
        return [self.weights[index]]

    def classes(self, bank: MemoryBank) -> list[tuple[torch.Tensor, ...]]:
        del bank
        return [(self.weights,)]


def step_metrics(
    names: Mapping[str, str],
    losses: Iterable[torch.Tensor],
    log_z: Iterable[torch.Tensor],
    positive: torch.Tensor,
    noise: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Collect the metrics of a step: losses, mean posteriors of positives and noise, and log Z."""
    return {
        **{f"loss_{name}": loss.detach() for name, loss in zip(names, losses, strict=True)},
        "posterior_positive": positive.detach(),
        "posterior_noise": noise.detach(),
        **{f"log_z_{name}": z.clone() for name, z in zip(names.values(), log_z, strict=True)},
    }
