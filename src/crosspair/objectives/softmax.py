"""The exact likelihood of a discrimination: a softmax over all N classes, a chunk at a time.

What a step holds does not grow with N: logits of one chunk, and for each query log Z and the mean
class Σ_j p_j c_j, which is all that its gradient needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from crosspair.distributed import World
from crosspair.objectives.bank import MemoryBank
from crosspair.objectives.discrimination import Discrimination, step_metrics

CHUNK = 1 << 14  # classes whose logits are there at a time


class ExactSoftmax(nn.Module):
    """−log p(own class), summed over the distributions of a discrimination.

    Args:
        discrimination: what is told from what.
    """

    def __init__(self, discrimination: Discrimination) -> None:
        super().__init__()
        self.discrimination = discrimination

    def forward(
        self, video: torch.Tensor, text: torch.Tensor, index: torch.Tensor, bank: MemoryBank
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of a batch; arguments and returns as of `NoiseContrastive`.

        The posterior is the softmax probability, of the noise that of the mean other class;
        log Z is the mean over the batch.
        """
        task = self.discrimination
        queries = task.queries(video, text)
        positives = [
            (query * own).sum(dim=1) / task.temperature
            for query, own in zip(queries, task.lookup(index, bank), strict=True)
        ]
        log_zs = [
            log_normalizer(query, classes, task.temperature, task.world)
            for query, classes in zip(queries, task.classes(bank), strict=True)
        ]
        return nll_loss(positives, log_zs, bank.pairs, task.names)


def log_normalizer(
    query: torch.Tensor, classes: Sequence[torch.Tensor], temperature: float, world: World
) -> torch.Tensor:
    """log Σ_j exp(q·c_j/τ) over the classes of all processes, with its gradient.

    Args:
        query: (B, d) this process's queries.
        classes: this process's, as columns (n, d₁), (n, d₂), … that sum up to d; or weights
            (n, d) that learn, all of them on every process.
        temperature: τ.
        world: the processes that the classes are spread over; that of one where they learn.

    Returns:
        (B,).
    """
    log_z: torch.Tensor = _LogNormalizer.apply(query, temperature, world, *classes)  # type: ignore[no-untyped-call]
    return log_z


def nll_loss(
    positives: Sequence[torch.Tensor],
    log_zs: Sequence[torch.Tensor],
    count: int,
    names: Mapping[str, str],
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The negative log-likelihood, summed over distributions, and scalars to log.

    Args:
        positives: for each distribution s⁺/τ (B,).
        log_zs: for each distribution log Z (B,).
        count: of classes.
        names: of the distributions, see `Discrimination`.
    """
    each = [(log_z - positive).mean() for positive, log_z in zip(positives, log_zs, strict=True)]
    own = (torch.cat([*positives]) - torch.cat([*log_zs])).detach().exp().mean()
    means = [log_z.detach().mean() for log_z in log_zs]
    return torch.stack(each).sum(), step_metrics(
        names, each, means, own, (1 - own) / max(count - 1, 1)
    )


class _LogNormalizer(torch.autograd.Function):
    """∂log Z/∂q = Σ_j p_j c_j/τ is summed up on the way forward; ∂log Z/∂c_j = p_j q/τ, which
    learned classes need, takes a second way through the chunks."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, temperature: float, world: World, *classes: torch.Tensor
    ) -> torch.Tensor:
        log_here, mean_here = _over_chunks(world.gather_rows(query), classes, temperature)
        log_z = world.gather_rows(log_here.unsqueeze(0)).logsumexp(dim=0)  # (B of all processes,)
        mean = world.sum(mean_here * (log_here - log_z).exp().unsqueeze(1))
        begin = world.offset(len(query))
        log_z, mean = (of_all[begin : begin + len(query)] for of_all in (log_z, mean))
        ctx.temperature = temperature
        if any(ctx.needs_input_grad[3:]):
            (weights,) = classes
            assert world.size == 1, "every process holds all weights, and no others' queries"
            ctx.save_for_backward(query, log_z, mean, weights)
        else:
            ctx.save_for_backward(query, log_z, mean)
        return log_z

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, log_z, mean, *learned = ctx.saved_tensors
        scaled = gradient.unsqueeze(1) / ctx.temperature  # (B, 1)
        of_classes: list[torch.Tensor | None] = [None] * (len(ctx.needs_input_grad) - 3)
        for weights in learned:
            rows = []
            for chunk in _chunks([weights], query.dtype):
                p = (query @ chunk.T / ctx.temperature - log_z.unsqueeze(1)).exp()  # (B, chunk)
                rows.append(p.T @ (query * scaled))
            of_classes = [torch.cat(rows)]
        return mean * scaled, None, None, *of_classes


def _over_chunks(
    query: torch.Tensor, classes: Sequence[torch.Tensor], temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """log Z (B,) and the mean class (B, d) over these classes alone."""
    log_z = query.new_full((len(query),), -torch.inf)
    mean = torch.zeros_like(query)
    for chunk in _chunks(classes, query.dtype):
        logits = query @ chunk.T / temperature  # (B, chunk)
        larger = torch.logaddexp(log_z, logits.logsumexp(dim=1))
        mean *= (log_z - larger).exp().unsqueeze(1)
        mean += (logits - larger.unsqueeze(1)).exp() @ chunk
        log_z = larger
    return log_z, mean


def _chunks(classes: Sequence[torch.Tensor], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The classes (≤ CHUNK, d) of each chunk in turn."""
    for begin in range(0, len(classes[0]), CHUNK):
        columns = [each[begin : begin + CHUNK].to(dtype) for each in classes]
        yield columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)
