"""Self-instance discrimination: a pair is told itself from all others (Equations 1 and 2).

The logit of pair j is v_j·f_v/τ + t_j·f_t/τ, or (v_j, t_j)·(f_v, f_t)/τ with both side by side.
Nothing in it compares a video with a text, which is why it teaches so little (Table 1a).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from crosspair.distributed import World
from crosspair.objectives.bank import MemoryBank

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
