"""InfoNCE within the batch: loop reference, hand-computed values, torch's cross-entropy."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspair.distributed import World
from crosspair.objectives import InBatch
from tests.objectives.pairs import bank_of, unit


def slow_in_batch(query, candidates, temperature):
    """The mean of −log exp(s_ii/τ) / Σ_j exp(s_ij/τ), and of that probability."""
    n, total, own = len(query), 0.0, 0.0
    for i in range(n):
        scores = [math.exp(float(query[i] @ candidates[j]) / temperature) for j in range(n)]
        total -= math.log(scores[i] / sum(scores))
        own += scores[i] / sum(scores)
    return total / n, own / n


@settings(max_examples=40)
@given(n=st.integers(1, 8), temperature=st.floats(0.03, 2), seed=st.integers(0, 1000))
def test_loss_matches_reference(n, temperature, seed) -> None:
    video, text = unit(n, 5, seed=seed), unit(n, 5, seed=seed + 1)
    loss, scalars = InBatch(temperature, World())(video, text, torch.arange(n), bank_of(n, 5))
    (to_text, p_text), (to_video, p_video) = (
        slow_in_batch(*both, temperature) for both in ((video, text), (text, video))
    )
    assert float(scalars["loss_video_to_text"]) == pytest.approx(to_text, rel=1e-9, abs=1e-12)
    assert float(scalars["loss_text_to_video"]) == pytest.approx(to_video, rel=1e-9, abs=1e-12)
    assert float(loss) == pytest.approx(to_text + to_video, rel=1e-9, abs=1e-12)
    own = (p_text + p_video) / 2
    assert float(scalars["posterior_positive"]) == pytest.approx(own, rel=1e-9)
    others = (1 - own) / max(n - 1, 1)
    assert float(scalars["posterior_noise"]) == pytest.approx(others, abs=1e-12)


def test_hand_computed_values() -> None:
    # Two pairs, similarities 1 (positive) and 0 (negative); τ = 1: −log p = log(1 + 1/e).
    both = torch.eye(2, dtype=torch.float64)
    loss, _ = InBatch(1.0, World())(both, both, torch.arange(2), bank_of(2, 2))
    assert float(loss) == pytest.approx(2 * math.log(1 + math.exp(-1)), rel=1e-12)


def test_half_the_loss_is_clip_symmetric_cross_entropy() -> None:
    video, text = unit(6, 5).requires_grad_(), unit(6, 5, seed=1)
    loss, _ = InBatch(0.07, World())(video, text, torch.arange(6), bank_of(6, 5))
    (ours,) = torch.autograd.grad(loss / 2, video)
    logits, labels = video @ text.T / 0.07, torch.arange(6)
    clip = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(loss / 2, clip)
    torch.testing.assert_close(ours, *torch.autograd.grad(clip, video))


def test_bank_and_index_are_ignored() -> None:
    video, text = unit(4, 5), unit(4, 5, seed=1)
    objective = InBatch(0.07, World())
    one, _ = objective(video, text, torch.arange(4), bank_of(4, 5))
    other, _ = objective(video, text, torch.arange(4).flip(0), bank_of(9, 5, seed=3))
    assert float(one) == float(other)
