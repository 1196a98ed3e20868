"""Equation 3 over the batch instead of all pairs: CLIP's symmetric cross-entropy (InfoNCE)."""

from __future__ import annotations

import torch
from torch import nn

from crosspair.distributed import World
from crosspair.objectives.bank import MemoryBank
from crosspair.objectives.cross_pair import DIRECTIONS
from crosspair.objectives.softmax import likelihood
from crosspair.objectives.whole_batch import whole_batch


class InBatch(nn.Module):
    """−log p(i_t|v) − log p(i_v|t) among the pairs of the batch.

    The two are summed, as in every objective here; CLIP takes half of that, and learns τ.

    Args:
        temperature: τ.
        world: the processes that share the batch.
    """

    def __init__(self, temperature: float, world: World) -> None:
        super().__init__()
        self.temperature, self.world = temperature, world

    def forward(
        self, video: torch.Tensor, text: torch.Tensor, index: torch.Tensor, bank: MemoryBank
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The mean over this process's pairs; arguments and returns as of `ExactSoftmax`."""
        del index, bank
        videos, texts, own = whole_batch(video, text, self.world)
        logits = [video @ texts.T / self.temperature, text @ videos.T / self.temperature]  # (B, n)
        positives = [each.gather(1, own.unsqueeze(1)).squeeze(1) for each in logits]
        log_zs = [each.logsumexp(dim=1) for each in logits]
        return likelihood(positives, log_zs, len(texts), DIRECTIONS)
