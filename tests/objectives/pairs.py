"""Random unit vectors and banks, in float64 so that loops and tensors agree to many digits."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from crosspair.distributed import World
from crosspair.objectives import MemoryBank


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def bank_of(pairs: int, dimensions: int, seed: int = 0) -> MemoryBank:
    bank = MemoryBank(pairs, dimensions, 0.5, seed, World())
    bank.video, bank.text = unit(2, pairs, dimensions, seed=seed)
    return bank
