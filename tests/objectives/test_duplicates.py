"""Pairs with the same title are not negatives of each other: every objective against plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from crosspair.config import ObjectiveConfig
from crosspair.distributed import World
from crosspair.errors import RecipeError
from crosspair.objectives import build_objective, softmax
from tests.objectives.pairs import bank_of, unit

PAIRS, BATCH, TAU, MARGIN = 12, 5, 0.3, ObjectiveConfig.margin
TITLES = torch.tensor([0, 1, 0, 2, 3, 0, 4, 1, 5, 6, 7, 8])
INDEX = torch.tensor([0, 7, 2, 1, 4])  # titles 0, 1, 0, 1, 3


def negatives(pair: int, candidates: Sequence[int]) -> list[int]:
    """Positions of the candidates that are the pair itself, or have another title."""
    return [j for j, other in enumerate(candidates) if other == pair or TITLES[other] != TITLES[pair]]


def log_sum(scores: list[float]) -> float:
    return math.log(sum(map(math.exp, scores)))


def compute(**settings: object) -> tuple[float, dict[str, torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return loss and metrics of an objective, and its queries and classes in both directions."""
    bank = bank_of(PAIRS, 6)
    bank.titles = TITLES
    video, text = unit(BATCH, 6, seed=1).requires_grad_(), unit(BATCH, 6, seed=2)
    config = ObjectiveConfig(merge_titles=True, temperature=TAU, **settings)
    loss, metrics = build_objective(config, PAIRS, 6, 0, World()).double()(video, text, INDEX, bank)
    loss.backward()
    assert video.grad.isfinite().all()
    in_bank = config.name == "cross_pair"
    classes = (bank.text, bank.video) if in_bank else (text, video)
    return loss.item(), metrics, list(zip((video.detach(), text), (c.detach() for c in classes), strict=True))


def test_in_batch() -> None:
    loss, _, directions = compute(name="in_batch")
    expected = 0.0
    for query, classes in directions:
        for i, pair in enumerate(INDEX.tolist()):
            scores = [float(query[i] @ classes[j]) / TAU for j in negatives(pair, INDEX.tolist())]
            expected += (log_sum(scores) - float(query[i] @ classes[i]) / TAU) / BATCH
    assert loss == pytest.approx(expected, rel=1e-9)


def test_ranking() -> None:
    loss, metrics, directions = compute(name="ranking")
    expected, within = 0.0, 0.0
    for query, classes in directions:
        for i, pair in enumerate(INDEX.tolist()):
            others = [j for j in negatives(pair, INDEX.tolist()) if j != i]
            terms = [max(0.0, MARGIN + float(query[i] @ (classes[j] - classes[i]))) for j in others]
            expected += sum(terms) / len(others) / BATCH
            within += sum(term > 0 for term in terms) / len(others) / BATCH / 2
    assert loss == pytest.approx(expected, rel=1e-9)
    assert float(metrics["within_margin"]) == pytest.approx(within, rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_exact_softmax(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "CHUNK", chunk)
    loss, _, directions = compute(estimate="softmax")
    expected = 0.0
    for query, classes in directions:
        for i, pair in enumerate(INDEX.tolist()):
            scores = [float(query[i] @ classes[j]) / TAU for j in negatives(pair, range(PAIRS))]
            expected += (log_sum(scores) - float(query[i] @ classes[pair]) / TAU) / BATCH
    assert loss == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("noise", ["batch", "pair"])
def test_nce(noise: str) -> None:
    m = 40
    loss, _, directions = compute(noise=noise, noise_samples=m)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(PAIRS, (m,) if noise == "batch" else (BATCH, m), generator=generator).expand(BATCH, m)
    expected = 0.0
    for query, classes in directions:
        kept = [
            [float(query[i] @ classes[samples[j]]) / TAU for j in negatives(pair, samples)]
            for i, (pair, samples) in enumerate(zip(INDEX.tolist(), drawn.tolist(), strict=True))
        ]
        log_z = log_sum([score for scores in kept for score in scores]) + math.log(PAIRS / (BATCH * m))
        for i, scores in enumerate(kept):
            positive = float(query[i] @ classes[INDEX[i]]) / TAU
            logits = [score - log_z - math.log(m / PAIRS) for score in (positive, *scores)]
            expected += math.log1p(math.exp(-logits[0])) / BATCH
            expected += sum(math.log1p(math.exp(logit)) for logit in logits[1:]) / BATCH
    assert loss == pytest.approx(expected, rel=1e-9)


def test_settings() -> None:
    for settings in ({"name": "in_batch", "soft_targets": 0.1}, {"name": "self_instance"}):
        with pytest.raises(RecipeError, match=r"^objective\.merge_titles"):
            ObjectiveConfig(merge_titles=True, **settings)
