"""The ranking loss (Equation 4): a pair is to be more similar than pairings within the batch."""

from __future__ import annotations

import torch
from torch import nn

from crosspair.distributed import World
from crosspair.objectives.bank import MemoryBank
from crosspair.objectives.cross_pair import DIRECTIONS
from crosspair.objectives.whole_batch import whole_batch


def ranking_loss(
    query: torch.Tensor, candidates: torch.Tensor, own: torch.Tensor, margin: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation 4 in one direction, averaged over the queries.

    The gradient with respect to a query f is Σ (c_j − c⁺)/(n − 1) over the candidates j that are
    within the margin. Appendix A.1 gives the case of one such candidate, without 1/(n − 1).

    Args:
        query: (B, D) unit vectors, f_v (or f_t).
        candidates: (n, D) unit vectors of the other kind, of at least two pairs.
        own: (B,) int64, each query's own row of them.
        margin: δ.

    Returns:
        The loss, and the share of negatives that are within the margin, which alone have a
        gradient.
    """
    similarities = query @ candidates.T  # (B, n)
    positive = similarities.gather(1, own.unsqueeze(1))  # (B, 1)
    excess = (margin + similarities - positive).scatter(1, own.unsqueeze(1), 0.0)
    negatives = candidates.shape[0] - 1
    within = (excess.detach() > 0).sum(dim=1) / negatives
    return excess.relu().sum(dim=1).mean() / negatives, within.mean()


class Ranking(nn.Module):
    """Equation 4 in both directions, with all other pairs of the batch as negatives.

    Args:
        margin: δ.
        world: the processes that share the batch.
    """

    def __init__(self, margin: float, world: World) -> None:
        super().__init__()
        self.margin, self.world = margin, world

    def forward(
        self, video: torch.Tensor, text: torch.Tensor, index: torch.Tensor, bank: MemoryBank
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The mean over this process's pairs; arguments as of `NoiseContrastive`.

        There is no posterior here: logged in its place are the share of negatives within the
        margin, and the mean similarity of pairs and of all pairings of the batch.
        """
        del index, bank
        videos, texts, own = whole_batch(video, text, self.world)
        to_text, to_video = (
            ranking_loss(query, candidates, own, self.margin)
            for query, candidates in ((video, texts), (text, videos))
        )
        losses = (to_text[0], to_video[0])
        return torch.stack(losses).sum(), {
            **{
                f"loss_{name}": loss.detach() for name, loss in zip(DIRECTIONS, losses, strict=True)
            },
            "within_margin": (to_text[1] + to_video[1]) / 2,
            "similarity_positive": (video * text).detach().sum(dim=1).mean(),
            "similarity_all": (video @ texts.T).detach().mean(),
        }
