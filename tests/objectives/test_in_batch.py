"""Objectives within the batch (InfoNCE, Equation 4): loop references, hand-computed values, gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspair.distributed import World
from crosspair.objectives import InBatch, LearnedTemperature, Ranking, SigLIP, ranking_loss
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


def test_soft_targets() -> None:
    temperature, t, n = 0.3, 0.2, 5
    video, text = unit(n, 4), unit(n, 4, seed=1).requires_grad_()
    loss, _ = InBatch(temperature, World(), t)(video, text, torch.arange(n), bank_of(n, 4))
    expected = 0.0
    for i in range(n):
        similar = [math.exp(float(text[i].detach() @ text[j].detach()) / t) for j in range(n)]
        for query, candidates in ((video, text), (text, video)):
            scores = [float(query[i].detach() @ candidates[j].detach()) / temperature for j in range(n)]
            log_z = math.log(sum(map(math.exp, scores)))
            expected += sum(q / sum(similar) * (log_z - s) for q, s in zip(similar, scores, strict=True)) / n
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    targets = (text @ text.T / t).softmax(dim=1).detach()  # constants: no gradient through the targets
    logits = video @ text.T / temperature
    reference = sum(F.cross_entropy(scores, targets) for scores in (logits, logits.T))
    torch.testing.assert_close(*(torch.autograd.grad(each, text, retain_graph=True) for each in (loss, reference)))


def test_identical_titles_share_their_targets() -> None:
    # Two pairs with one title: each is half the target, so both videos have the same loss, log 2 for equal scores.
    video, text = unit(2, 4), unit(1, 4, seed=1).expand(2, 4)
    _, metrics = InBatch(1.0, World(), 0.5)(video, text, torch.arange(2), bank_of(2, 4))
    assert float(metrics["loss_video_to_text"]) == pytest.approx(math.log(2), rel=1e-9)


# --- learned temperature and SigLIP -------------------------------------------------------------


def test_learned_temperature() -> None:
    video, text, tau = unit(5, 4), unit(5, 4, seed=1), 0.3
    learned = InBatch(tau, World(), learnable=True).double()
    loss, metrics = learned(video, text, torch.arange(5), bank_of(5, 4))
    fixed, _ = InBatch(tau, World())(video, text, torch.arange(5), bank_of(5, 4))
    torch.testing.assert_close(loss, fixed, rtol=1e-6, atol=0)
    assert float(metrics["temperature"]) == pytest.approx(tau, rel=1e-6)
    loss.backward()
    step = 1e-4
    at_both_sides = [InBatch(tau / math.exp(d), World())(video, text, torch.arange(5), bank_of(5, 4))[0]
              for d in (step, -step)]  # fmt: skip
    slope = float(at_both_sides[0] - at_both_sides[1]) / (2 * step)
    assert float(learned.temperature.log_scale.grad) == pytest.approx(slope, rel=1e-4)


def test_inverse_temperature_is_at_most_100() -> None:
    temperature = LearnedTemperature(0.001, torch.device("cpu"))
    assert temperature().item() == pytest.approx(0.01)
    temperature().backward()
    assert float(temperature.log_scale.grad) == pytest.approx(-0.01)  # it can leave the bound


@settings(max_examples=30)
@given(n=st.integers(1, 7), seed=st.integers(0, 1000), tau=st.floats(0.05, 1), bias=st.floats(-12, 3))
def test_siglip_matches_reference(n, seed, tau, bias) -> None:
    video, text = unit(n, 5, seed=seed), unit(n, 5, seed=seed + 1)
    objective = SigLIP(World()).double()
    with torch.no_grad():
        objective.temperature.log_scale.fill_(-math.log(tau))
        objective.bias.fill_(bias)
    loss, metrics = objective(video, text, torch.arange(n), bank_of(n, 5))
    total, posteriors = 0.0, {True: [], False: []}
    for i in range(n):
        for j in range(n):
            logit = float(video[i] @ text[j]) / tau + bias
            total += math.log(1 + math.exp(-logit if i == j else logit)) / n
            posteriors[i == j].append(1 / (1 + math.exp(-logit)))
    assert float(loss) == pytest.approx(total, rel=1e-9, abs=1e-12)
    for name, pairs in (("positive", True), ("noise", False)):
        expected = sum(posteriors[pairs]) / max(len(posteriors[pairs]), 1)
        assert float(metrics[f"posterior_{name}"]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_hand_computed_initial_value_of_siglip() -> None:
    # Two orthogonal pairs: logits 1/0.1 − 10 = 0 of pairs, −10 of the others: log 2 + log(1 + e⁻¹⁰) for each video.
    both = torch.eye(2)
    loss, _ = SigLIP(World())(both, both, torch.arange(2), bank_of(2, 2))
    assert float(loss) == pytest.approx(math.log(2) + math.log(1 + math.exp(-10)), rel=1e-6)


# --- ranking ------------------------------------------------------------------------------------


def slow_ranking(query, candidates, margin):
    """Equation 4 as printed, averaged over queries, and the fraction of terms above zero."""
    n, total, within = len(query), 0.0, 0
    for i in range(n):
        for j in range(n):
            if j != i:
                own, other = float(query[i] @ candidates[i]), float(query[i] @ candidates[j])
                term = max(0.0, margin + other - own)
                total += term / (n - 1)
                within += term > 0
    return total / n, within / n / (n - 1)


@settings(max_examples=40)
@given(n=st.integers(2, 8), margin=st.floats(0.01, 2), seed=st.integers(0, 1000))
def test_ranking_matches_reference(n, margin, seed) -> None:
    video, text = unit(n, 5, seed=seed), unit(n, 5, seed=seed + 1)
    loss, scalars = Ranking(margin, World())(video, text, torch.arange(n), bank_of(n, 5))
    to_text, to_video = slow_ranking(video, text, margin), slow_ranking(text, video, margin)
    assert float(scalars["loss_video_to_text"]) == pytest.approx(to_text[0], abs=1e-12)
    assert float(scalars["loss_text_to_video"]) == pytest.approx(to_video[0], abs=1e-12)
    assert float(loss) == pytest.approx(to_text[0] + to_video[0], abs=1e-12)
    fraction = (to_text[1] + to_video[1]) / 2
    assert float(scalars["within_margin"]) == pytest.approx(fraction, abs=1e-6)
    similarities = video @ text.T
    assert float(scalars["similarity_positive"]) == pytest.approx(float(similarities.diag().mean()))
    assert float(scalars["similarity_all"]) == pytest.approx(float(similarities.mean()))


def test_hand_computed_values_of_ranking() -> None:
    # One query with similarities 0.6 (own), 0.8 and −1; δ = 0.2: (0.4 + 0) / 2.
    query = torch.tensor([[1.0, 0.0]])
    candidates = torch.tensor([[0.6, 0.8], [0.8, 0.6], [-1.0, 0.0]])
    loss, within = ranking_loss(query, candidates, torch.tensor([0]), 0.2)
    assert float(loss) == pytest.approx(0.2)
    assert float(within) == 0.5


@given(seed=st.integers(0, 1000), margin=st.floats(0.05, 1.5))
@settings(max_examples=30)
def test_gradient_is_the_closed_form_of_appendix_a1(seed, margin) -> None:
    """−∂L/∂f_v = Σ (f_t⁺ − f_t⁻)/(n − 1) over the negatives within the margin.

    The appendix omits the sum and 1/(n − 1).
    """
    query = unit(1, 5, seed=seed).requires_grad_()
    candidates = unit(7, 5, seed=seed + 1)
    loss, _ = ranking_loss(query, candidates, torch.tensor([2]), margin)
    loss.backward()
    similarities = candidates @ query[0].detach()
    expected = torch.zeros(5, dtype=torch.float64)
    for j in range(7):
        if j != 2 and float(margin + similarities[j] - similarities[2]) > 0:
            expected += (candidates[2] - candidates[j]) / 6
    torch.testing.assert_close(-query.grad[0], expected)
