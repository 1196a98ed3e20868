"""Noise-contrastive estimation (Equation 5) of a discrimination among N classes.

A query's own class is told from m classes drawn uniformly from all N: with p(i) = exp(s_i/τ)/Z and
the noise distribution p_n = 1/N, the posterior of "this is the query's own" is

    h(i) = p(i) / (p(i) + m p_n) = σ(s_i/τ − log Z − log(m/N)).
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from crosspair.config import ObjectiveConfig
from crosspair.device import to_device
from crosspair.distributed import World
from crosspair.objectives.bank import MemoryBank
from crosspair.objectives.discrimination import Discrimination, step_metrics
from crosspair.objectives.in_batch import all_gather_with_grad, reduce_scatter_rows

logger = logging.getLogger(__name__)

EMA = 0.99  # share of the old estimate of log Z that a step keeps


def nce_loss(
    query: torch.Tensor,
    positive: torch.Tensor,
    noise: torch.Tensor,
    *,
    log_z: torch.Tensor | float,
    pairs: int,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both terms of Equation 5, in log space.

    With h as above, the gradient with respect to a query f is

        ∂L/∂f = −[1 − h(i⁺)]/τ·c⁺ + Σ_k h(i_k)/τ·c_k    (k over the m noise samples),

    which is Appendix A.1's form with its sum over the noise; h holds the m p_n that the appendix
    leaves unsaid, and Z counts as a constant. See `docs/objectives.md` for how far it is from the
    gradient of the exact likelihood.

    Args:
        query: (B, D), as unit vectors f_v (or f_t).
        positive: (B, D) each query's own class, as the bank's f̄ᵗ (or f̄ᵛ).
        noise: (m, D) classes shared by the batch, or (B, m, D) for each query its own.
        log_z: logarithm of Equation 3's denominator Σ_j exp(s_j/τ).
        pairs: N, so that p_n = 1/N.
        temperature: τ (0.07 in the paper).

    Returns:
        Means over the batch of −log h(positive), and of −Σ log(1 − h) over the m noise samples.
    """
    own = (query * positive).sum(dim=1) / temperature
    of_noise = _dots(query, noise) / temperature
    return _terms(*_posterior_logits(own, of_noise, log_z, pairs))


class NoiseContrastive(nn.Module):
    """−log p(own class) by NCE, summed over the distributions of a discrimination.

    Args:
        discrimination: what is told from what.
        config: number and kind of noise samples, kind of normaliser.
        seed: of the noise.
        world: the processes that share the batch; the noise is the same on all.
    """

    log_z: torch.Tensor

    def __init__(
        self, discrimination: Discrimination, config: ObjectiveConfig, seed: int, world: World
    ) -> None:
        super().__init__()
        self.discrimination, self.config, self.world = discrimination, config, world
        self.generator = torch.Generator().manual_seed(seed)
        # One for each distribution; NaN until the first batch.
        unknown = torch.full((len(discrimination.names),), math.nan, device=world.device)
        self.register_buffer("log_z", unknown)

    def forward(
        self, video: torch.Tensor, text: torch.Tensor, index: torch.Tensor, bank: MemoryBank
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of a batch.

        Args:
            video: (B, D) f_v, unit vectors.
            text: (B, D) f_t, unit vectors.
            index: (B,) int64, the pairs' rows in the bank.
            bank: the memory bank; read, not changed.

        Returns:
            The loss, a scalar to minimise, and scalars to log.
        """
        task = self.discrimination
        queries = task.queries(video, text)
        similarities = [
            ((query * own).sum(dim=1) / task.temperature, of_noise / task.temperature)
            for query, own, of_noise in zip(
                queries, task.lookup(index, bank), self._of_noise(queries, bank), strict=True
            )
        ]
        self._estimate_z([noise for _, noise in similarities], bank.pairs)
        logits = [
            _posterior_logits(*each, log_z, bank.pairs)
            for each, log_z in zip(similarities, self.log_z, strict=True)
        ]
        losses = [torch.stack(_terms(*each)).sum() for each in logits]
        positive, noise = (
            torch.cat(every).detach().sigmoid().mean() for every in zip(*logits, strict=True)
        )
        return torch.stack(losses).sum(), step_metrics(
            task.names, losses, self.log_z, positive, noise
        )

    def get_extra_state(self) -> torch.Tensor:
        """The noise generator's state, so that a resumed run draws what it would have drawn."""
        return self.generator.get_state()

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Put back what `get_extra_state` gave."""
        self.generator.set_state(state)

    def _of_noise(self, queries: Sequence[torch.Tensor], bank: MemoryBank) -> list[torch.Tensor]:
        """Each query times classes of pairs drawn uniformly, (B, m), for each distribution."""
        task, m, batch = self.discrimination, self.config.noise_samples, len(queries[0])
        if self.config.noise == "batch":
            drawn = torch.randint(bank.pairs, (m,), generator=self.generator)
            noises = task.lookup(to_device(drawn, self.world.device), bank, shared=True)
            return [_dots(*each) for each in zip(queries, noises, strict=True)]
        counts = self.world.counts(batch)
        drawn = torch.randint(bank.pairs, (int(counts.sum()), m), generator=self.generator)
        begin = int(counts[: self.world.rank].sum())
        rows = to_device(drawn[begin : begin + batch], self.world.device)
        rows = task.world.gather_rows(rows)  # for all processes that the classes are spread over
        return [
            sharded_gather_dot(*each, rows, task.world)
            for each in zip(queries, task.classes(bank), strict=True)
        ]

    @torch.no_grad()
    def _estimate_z(self, noises: Sequence[torch.Tensor], pairs: int) -> None:
        """log Z = log N + log of the mean exp(s/τ) over the noise (B, m) of all processes."""
        sums = torch.stack([noise.flatten().logsumexp(0) for noise in noises])
        sums = self.world.gather_rows(sums.unsqueeze(0)).logsumexp(0)  # (K,)
        samples = self.world.counts(noises[0].numel()).sum()
        estimate = sums - samples.log() + math.log(pairs)
        keep = 1.0 if self.config.normalizer == "first" else EMA
        moved = keep * self.log_z + (1 - keep) * estimate
        self.log_z.copy_(torch.where(self.log_z.isnan(), estimate, moved))


def _dots(query: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """(B, m): queries (B, d) times (m, d) or (B, m, d)."""
    return query @ noise.T if noise.dim() == 2 else torch.einsum("bd,bmd->bm", query, noise)


def _posterior_logits(
    positive: torch.Tensor, noise: torch.Tensor, log_z: torch.Tensor | float, pairs: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """logit h = s/τ − log Z − log(m p_n)."""
    shift = log_z + math.log(noise.shape[1] / pairs)
    return positive - shift, noise - shift


def _terms(positive: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means over the batch of −log σ(positive) and −Σ log(1 − σ(noise))."""
    return F.softplus(-positive).mean(), F.softplus(noise).sum(dim=1).mean()


Dots = Callable[[torch.Tensor, Sequence[torch.Tensor], torch.Tensor], torch.Tensor]


def sharded_gather_dot(
    query: torch.Tensor, columns: Sequence[torch.Tensor], rows: torch.Tensor, world: World
) -> torch.Tensor:
    """Each query times its own rows of a table that is spread over processes.

    Queries travel to the rows, and similarities back: with m rows of d values for each of n queries
    n·(m + d) values, and not n·m·d.

    Args:
        query: (B, d) of this process.
        columns: this process's rows of the table, of which row i is on i % world.size; otherwise as
            of `gathered_dots`.
        rows: (n, m) int64, for the queries of all processes one after another.
        world: the processes that the table is spread over.

    Returns:
        (B, m), with a gradient as that of `gathered_dots`.
    """
    mine = rows % world.size == world.rank
    here = torch.where(mine, rows // world.size, 0)
    return reduce_scatter_rows(
        gather_dot(all_gather_with_grad(query, world), columns, here) * mine, len(query), world
    )


def gather_dot(
    query: torch.Tensor, columns: Sequence[torch.Tensor], rows: torch.Tensor
) -> torch.Tensor:
    """Each query times its own rows of a table.

    Args:
        query: (B, d).
        columns: the table, as columns (N, d₁), (N, d₂), … that sum up to d; float32 or bfloat16.
        rows: (B, m) int64, 0 to N - 1.

    Returns:
        (B, m), with a gradient for the queries, and for the table where that learns.
    """
    kernel = _kernel() if query.is_cuda and not any(c.requires_grad for c in columns) else None
    return (kernel or gather_dot_reference)(query, columns, rows)


def gather_dot_reference(
    query: torch.Tensor, columns: Sequence[torch.Tensor], rows: torch.Tensor
) -> torch.Tensor:
    """`gathered_dots` anywhere; it holds (B, m, d) values."""
    table = torch.cat([column[rows] for column in columns], dim=-1)  # (B, m, d)
    return torch.einsum("bd,bmd->bm", query, table.to(query.dtype))


@functools.cache
def _kernel() -> Dots | None:
    try:
        from crosspair.objectives.triton_dots import triton_gather_dot
    except ImportError as error:
        logger.warning("no Triton (%s): noise of each pair takes more memory and time", error)
        return None
    return triton_gather_dot
