"""Cross-pair discrimination by noise-contrastive estimation (Equations 3 and 5).

A pair's text is told from m texts drawn uniformly from all N: with p(i|v) = exp(s_i/τ)/Z and the
noise distribution p_n = 1/N, the posterior of "this is the pair's own" is

    h(i) = p(i|v) / (p(i|v) + m p_n) = σ(s_i/τ − log Z − log(m/N)).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from crosspair.config import ObjectiveConfig
from crosspair.distributed import World
from crosspair.objectives.bank import MemoryBank

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

    Args:
        query: (B, D) unit vectors, f_v (or f_t).
        positive: (B, D) each query's own bank entry of the other kind, f̄ᵗ (or f̄ᵛ).
        noise: (m, D) bank entries shared by the batch, or (B, m, D) for each query its own.
        log_z: logarithm of Equation 3's denominator Σ_j exp(s_j/τ).
        pairs: N, so that p_n = 1/N.
        temperature: τ (0.07 in the paper).

    Returns:
        Means over the batch of −log h(positive), and of −Σ log(1 − h) over the m noise samples.
    """
    similarities = _similarities(query, positive, noise, temperature)
    return _terms(*_posterior_logits(*similarities, log_z, pairs))


class CrossPairNCE(nn.Module):
    """The paper's objective: −log p(i_t|v) − log p(i_v|t), each by NCE over the memory bank.

    Args:
        config: temperature, number and kind of noise samples, kind of normaliser.
        seed: of the noise.
        world: the processes that share the batch; the noise is the same on all.
    """

    log_z: torch.Tensor

    def __init__(self, config: ObjectiveConfig, seed: int, world: World) -> None:
        super().__init__()
        self.config, self.world = config, world
        self.generator = torch.Generator().manual_seed(seed)
        # Of texts given a video, and of videos given a text; NaN until the first batch.
        self.register_buffer("log_z", torch.full((2,), math.nan, device=world.device))

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
        own_video, own_text = bank.lookup(index)
        noise_video, noise_text = self._noise(len(index), bank)
        temperature = self.config.temperature
        to_text = _similarities(video, own_text, noise_text, temperature)
        to_video = _similarities(text, own_video, noise_video, temperature)
        self._estimate_z(to_text[1], to_video[1], bank.pairs)
        text_logits = _posterior_logits(*to_text, self.log_z[0], bank.pairs)
        video_logits = _posterior_logits(*to_video, self.log_z[1], bank.pairs)
        loss_to_text = torch.stack(_terms(*text_logits)).sum()
        loss_to_video = torch.stack(_terms(*video_logits)).sum()
        positive, noise = (
            torch.cat(both).detach().sigmoid().mean()
            for both in zip(text_logits, video_logits, strict=True)
        )
        return loss_to_text + loss_to_video, {
            "loss_video_to_text": loss_to_text.detach(),
            "loss_text_to_video": loss_to_video.detach(),
            "posterior_positive": positive,
            "posterior_noise": noise,
            "log_z_text": self.log_z[0].clone(),
            "log_z_video": self.log_z[1].clone(),
        }

    def get_extra_state(self) -> torch.Tensor:
        """The noise generator's state, so that a resumed run draws what it would have drawn."""
        return self.generator.get_state()

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Put back what `get_extra_state` gave."""
        self.generator.set_state(state)

    def _noise(self, batch: int, bank: MemoryBank) -> tuple[torch.Tensor, torch.Tensor]:
        """Video and text entries of pairs drawn uniformly: (m, D), or (B, m, D), each."""
        m, device = self.config.noise_samples, self.world.device
        if self.config.noise == "batch":
            drawn = torch.randint(bank.pairs, (m,), generator=self.generator)
            return bank.lookup(drawn.to(device), shared=True)
        counts = self.world.counts(batch)
        drawn = torch.randint(bank.pairs, (int(counts.sum()), m), generator=self.generator)
        begin = int(counts[: self.world.rank].sum())
        return bank.lookup(drawn[begin : begin + batch].to(device))

    @torch.no_grad()
    def _estimate_z(self, to_text: torch.Tensor, to_video: torch.Tensor, pairs: int) -> None:
        """log Z = log N + log of the mean exp(s/τ) over the noise (B, m) of all processes."""
        sums = torch.stack([to_text.flatten().logsumexp(0), to_video.flatten().logsumexp(0)])
        sums = self.world.gather_rows(sums.unsqueeze(0)).logsumexp(0)  # (2,)
        samples = self.world.counts(to_text.numel()).sum()
        estimate = sums - samples.log() + math.log(pairs)
        keep = 1.0 if self.config.normalizer == "first" else EMA
        moved = keep * self.log_z + (1 - keep) * estimate
        self.log_z.copy_(torch.where(self.log_z.isnan(), estimate, moved))


def _similarities(
    query: torch.Tensor, positive: torch.Tensor, noise: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """s/τ: (B,) with the positives and (B, m) with the noise."""
    shared = noise.dim() == 2
    of_noise = query @ noise.T if shared else torch.einsum("bd,bmd->bm", query, noise)
    return (query * positive).sum(dim=1) / temperature, of_noise / temperature


def _posterior_logits(
    positive: torch.Tensor, noise: torch.Tensor, log_z: torch.Tensor | float, pairs: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """logit h = s/τ − log Z − log(m p_n)."""
    shift = log_z + math.log(noise.shape[1] / pairs)
    return positive - shift, noise - shift


def _terms(positive: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means over the batch of −log σ(positive) and −Σ log(1 − σ(noise))."""
    return F.softplus(-positive).mean(), F.softplus(noise).sum(dim=1).mean()
