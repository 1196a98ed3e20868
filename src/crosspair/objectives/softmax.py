"""Exact likelihood of a discrimination: a softmax over all N classes, computed in chunks.

Memory does not grow with N. A step keeps the logits of one chunk and, for each query, log Z and the
mean class Σ_j p_j c_j, from which the gradient follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from crosspair.distributed import World
from crosspair.objectives.bank import MemoryBank
from crosspair.objectives.discrimination import Discrimination, LearnedTemperature, step_metrics

CHUNK = 1 << 14  # classes per chunk
EXCLUDED = -1e9  # logit of a class that is no negative; finite, since a chunk may have no other class

Duplicates = Callable[[torch.Tensor], torch.Tensor | None]  # see `MemoryBank.duplicates`; from classes (n,) to (B, n)


class ExactSoftmax(nn.Module):
    """Exact −log p(positive), summed over the distributions of a discrimination.

    Args:
        discrimination: queries and classes.
        learnable: whether τ is learned, starting at that of the discrimination.
    """

    def __init__(self, discrimination: Discrimination, learnable: bool = False) -> None:
        super().__init__()
        self.discrimination, self.temperature = discrimination, None
        if learnable:
            self.temperature = LearnedTemperature(discrimination.temperature, discrimination.world.device)

    def forward(
        self, video: torch.Tensor, text: torch.Tensor, index: torch.Tensor, bank: MemoryBank
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the loss of a batch; see `NoiseContrastive.forward`.

        The logged posterior is the softmax probability, that of noise the mean probability of a
        wrong class, and log Z the batch mean.
        """
        task = self.discrimination
        queries, temperature, learned = task.queries(video, text), task.temperature, {}
        if self.temperature is not None:  # its gradient flows through the queries
            tau, temperature = self.temperature(), 1.0
            queries, learned = [query / tau for query in queries], {"temperature": tau.detach()}
        positives = [
            (query * positive).sum(dim=1) / temperature
            for query, positive in zip(queries, task.lookup(index, bank), strict=True)
        ]
        all_pairs = index if bank.titles is None else task.world.gather_rows(index)
        log_zs = [
            log_normalizer(query, classes, temperature, task.world, partial(bank.duplicates, all_pairs))
            for query, classes in zip(queries, task.classes(bank), strict=True)
        ]
        loss, metrics = nll_loss(positives, log_zs, bank.pairs, task.names)
        return loss, {**metrics, **learned}


def nll_loss(
    positives: Sequence[torch.Tensor], log_zs: Sequence[torch.Tensor], classes: int, names: Mapping[str, str]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Compute the batch mean of −log p = log Z − s⁺/τ, summed over distributions, and metrics.

    Args:
        positives: s⁺/τ (B,) of each distribution.
        log_zs: log Z (B,) of each distribution.
        classes: number of classes.
        names: log names of the distributions; see `Discrimination`.
    """
    losses = [(log_z - positive).mean() for positive, log_z in zip(positives, log_zs, strict=True)]
    posterior = (torch.cat([*positives]) - torch.cat([*log_zs])).detach().exp().mean()
    means = [log_z.detach().mean() for log_z in log_zs]
    return torch.stack(losses).sum(), step_metrics(
        names, losses, means, posterior, (1 - posterior) / max(classes - 1, 1)
    )


def log_normalizer(
    query: torch.Tensor,
    classes: Sequence[torch.Tensor],
    temperature: float,
    world: World,
    duplicates: Duplicates = lambda _: None,
) -> torch.Tensor:
    """Compute log Σ_j exp(q·c_j/τ) over the classes of all processes, differentiably.

    Args:
        query: (B, d) queries of this process.
        classes: classes of this process as blocks of columns (n, d₁), (n, d₂), … with Σ d_i = d;
            or one block (n, d) of learned weights, complete on every process.
        temperature: τ.
        world: processes that the classes are sharded over; a single process for learned weights.
        duplicates: which of some classes (n,) to leave out of the sum for the queries of all processes; None: all
            classes are in it, as those of learned weights must be.

    Returns:
        (B,).
    """
    log_z: torch.Tensor
    log_z = _LogNormalizer.apply(query, temperature, world, duplicates, *classes)  # type: ignore[no-untyped-call]
    return log_z


class _LogNormalizer(torch.autograd.Function):
    """Compute log Z (B,); the forward pass also accumulates ∂log Z/∂q = Σ_j p_j c_j/τ.

    ∂log Z/∂c_j = p_j q/τ, needed only by learned classes, takes a second pass over the chunks.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, temperature: float, world: World, duplicates: Duplicates, *classes: torch.Tensor
    ) -> torch.Tensor:
        local_log_z, local_mean = _reduce_chunks(world.gather_rows(query), classes, temperature, world, duplicates)
        log_z = world.gather_rows(local_log_z.unsqueeze(0)).logsumexp(dim=0)  # (n,)
        mean = world.sum(local_mean * (local_log_z - log_z).exp().unsqueeze(1))
        start = world.offset(len(query))
        log_z, mean = (values[start : start + len(query)] for values in (log_z, mean))
        ctx.temperature = temperature
        if any(ctx.needs_input_grad[4:]):
            (weights,) = classes
            assert world.size == 1, "learned classes are not sharded"
            ctx.save_for_backward(query, log_z, mean, weights)
        else:
            ctx.save_for_backward(query, log_z, mean)
        return log_z

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, log_z, mean, *learned = ctx.saved_tensors
        scaled = gradient.unsqueeze(1) / ctx.temperature  # (B, 1)
        class_gradients: list[torch.Tensor | None] = [None] * (len(ctx.needs_input_grad) - 4)
        for weights in learned:
            rows = []
            for chunk in _iter_chunks([weights], query.dtype):
                p = (query @ chunk.T / ctx.temperature - log_z.unsqueeze(1)).exp()  # (B, chunk)
                rows.append(p.T @ (query * scaled))
            class_gradients = [torch.cat(rows)]
        return mean * scaled, None, None, None, *class_gradients


def _reduce_chunks(
    query: torch.Tensor, classes: Sequence[torch.Tensor], temperature: float, world: World, duplicates: Duplicates
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute log Z (B,) and the mean class Σ_j p_j c_j (B, d) over the given classes, chunk by chunk."""
    log_z = query.new_full((len(query),), -torch.inf)
    mean = torch.zeros_like(query)
    row = 0
    for chunk in _iter_chunks(classes, query.dtype):
        logits = query @ chunk.T / temperature  # (B, chunk)
        rows = torch.arange(row, row + len(chunk), device=query.device)
        row += len(chunk)
        if (excluded := duplicates(rows * world.size + world.rank)) is not None:
            logits = logits.masked_fill(excluded, EXCLUDED)
        new_log_z = torch.logaddexp(log_z, logits.logsumexp(dim=1))
        mean *= (log_z - new_log_z).exp().unsqueeze(1)
        mean += (logits - new_log_z.unsqueeze(1)).exp() @ chunk
        log_z = new_log_z
    return log_z, mean


def _iter_chunks(classes: Sequence[torch.Tensor], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Yield the classes in chunks (≤ CHUNK, d) of type ``dtype``, with the blocks of columns joined."""
    for start in range(0, len(classes[0]), CHUNK):
        columns = [block[start : start + CHUNK].to(dtype) for block in classes]
        yield columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)
