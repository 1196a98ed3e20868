"""Equation 3 over the batch instead of all pairs: CLIP's symmetric cross-entropy (InfoNCE)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from crosspair.distributed import World
from crosspair.objectives.bank import MemoryBank
from crosspair.objectives.discrimination import DIRECTIONS
from crosspair.objectives.softmax import nll_loss


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
        videos, texts, own = gather_batch(video, text, self.world)
        logits = [video @ texts.T / self.temperature, text @ videos.T / self.temperature]  # (B, n)
        positives = [each.gather(1, own.unsqueeze(1)).squeeze(1) for each in logits]
        log_zs = [each.logsumexp(dim=1) for each in logits]
        return nll_loss(positives, log_zs, len(texts), DIRECTIONS)


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
        videos, texts, own = gather_batch(video, text, self.world)
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


def gather_batch(
    video: torch.Tensor, text: torch.Tensor, world: World
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every process's embeddings, with gradients that find back to the process they came from.

    Args:
        video: (B, D) f_v of this process.
        text: (B, D) f_t of this process.
        world: the processes that share the batch; B may differ between them.

    Returns:
        f_v and f_t of all processes, (n, D) each, and where this process's own are, (B,) int64.
    """
    both = all_gather_with_grad(torch.stack([video, text], dim=1), world)
    begin = world.offset(len(video))
    own = torch.arange(begin, begin + len(video), device=video.device)
    return both[:, 0], both[:, 1], own


def all_gather_with_grad(rows: torch.Tensor, world: World) -> torch.Tensor:
    """Every process's rows (B, …), one after another: (n, …)."""
    found: torch.Tensor = _Gathered.apply(rows, world)  # type: ignore[no-untyped-call]
    return found


def reduce_scatter_rows(terms: torch.Tensor, count: int, world: World) -> torch.Tensor:
    """The sum of every process's terms (n, …), of which this process needs its ``count`` rows."""
    found: torch.Tensor = _OwnOfSum.apply(terms, count, world)  # type: ignore[no-untyped-call]
    return found


class _Gathered(torch.autograd.Function):
    """`World.gather_rows`; a row's gradient is the sum of what every process's loss asks of it."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, world: World) -> torch.Tensor:
        ctx.world, ctx.count = world, len(rows)
        return world.gather_rows(rows).clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        begin = ctx.world.offset(ctx.count)
        return ctx.world.sum(gradient)[begin : begin + ctx.count], None


class _OwnOfSum(torch.autograd.Function):
    """The way back is to gather: every process's terms are part of every row."""

    @staticmethod
    def forward(ctx: Any, terms: torch.Tensor, count: int, world: World) -> torch.Tensor:
        ctx.world = world
        begin = world.offset(count)
        return world.sum(terms)[begin : begin + count].clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.world.gather_rows(gradient), None, None
