"""Objectives with the other pairs of the batch as negatives: InfoNCE, SigLIP and ranking (Equation 4)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from crosspair.distributed import World
from crosspair.objectives.bank import MemoryBank
from crosspair.objectives.discrimination import DIRECTIONS, LearnedTemperature
from crosspair.objectives.softmax import nll_loss


class InBatch(nn.Module):
    """InfoNCE: −log p(i_t|v) − log p(i_v|t) of Equation 3 over the pairs of the batch of all processes.

    The two directions are summed, as in the other objectives. CLIP averages them and learns τ.

    Args:
        temperature: τ; its initial value if it is learned.
        world: processes that train together.
        soft_targets: temperature t of the targets q_j = softmax_j(f_t·f_{t,j}/t) of both directions, constants in the
            gradient: pairs with similar titles share their targets. 0: the pair itself is the only target.
        learnable: whether τ is learned.
    """

    def __init__(self, temperature: float, world: World, soft_targets: float = 0.0, *, learnable: bool = False) -> None:
        super().__init__()
        self.temperature = LearnedTemperature(temperature, world.device) if learnable else temperature
        self.world, self.soft_targets = world, soft_targets

    def forward(
        self, video: torch.Tensor, text: torch.Tensor, index: torch.Tensor, bank: MemoryBank
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the mean loss of this process's pairs; see `NoiseContrastive.forward`."""
        videos, texts, target = gather_batch(video, text, self.world)
        duplicates = find_duplicates(index, bank, self.world)
        tau, learned = self.temperature, {}
        if isinstance(tau, LearnedTemperature):
            tau = tau()
            learned = {"temperature": tau.detach()}
        logits = [video @ texts.T / tau, text @ videos.T / tau]  # (B, n)
        if self.soft_targets:
            weights = (text @ texts.T / self.soft_targets).detach().softmax(dim=1)  # (B, n)
        else:
            weights = F.one_hot(target, len(texts)).to(text.dtype)
        positives = [(scores * weights).sum(dim=1) for scores in logits]
        log_zs = [exclude(scores, duplicates).logsumexp(dim=1) for scores in logits]
        loss, metrics = nll_loss(positives, log_zs, len(texts), DIRECTIONS)
        return loss, {**metrics, **learned}


class SigLIP(nn.Module):
    """Pairwise sigmoid loss of SigLIP (arXiv:2303.15343) over the batch of all processes.

    It is −(1/n) Σ_i Σ_j log σ(z_ij (f_v,i·f_t,j/τ + b)), with z = 1 for pairs and −1 for other combinations. τ and
    b are learned, starting at 1/10 and −10.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.temperature = world, LearnedTemperature(0.1, world.device)
        self.bias = nn.Parameter(torch.tensor(-10.0, device=world.device))

    def forward(
        self, video: torch.Tensor, text: torch.Tensor, index: torch.Tensor, bank: MemoryBank
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the mean loss of this process's videos; see `NoiseContrastive.forward`.

        The posteriors in the metrics are σ of the logits of pairs and of other combinations.
        """
        del index, bank
        _, texts, target = gather_batch(video, text, self.world)
        tau = self.temperature()
        logits = video @ texts.T / tau + self.bias  # (B, n)
        positive = F.one_hot(target, len(texts)).bool()
        loss = F.softplus(torch.where(positive, -logits, logits)).sum(dim=1).mean()
        posterior = logits.detach().sigmoid()
        of_pairs = (posterior * positive).sum()
        return loss, {
            "posterior_positive": of_pairs / len(video),
            "posterior_noise": (posterior.sum() - of_pairs) / max(posterior.numel() - len(video), 1),
            "temperature": tau.detach(),
            "bias": self.bias.detach().clone(),
        }


def ranking_loss(
    query: torch.Tensor,
    candidates: torch.Tensor,
    target: torch.Tensor,
    margin: float,
    duplicates: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute Equation 4 in one direction, averaged over the queries.

    The gradient with respect to a query f is Σ (c_j − c⁺)/(n − 1) over the candidates j within the
    margin. Appendix A.1 states it for one such candidate, without the factor 1/(n − 1).

    Args:
        query: (B, D) unit vectors, f_v (or f_t).
        candidates: (n, D) unit vectors of the other modality, n ≥ 2.
        target: (B,) int64, the row of ``candidates`` that is the positive of each query.
        margin: δ.
        duplicates: (B, n) bool, candidates that are no negatives; None: all but the positive are.

    Returns:
        The loss, and the fraction of negatives within the margin, i.e. with a non-zero gradient.
    """
    similarities = query @ candidates.T  # (B, n)
    positive = similarities.gather(1, target.unsqueeze(1))  # (B, 1)
    excess = (margin + exclude(similarities, duplicates) - positive).scatter(1, target.unsqueeze(1), 0.0)
    others = candidates.shape[0] - 1
    negatives = others if duplicates is None else (others - duplicates.sum(dim=1)).clamp(min=1).to(query.dtype)
    within = (excess.detach() > 0).sum(dim=1) / negatives
    return (excess.relu().sum(dim=1) * (others / negatives)).mean() / others, within.mean()


class Ranking(nn.Module):
    """Ranking loss (Equation 4) with margin δ in both directions, over the batch of all processes."""

    def __init__(self, margin: float, world: World) -> None:
        super().__init__()
        self.margin, self.world = margin, world

    def forward(
        self, video: torch.Tensor, text: torch.Tensor, index: torch.Tensor, bank: MemoryBank
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the mean loss of this process's pairs; see `NoiseContrastive.forward`.

        Instead of posteriors, the metrics contain the fraction of negatives within the margin and
        the mean similarity of positive pairs and of all pairings in the batch.
        """
        videos, texts, target = gather_batch(video, text, self.world)
        duplicates = find_duplicates(index, bank, self.world)
        to_text, to_video = (
            ranking_loss(query, candidates, target, self.margin, duplicates)
            for query, candidates in ((video, texts), (text, videos))
        )
        losses = (to_text[0], to_video[0])
        return torch.stack(losses).sum(), {
            **{f"loss_{name}": x.detach() for name, x in zip(DIRECTIONS, losses, strict=True)},
            "within_margin": (to_text[1] + to_video[1]) / 2,
            "similarity_positive": (video * text).detach().sum(dim=1).mean(),
            "similarity_all": (video @ texts.T).detach().mean(),
        }


def gather_batch(
    video: torch.Tensor, text: torch.Tensor, world: World
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All-gather the embeddings f_v and f_t (B, D); gradients flow back. B may differ between processes.

    Returns:
        f_v and f_t of all processes, (n, D) each, and the rows of this process's pairs, (B,) int64.
    """
    both = all_gather_with_grad(torch.stack([video, text], dim=1), world)
    start = world.offset(len(video))
    rows = torch.arange(start, start + len(video), device=video.device)
    return both[:, 0], both[:, 1], rows


def find_duplicates(index: torch.Tensor, bank: MemoryBank, world: World) -> torch.Tensor | None:
    """Return `MemoryBank.duplicates` of this process's pairs (B,) among the pairs of all processes, (B, n)."""
    return None if bank.titles is None else bank.duplicates(index, world.gather_rows(index))


def exclude(scores: torch.Tensor, duplicates: torch.Tensor | None) -> torch.Tensor:
    """Set the scores (B, n) of duplicates to −∞."""
    return scores if duplicates is None else scores.masked_fill(duplicates, -torch.inf)


def all_gather_with_grad(rows: torch.Tensor, world: World) -> torch.Tensor:
    """Concatenate the rows (B, …) of all processes to (n, …), in rank order; gradients are summed back."""
    gathered: torch.Tensor = _AllGather.apply(rows, world)  # type: ignore[no-untyped-call]
    return gathered


def reduce_scatter_rows(terms: torch.Tensor, count: int, world: World) -> torch.Tensor:
    """Sum ``terms`` (n, …) over the processes, differentiably; return the ``count`` rows of this process."""
    rows: torch.Tensor = _ReduceScatter.apply(terms, count, world)  # type: ignore[no-untyped-call]
    return rows


class _AllGather(torch.autograd.Function):
    """Forward: all-gather. Backward: sum the gradients of all processes, return the local rows."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, world: World) -> torch.Tensor:
        ctx.world, ctx.count = world, len(rows)
        return world.gather_rows(rows).clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        start = ctx.world.offset(ctx.count)
        return ctx.world.sum(gradient)[start : start + ctx.count], None


class _ReduceScatter(torch.autograd.Function):
    """Forward: sum over processes and return the local rows. Backward: all-gather."""

    @staticmethod
    def forward(ctx: Any, terms: torch.Tensor, count: int, world: World) -> torch.Tensor:
        ctx.world = world
        start = world.offset(count)
        return world.sum(terms)[start : start + count].clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.world.gather_rows(gradient), None, None
