"""Exact softmax over the bank: loop reference, hand-computed values, memory independent of N."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crosspair.distributed import World
from crosspair.objectives import CrossPair, ExactSoftmax, SelfInstance, log_normalizer, softmax
from tests.objectives.pairs import bank_of, unit


def slow_cross_pair(video, text, index, bank, temperature):
    """Equation 3 as printed, in both directions, and the mean posterior of the positives."""
    of_texts, of_videos, own = 0.0, 0.0, 0.0
    for i, pair in enumerate(index.tolist()):
        texts = [math.exp(float(entry @ video[i]) / temperature) for entry in bank.text]
        videos = [math.exp(float(entry @ text[i]) / temperature) for entry in bank.video]
        of_texts -= math.log(texts[pair] / sum(texts))
        of_videos -= math.log(videos[pair] / sum(videos))
        own += texts[pair] / sum(texts) + videos[pair] / sum(videos)
    return of_texts / len(index), of_videos / len(index), own / 2 / len(index)


@settings(max_examples=30)
@given(
    batch=st.integers(1, 5),
    pairs=st.integers(5, 40),
    chunk=st.integers(1, 50),
    temperature=st.floats(0.05, 1.0),
    seed=st.integers(0, 1000),
)
def test_loss_matches_reference_for_any_chunk_size(batch, pairs, chunk, temperature, seed):
    bank, video, text = bank_of(pairs, 6, seed), unit(batch, 6, seed=seed + 1), unit(batch, 6)
    index = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed))[:batch]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(softmax, "CHUNK", chunk)
        objective = ExactSoftmax(CrossPair(temperature, World()))
        loss, scalars = objective(video, text, index, bank)
    to_text, to_video, own = slow_cross_pair(video, text, index, bank, temperature)
    assert float(loss) == pytest.approx(to_text + to_video, rel=1e-9)
    assert float(scalars["loss_video_to_text"]) == pytest.approx(to_text, rel=1e-9)
    assert float(scalars["loss_text_to_video"]) == pytest.approx(to_video, rel=1e-9)
    assert float(scalars["posterior_positive"]) == pytest.approx(own, rel=1e-9)
    assert float(scalars["posterior_noise"]) == pytest.approx((1 - own) / (pairs - 1), abs=1e-12)


def test_hand_computed_values() -> None:
    # Similarities 1 and 0 to two texts, and to two videos; τ = 1: p = e / (e + 1) both ways.
    bank = bank_of(2, 2)
    bank.video = bank.text = torch.eye(2, dtype=torch.float64)
    own = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    loss, scalars = ExactSoftmax(CrossPair(1.0, World()))(own, own, torch.tensor([0]), bank)
    assert float(loss) == pytest.approx(2 * math.log(1 + math.exp(-1)), rel=1e-12)
    assert float(scalars["posterior_positive"]) == pytest.approx(0.731058578630, rel=1e-9)
    assert float(scalars["posterior_noise"]) == pytest.approx(0.268941421369, rel=1e-9)
    assert float(scalars["log_z_text"]) == pytest.approx(math.log(math.e + 1), rel=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_gradients_match_unchunked_softmax(chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(softmax, "CHUNK", chunk)
    given_tensors = [unit(4, 5, seed=1), unit(20, 5, seed=2)]
    scale = torch.arange(4, dtype=torch.float64)
    ours, plain = ([each.clone().requires_grad_() for each in given_tensors] for _ in range(2))
    (log_normalizer(ours[0], [ours[1]], 0.3, World()) * scale).sum().backward()
    ((plain[0] @ plain[1].T / 0.3).logsumexp(dim=1) * scale).sum().backward()
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_autograd_agrees_with_finite_differences() -> None:
    query, weights = unit(3, 4, seed=1).requires_grad_(), unit(9, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda q, w: log_normalizer(q, [w], 0.5, World()), (query, weights))


class Largest(TorchDispatchMode):
    """Record the number of elements of the largest tensor created by an operation."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves(made) if isinstance(each, torch.Tensor)]
        self.numbers = max([self.numbers, *(each.numel() for each in tensors)])
        return made


@pytest.mark.parametrize("kind", [CrossPair, SelfInstance])
def test_memory_does_not_grow_with_the_pairs(kind, monkeypatch) -> None:
    monkeypatch.setattr(softmax, "CHUNK", 16)
    video, text = unit(6, 4, seed=1).requires_grad_(), unit(6, 4, seed=2).requires_grad_()
    largest, saved = [], []
    for pairs in (64, 4096):
        kept = [0]

        def keep(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept[0] += tensor.numel()
            return tensor

        bank = bank_of(pairs, 4)
        with Largest() as made, saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _ = ExactSoftmax(kind(0.1, World()))(video, text, torch.arange(6), bank)
            loss.backward()
        largest.append(made.numbers)
        saved.append(kept[0])
    assert largest[0] == largest[1] == (16 * 8 if kind is SelfInstance else 16 * 6)
    assert saved[0] == saved[1] > 0


@pytest.mark.parametrize("kind", [CrossPair, SelfInstance])
def test_gradient_of_a_learned_temperature(kind) -> None:
    bank, video, text = bank_of(9, 4), unit(3, 4, seed=1), unit(3, 4, seed=2)
    learned = ExactSoftmax(kind(0.3, World()), learnable=True).double()
    loss, metrics = learned(video, text, torch.arange(3), bank)
    loss.backward()
    assert float(metrics["temperature"]) == pytest.approx(0.3, rel=1e-6)
    step = 1e-4
    above, at, below = (
        float(ExactSoftmax(kind(0.3 / math.exp(d), World()))(video, text, torch.arange(3), bank)[0])
        for d in (step, 0, -step)
    )
    assert float(loss) == pytest.approx(at, rel=1e-6)
    assert float(learned.temperature.log_scale.grad) == pytest.approx((above - below) / (2 * step), rel=1e-4)
