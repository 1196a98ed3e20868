"""Cross-pair discrimination (Equation 3): a video is told its text, and a text its video."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from crosspair.distributed import World
from crosspair.objectives.bank import MemoryBank

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
