"""Noise-contrastive estimation (NCE, Equation 5) of a discrimination among N classes.

Each query is discriminated from m noise samples drawn uniformly from all N classes. With
p(i) = exp(s_i/τ)/Z and the noise distribution p_n = 1/N, the posterior that i is the positive is

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
from crosspair.objectives.in_batch import all_gather_with_grad, exclude, reduce_scatter_rows

logger = logging.getLogger(__name__)

Dots = Callable[[torch.Tensor, Sequence[torch.Tensor], torch.Tensor], torch.Tensor]


def nce_loss(
    query: torch.Tensor,
    positive: torch.Tensor,
    noise: torch.Tensor,
    *,
    log_z: torch.Tensor | float,
    pairs: int,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute both terms of Equation 5, in log space.

    The gradient with respect to a query f is

        ∂L/∂f = −[1 − h(i⁺)]/τ·c⁺ + Σ_k h(i_k)/τ·c_k    (k over the m noise samples),

    which is Appendix A.1 with the sum over the noise written out. Z is treated as a constant. See
    `docs/objectives.md` for the difference from the gradient of the exact likelihood.

    Args:
        query: (B, D) unit vectors, f_v (or f_t).
        positive: (B, D) class of each query: the bank's f̄ᵗ (or f̄ᵛ).
        noise: (m, D) noise samples shared by the batch, or (B, m, D) for each query.
        log_z: logarithm of Equation 3's denominator Σ_j exp(s_j/τ).
        pairs: number of pairs N; p_n = 1/N.
        temperature: τ (0.07 in the paper).

    Returns:
        The batch means of −log h(positive) and of −Σ log(1 − h) over the m noise samples.
    """
    positive_score = (query * positive).sum(dim=1) / temperature
    noise_scores = _dot_products(query, noise) / temperature
    return _loss_terms(*_posterior_logits(positive_score, noise_scores, log_z, pairs))


class NoiseContrastive(nn.Module):
    """NCE estimate of −log p(positive), summed over the distributions of a discrimination.

    Args:
        discrimination: queries and classes.
        config: number and kind of noise samples, and kind of normaliser.
        seed: seed of the noise samples, which are the same on all processes.
        world: processes that the batch is distributed over.

    Attributes:
        log_z: (K,) log Z of each distribution, once there was a batch.
        first_microbatch: whether the next batch begins a step. Z does not change with the other micro-batches.
    """

    log_z: torch.Tensor
    weight: torch.Tensor

    def __init__(self, discrimination: Discrimination, config: ObjectiveConfig, seed: int, world: World) -> None:
        super().__init__()
        self.discrimination, self.config, self.world = discrimination, config, world
        self.generator = torch.Generator().manual_seed(seed)
        self.first_microbatch = True
        self.register_buffer("log_z", torch.zeros(len(discrimination.names), device=world.device))
        # Sum of the weights of all estimates in the moving average: 1 − decayᵗ after t of them.
        self.register_buffer("weight", torch.zeros((), device=world.device))

    def forward(
        self, video: torch.Tensor, text: torch.Tensor, index: torch.Tensor, bank: MemoryBank
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the loss of a batch.

        Args:
            video: (B, D) f_v, unit vectors.
            text: (B, D) f_t, unit vectors.
            index: (B,) int64, rows of the pairs in the bank.
            bank: memory bank; not modified.

        Returns:
            The loss, a scalar to minimise, and scalar metrics to log.
        """
        task = self.discrimination
        queries = task.queries(video, text)
        similarities = [
            ((query * positive).sum(dim=1) / task.temperature, noise / task.temperature)
            for query, positive, noise in zip(
                queries, task.lookup(index, bank), self._noise_similarities(queries, index, bank), strict=True
            )
        ]
        if self.first_microbatch:
            self._update_log_z([noise for _, noise in similarities], bank.pairs)
        logits = [
            _posterior_logits(*scores, log_z, bank.pairs)
            for scores, log_z in zip(similarities, self.log_z, strict=True)
        ]
        losses = [torch.stack(_loss_terms(*pair)).sum() for pair in logits]
        positive, noise = (torch.cat(values).detach().sigmoid().mean() for values in zip(*logits, strict=True))
        return torch.stack(losses).sum(), step_metrics(task.names, losses, self.log_z, positive, noise)

    def get_extra_state(self) -> torch.Tensor:
        """Return the state of the noise generator, so that a resumed run draws the same samples."""
        return self.generator.get_state()

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Restore the state of the noise generator."""
        self.generator.set_state(state)

    def _noise_similarities(
        self, queries: Sequence[torch.Tensor], index: torch.Tensor, bank: MemoryBank
    ) -> list[torch.Tensor]:
        """Draw noise and return its dot products (B, m) with the queries of each distribution, −∞ of duplicates."""
        task, m, batch = self.discrimination, self.config.noise_samples, len(queries[0])
        if self.config.noise == "batch":
            samples = to_device(torch.randint(bank.pairs, (m,), generator=self.generator), self.world.device)
            noise = task.lookup(samples, bank, shared=True)
            dots = [_dot_products(*operands) for operands in zip(queries, noise, strict=True)]
            duplicates = bank.duplicates(index, samples)
            return [exclude(scores, duplicates) for scores in dots]
        counts = self.world.gather_counts(batch)
        samples = torch.randint(bank.pairs, (int(counts.sum()), m), generator=self.generator)
        start = int(counts[: self.world.rank].sum())
        own_rows = to_device(samples[start : start + batch], self.world.device)
        rows = task.world.gather_rows(own_rows)  # a no-op if the classes are not sharded
        duplicates = bank.duplicates(index, own_rows)
        return [
            exclude(sharded_gather_dot(query, columns, rows, task.world), duplicates)
            for query, columns in zip(queries, task.classes(bank), strict=True)
        ]

    @torch.no_grad()
    def _update_log_z(self, noises: Sequence[torch.Tensor], pairs: int) -> None:
        """Set ``log_z`` at first, then keep it or average it, with bias correction.

        An estimate is log N + log mean exp(s/τ) over all processes' noise s/τ (B, m).
        """
        sums = torch.stack([noise.flatten().logsumexp(0) for noise in noises])
        sums = self.world.gather_rows(sums.unsqueeze(0)).logsumexp(0)  # (K,)
        samples = self.world.gather_counts(noises[0].numel()).sum()
        estimate = sums - samples.log() + math.log(pairs)
        decay = self.config.normalizer_decay
        weight = decay * self.weight + (1 - decay)
        fraction = (1 - decay) / weight  # of the new estimate: 1, then about 1/2, 1/3, …
        if self.config.normalizer == "first":
            fraction = (self.weight == 0).to(fraction.dtype)
        self.log_z += fraction * (estimate - self.log_z)
        self.weight.copy_(weight)


def _dot_products(query: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Multiply queries (B, d) by noise (m, d) or (B, m, d); returns (B, m)."""
    return query @ noise.T if noise.dim() == 2 else torch.einsum("bd,bmd->bm", query, noise)


def _posterior_logits(
    positive: torch.Tensor, noise: torch.Tensor, log_z: torch.Tensor | float, pairs: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute logit h = s/τ − log Z − log(m p_n) of positives (B,) and noise (B, m)."""
    shift = log_z + math.log(noise.shape[1] / pairs)
    return positive - shift, noise - shift


def _loss_terms(positive: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the batch means of −log σ(positive) and −Σ log(1 − σ(noise))."""
    return F.softplus(-positive).mean(), F.softplus(noise).sum(dim=1).mean()


def sharded_gather_dot(
    query: torch.Tensor, columns: Sequence[torch.Tensor], rows: torch.Tensor, world: World
) -> torch.Tensor:
    """Dot product of each query with its rows of a table sharded across processes.

    Queries are all-gathered and similarities reduce-scattered, so communication for n queries with
    m rows each is O(n(m + d)) rather than O(nmd).

    Args:
        query: (B, d) queries of this process.
        columns: this process's rows of the table (row i is on process i % world.size), as in `gather_dot`.
        rows: (n, m) int64, rows of the table for the queries of all processes, in rank order.
        world: processes that the table is sharded over.

    Returns:
        (B, m), differentiable as in `gather_dot`.
    """
    local = rows % world.size == world.rank
    local_rows = torch.where(local, rows // world.size, 0)
    queries = all_gather_with_grad(query, world)
    return reduce_scatter_rows(gather_dot(queries, columns, local_rows) * local, len(query), world)


def gather_dot(query: torch.Tensor, columns: Sequence[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """Dot product of each query with its rows of a table.

    Args:
        query: (B, d).
        columns: the table as blocks of columns (N, d₁), (N, d₂), … with Σ d_i = d; float32 or bfloat16.
        rows: (B, m) int64, 0 to N - 1.

    Returns:
        (B, m), differentiable with respect to ``query`` and to columns that require a gradient.
    """
    kernel = _triton_kernel() if query.is_cuda and not any(c.requires_grad for c in columns) else None
    return (kernel or gather_dot_reference)(query, columns, rows)


def gather_dot_reference(query: torch.Tensor, columns: Sequence[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """Compute `gather_dot` in plain PyTorch; materialises (B, m, d) values."""
    table = torch.cat([column[rows] for column in columns], dim=-1)  # (B, m, d)
    return torch.einsum("bd,bmd->bm", query, table.to(query.dtype))


@functools.cache
def _triton_kernel() -> Dots | None:
    """Return `triton_gather_dot`; None, with a warning, if Triton is not installed."""
    try:
        from crosspair.objectives.triton_dots import triton_gather_dot
    except ImportError as error:
        logger.warning("Triton is not available (%s): noise=pair is slower and uses more memory", error)
        return None
    return triton_gather_dot
