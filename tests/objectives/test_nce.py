"""NCE (Equation 5): loop reference, hand-computed values, properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspair.config import ObjectiveConfig
from crosspair.distributed import World
from crosspair.objectives import CrossPair, MemoryBank, NoiseContrastive, nce_loss
from tests.objectives.pairs import unit


def slow_nce_loss(query, positive, noise, *, log_z, pairs, temperature):
    """Equation 5 as printed: probabilities, not logarithms, pair by pair."""
    z, p_noise = math.exp(log_z), 1 / pairs
    of_positives, of_noise = [], []
    for i in range(len(query)):
        mine = noise if noise.dim() == 2 else noise[i]
        m = len(mine)
        p = math.exp(float(query[i] @ positive[i]) / temperature) / z
        of_positives.append(-math.log(p / (p + m * p_noise)))
        total = 0.0
        for entry in mine:
            p = math.exp(float(query[i] @ entry) / temperature) / z
            total -= math.log(m * p_noise / (p + m * p_noise))  # 1 − h, without cancellation
        of_noise.append(total)
    return sum(of_positives) / len(query), sum(of_noise) / len(query)


@settings(max_examples=40)
@given(
    batch=st.integers(1, 6),
    m=st.integers(1, 20),
    pairs=st.integers(1, 10_000),
    dimensions=st.integers(2, 16),
    temperature=st.floats(0.05, 1.0),
    log_z=st.floats(-3, 12),
    shared=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_loss_matches_reference(batch, m, pairs, dimensions, temperature, log_z, shared, seed) -> None:
    query, positive = unit(batch, dimensions, seed=seed), unit(batch, dimensions, seed=seed + 1)
    noise = unit(*((m,) if shared else (batch, m)), dimensions, seed=seed + 2)
    given_values = {"log_z": log_z, "pairs": pairs, "temperature": temperature}
    fast = nce_loss(query, positive, noise, **given_values)
    slow = slow_nce_loss(query, positive, noise, **given_values)
    assert [float(term) for term in fast] == pytest.approx(slow, rel=1e-9)


def test_hand_computed_values() -> None:
    # s = 1 with the positive, 0 and -1 with two noise entries; τ = 1, N = 10, Z = e, m = 2:
    # p = 1, e^-1, e^-2 and m p_n = 0.2, so h = 1/1.2, 0.36788/0.56788, 0.13534/0.33534.
    query = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    noise = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    positive_term, noise_term = nce_loss(query, query, noise, log_z=1.0, pairs=10, temperature=1.0)
    assert float(positive_term) == pytest.approx(math.log(1.2), rel=1e-12)
    by_hand = -math.log(1 - 0.367879441 / 0.567879441) - math.log(1 - 0.135335283 / 0.335335283)
    assert float(noise_term) == pytest.approx(by_hand, rel=1e-8)


def test_no_overflow_where_probabilities_overflow() -> None:
    query = unit(2, 4).float()
    terms = nce_loss(query, query, -query, log_z=-500.0, pairs=10, temperature=0.001)
    assert all(torch.isfinite(term) for term in terms)


def test_noise_of_the_batch_and_of_each_pair_have_the_same_expected_loss() -> None:
    """Means over many draws agree within 4 standard errors of their difference."""
    pairs, m, batch = 50, 8, 4
    bank_entries, query, positive = unit(pairs, 6, seed=1), unit(batch, 6, seed=2), unit(batch, 6)
    generator = torch.Generator().manual_seed(3)
    values = {"log_z": 4.0, "pairs": pairs, "temperature": 0.2}
    draws = 4000

    def losses(shape):
        found = []
        for _ in range(draws):
            noise = bank_entries[torch.randint(pairs, shape, generator=generator)]
            found.append(sum(nce_loss(query, positive, noise, **values)))
        return torch.stack(found)

    shared, own = losses((m,)), losses((batch, m))
    error = math.sqrt((shared.var() + own.var()) / draws)
    assert abs(float(shared.mean() - own.mean())) < 4 * error
    # What both estimate, in closed form: m times the mean over the whole bank.
    whole = nce_loss(query, positive, bank_entries, **{**values, "pairs": pairs * pairs / m})
    expected = float(whole[0]) + m / pairs * float(whole[1])
    assert float(shared.mean()) == pytest.approx(expected, abs=4 * float(shared.std()) / draws**0.5)


def test_gradient_is_the_closed_form_of_appendix_a1() -> None:
    query = unit(1, 5).requires_grad_()
    positive, noise = unit(1, 5, seed=1), unit(3, 5, seed=2)
    values = {"log_z": 2.0, "pairs": 20, "temperature": 0.07}
    sum(nce_loss(query, positive, noise, **values)).backward()

    def h(entry):
        p = math.exp(float(query[0].detach() @ entry) / 0.07 - 2.0)
        return p / (p + 3 / 20)

    expected = (1 - h(positive[0])) / 0.07 * positive[0]
    expected = expected - sum(h(entry) / 0.07 * entry for entry in noise)
    torch.testing.assert_close(-query.grad[0], expected)


def objective_on(pairs: int = 40, seed: int = 0, **config):
    settings = ObjectiveConfig(**config)
    task = CrossPair(settings.temperature, World())
    objective = NoiseContrastive(task, settings, seed, World())
    return objective, MemoryBank(pairs, 8, 0.5, seed, World())


def test_z_of_the_first_batch_estimates_the_denominator() -> None:
    objective, bank = objective_on(noise_samples=20_000, normalizer="first", temperature=0.5)
    video, text = unit(4, 8, seed=1).float(), unit(4, 8, seed=2).float()
    objective(video, text, torch.arange(4), bank)
    sums = (video @ bank.text.T / 0.5).exp().sum(dim=1)
    assert float(objective.log_z[0]) == pytest.approx(math.log(float(sums.mean())), abs=0.02)
    sums = (text @ bank.video.T / 0.5).exp().sum(dim=1)
    assert float(objective.log_z[1]) == pytest.approx(math.log(float(sums.mean())), abs=0.02)


@pytest.mark.parametrize(("normalizer", "moves"), [("first", False), ("ema", True)])
def test_log_z_changes_only_with_the_moving_average(normalizer, moves) -> None:
    objective, bank = objective_on(noise_samples=16, normalizer=normalizer)
    video, text = unit(4, 8, seed=1).float(), unit(4, 8, seed=2).float()
    objective(video, text, torch.arange(4), bank)
    first = objective.log_z.clone()
    objective(text, video, torch.arange(4), bank)
    assert bool((objective.log_z != first).all()) == moves


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.99])
def test_moving_average_is_bias_corrected(decay: float) -> None:
    """After t estimates, their weights are decay^(t−1), …, decay, 1, over the sum of these."""
    objective, bank = objective_on(noise_samples=16, normalizer_decay=decay)
    video, text = unit(4, 8, seed=1).float(), unit(4, 8, seed=2).float()
    estimates: list[torch.Tensor] = []
    for _ in range(5):
        single, _ = objective_on(noise_samples=16)
        single.generator.set_state(objective.generator.get_state())
        single(video, text, torch.arange(4), bank)
        estimates.append(single.log_z)
        objective(video, text, torch.arange(4), bank)
        weights = [decay**age for age in range(len(estimates) - 1, -1, -1)]
        average = sum(w * each for w, each in zip(weights, estimates, strict=True)) / sum(weights)
        torch.testing.assert_close(objective.log_z, average)
    assert not torch.equal(estimates[0], estimates[1])


def test_each_direction_uses_the_other_modality() -> None:
    objective, bank = objective_on(noise_samples=16, normalizer="first")
    video, text = unit(4, 8, seed=1).float(), unit(4, 8, seed=2).float()
    state = objective.generator.get_state()
    _, scalars = objective(video, text, torch.arange(4), bank)
    generator = torch.Generator()
    generator.set_state(state)
    drawn = torch.randint(40, (16,), generator=generator)
    values = {"pairs": 40, "temperature": 0.07}
    to_text = nce_loss(video, bank.text[:4], bank.text[drawn], log_z=objective.log_z[0], **values)
    to_video = nce_loss(text, bank.video[:4], bank.video[drawn], log_z=objective.log_z[1], **values)
    torch.testing.assert_close(scalars["loss_video_to_text"], sum(to_text))
    torch.testing.assert_close(scalars["loss_text_to_video"], sum(to_video))


@pytest.mark.parametrize("noise", ["batch", "pair"])
def test_restored_objective_draws_the_same_noise(noise) -> None:
    objective, bank = objective_on(noise_samples=16, noise=noise)
    video, text = unit(4, 8, seed=1).float(), unit(4, 8, seed=2).float()
    objective(video, text, torch.arange(4), bank)
    other, _ = objective_on(seed=99, noise_samples=16, noise=noise)
    other.load_state_dict(objective.state_dict())
    after, restored = (each(video, text, torch.arange(4), bank)[0] for each in (objective, other))
    assert float(after) == float(restored)
