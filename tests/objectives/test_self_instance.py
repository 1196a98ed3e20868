"""Self-instance discrimination (Equations 1 and 2) against loop references, NCE and exact."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspair.config import ObjectiveConfig
from crosspair.distributed import World
from crosspair.objectives import ExactSoftmax, LearnedInstance, SelfInstance, build_objective
from tests.objectives.pairs import bank_of, unit


def slow_scores(video, text, classes, temperature):
    """exp(v_j·f_v/τ + t_j·f_t/τ) of one pair with every class (v_j, t_j)."""
    return [
        math.exp(sum(a * b for a, b in zip(v_j, video, strict=True)) / temperature
                 + sum(a * b for a, b in zip(t_j, text, strict=True)) / temperature)
        for v_j, t_j in classes
    ]  # fmt: skip


def slow_softmax(video, text, index, classes, temperature):
    """Equation 1 or 2: the mean of −log p(i|(v_i, t_i))."""
    total = 0.0
    for v, t, i in zip(video.tolist(), text.tolist(), index.tolist(), strict=True):
        scores = slow_scores(v, t, classes, temperature)
        total -= math.log(scores[i] / sum(scores))
    return total / len(index)


def slow_nce(video, text, index, classes, drawn, temperature, log_z):
    """Equation 5 of it, for noise shared by the batch."""
    total, m_p_n = 0.0, len(drawn) / len(classes)
    for v, t, i in zip(video.tolist(), text.tolist(), index.tolist(), strict=True):
        p = [score / math.exp(log_z) for score in slow_scores(v, t, classes, temperature)]
        total -= math.log(p[i] / (p[i] + m_p_n))
        total -= sum(math.log(m_p_n / (p[j] + m_p_n)) for j in drawn)
    return total / len(index)


def classes_of(bank):
    return list(zip(bank.video.tolist(), bank.text.tolist(), strict=True))


@settings(max_examples=25)
@given(
    batch=st.integers(1, 5),
    pairs=st.integers(5, 30),
    temperature=st.floats(0.1, 1.0),
    learned=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_exact_loss_matches_reference(batch, pairs, temperature, learned, seed) -> None:
    bank, video, text = bank_of(pairs, 4, seed), unit(batch, 4, seed=seed + 1), unit(batch, 4)
    index = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed))[:batch]
    classes = classes_of(bank)
    task = SelfInstance(temperature, World())
    if learned:  # Equation 1: classes of any length, and no temperature
        task, temperature = LearnedInstance(pairs, 4, seed, torch.device("cpu")).double(), 1.0
        task.weights.data *= 3
        classes = [(row[:4], row[4:]) for row in task.weights.tolist()]
    loss, _ = ExactSoftmax(task)(video, text, index, bank)
    assert loss.item() == pytest.approx(slow_softmax(video, text, index, classes, temperature), rel=1e-9)


@pytest.mark.parametrize("instances", ["bank", "weights"])
def test_the_loss_by_nce_is_the_slow_twins(instances) -> None:
    config = ObjectiveConfig(name="self_instance", instances=instances, noise_samples=12, temperature=0.3)
    objective, bank = build_objective(config, 20, 4, 3, World()).double(), bank_of(20, 4)
    video, text, index = unit(3, 4, seed=1), unit(3, 4, seed=2), torch.tensor([4, 0, 19])
    generator = torch.Generator()
    generator.set_state(objective.generator.get_state())
    drawn = torch.randint(20, (12,), generator=generator).tolist()
    loss, scalars = objective(video, text, index, bank)
    classes, temperature = classes_of(bank), 0.3
    if instances == "weights":
        rows = objective.discrimination.weights.tolist()
        classes, temperature = [(row[:4], row[4:]) for row in rows], 1.0
    log_z = float(objective.log_z)
    expected = slow_nce(video, text, index, classes, drawn, temperature, log_z)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert float(scalars["log_z_pair"]) == log_z
    assert 0 < float(scalars["posterior_noise"]) < 1


@pytest.mark.parametrize("estimate", ["nce", "softmax"])
def test_videos_are_not_compared_with_texts(estimate) -> None:
    """Rotating all videos, including the bank's, does not change the loss (cf. Table 1a)."""
    config = ObjectiveConfig(name="self_instance", estimate=estimate, noise_samples=8)
    video, text, index = unit(3, 4, seed=1), unit(3, 4, seed=2), torch.arange(3)
    turn, _ = torch.linalg.qr(unit(4, 4, seed=5))
    plain, turned = bank_of(9, 4), bank_of(9, 4)
    turned.video = turned.video @ turn
    losses = [
        build_objective(config, 9, 4, 0, World()).double()(v, text, index, bank)[0]
        for v, bank in ((video, plain), (video @ turn, turned))
    ]
    torch.testing.assert_close(*losses)
