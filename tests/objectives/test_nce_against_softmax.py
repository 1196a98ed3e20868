"""NCE gradient, averaged over the noise, compared with the exact softmax gradient.

With the true Z and h_j = p_j / (p_j + m/N), a noise sample is class j with probability 1/N. The
mean over the noise of Equation 5's gradient with respect to a query is

    −(1 − h⁺)/τ·c⁺ + Σ_j (m/N) h_j/τ·c_j = −(1 − h⁺)/τ·c⁺ + Σ_j p_j (1 − h_j)/τ·c_j,

while the exact one is −c⁺/τ + Σ_j p_j/τ·c_j. The difference, h⁺/τ·c⁺ − Σ_j p_j h_j/τ·c_j, has a
norm of at most (h⁺ + Σ_j p_j h_j)/τ ≤ (p⁺ + Σ_j p_j²)·N/(m τ): it decreases as 1/m. The variance
of a draw is that of the sum of m independent terms h_j/τ·c_j.
"""

from __future__ import annotations

import pytest
import torch

from crosspair.distributed import World
from crosspair.objectives import log_normalizer, nce_loss
from tests.objectives.pairs import unit

N, D, TAU, DRAWS = 600, 8, 0.15, 250


@pytest.fixture(scope="module")
def task() -> tuple[torch.Tensor, torch.Tensor]:
    """A query (D,) that is near its own class, the first of (N, D), but not the nearest to all."""
    classes = unit(N, D, seed=1)
    return torch.nn.functional.normalize(classes[0] + 0.8 * unit(D, seed=2), dim=0), classes


def exact_gradient(query, classes):
    query = query[None].clone().requires_grad_()
    loss = log_normalizer(query, [classes], TAU, World()) - query @ classes[0] / TAU
    return torch.autograd.grad(loss.sum(), query)[0][0]


def drawn_gradients(query, classes, m):
    """(DRAWS, D): one for each draw of m noise samples."""
    drawn = torch.randint(N, (DRAWS, m), generator=torch.Generator().manual_seed(m))
    queries = query.expand(DRAWS, D).clone().requires_grad_()
    terms = nce_loss(
        queries, classes[0].expand(DRAWS, D), classes[drawn],
        log_z=(classes @ query / TAU).logsumexp(0), pairs=N, temperature=TAU,
    )  # fmt: skip
    return torch.autograd.grad(sum(terms) * DRAWS, queries)[0]  # of the sum, not the mean


def closed_form(query, classes, m):
    """By plain loops: the difference of the means, and the variance of a draw, summed over axes."""
    scores = [float((entry @ query / TAU).exp()) for entry in classes]
    p = [score / sum(scores) for score in scores]
    h = [each / (each + m / N) for each in p]
    difference, mean, square = h[0] / TAU * classes[0], torch.zeros(D).double(), 0.0
    for p_j, h_j, entry in zip(p, h, classes, strict=True):
        difference = difference - p_j * h_j / TAU * entry
        mean = mean + h_j / TAU * entry / N
        square += float((h_j / TAU * entry) @ (h_j / TAU * entry)) / N
    bound = (p[0] + sum(each * each for each in p)) * N / m / TAU
    return difference, bound, m * (square - float(mean @ mean))


@pytest.mark.parametrize("m", [8, 64, 512, 4096])
def test_the_mean_over_draws_is_the_exact_gradient_and_a_known_difference(task, m) -> None:
    """Within 3 standard errors: the mean of DRAWS has 1/DRAWS of a draw's variance."""
    difference, bound, variance = closed_form(*task, m)
    exact = exact_gradient(*task)
    error = (variance / DRAWS) ** 0.5
    off = drawn_gradients(*task, m).mean(dim=0) - (exact + difference)
    assert float(off.norm()) < 3 * error
    assert float(difference.norm()) <= bound
    if m == 4096:  # the standard error is small enough to identify the limit
        assert 3 * error < 0.02 * float(exact.norm())


def test_difference_decreases_as_one_over_m(task) -> None:
    lengths = [float(closed_form(*task, m)[0].norm()) for m in (10**4, 10**5, 10**6)]
    assert lengths[0] / lengths[1] == pytest.approx(10, rel=0.15)
    assert lengths[1] / lengths[2] == pytest.approx(10, rel=0.02)
    assert lengths[2] < 1e-3 * float(exact_gradient(*task).norm())


def test_difference_for_small_m_exceeds_the_sampling_error(task) -> None:
    difference, _, variance = closed_form(*task, 8)
    exact = exact_gradient(*task)
    off = float((drawn_gradients(*task, 8).mean(dim=0) - exact).norm())
    assert off > 10 * (variance / DRAWS) ** 0.5
    assert off == pytest.approx(float(difference.norm()), rel=0.3)
