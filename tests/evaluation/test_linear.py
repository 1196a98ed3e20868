"""The linear probe, against plain loops and against scikit-learn; label subsets: nested, seeded."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from crosspair.errors import CrosspairError
from crosspair.evaluation import LinearConfig, LowshotConfig, label_subset, linear_predict, train_linear

pytestmark = pytest.mark.usefixtures("one_thread")


def clusters(videos: int, dimensions: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features around a centre for each class, of unequal scales, and their classes."""
    centres = torch.randn(classes, dimensions, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (videos,), generator=generator)
    spread = 2 * torch.randn(videos, dimensions, generator=generator)
    return (centres[labels] + spread) * torch.logspace(-2, 2, dimensions) + 5, labels


def trained_by_loop(
    features: torch.Tensor, labels: torch.Tensor, classes: int, config: LinearConfig, seed: int
) -> list[list[float]]:
    """Logits for the training videos, after steps of Adam written out in plain loops."""
    x, y = features.double().tolist(), labels.tolist()
    size = len(x[0])
    values = [0.0] * (classes * size) + [0.0] * classes
    first, second = [0.0] * len(values), [0.0] * len(values)
    means, variances = [], []
    generator = torch.Generator().manual_seed(seed)
    step = 0
    for epoch in range(config.epochs):
        lr = config.lr * 0.1 ** (epoch // config.drop_every)
        order = torch.randperm(len(x), generator=generator)
        for part in order.tensor_split(max(1, len(x) // config.batch_size)):
            rows = part.tolist()
            n = len(rows)
            mean = [sum(x[r][i] for r in rows) / n for i in range(size)]
            variance = [sum((x[r][i] - mean[i]) ** 2 for r in rows) / n for i in range(size)]
            means.append(mean)
            variances.append([v * n / (n - 1) for v in variance])
            gradient = [0.0] * len(values)
            for r in rows:
                z = [(x[r][i] - mean[i]) / math.sqrt(variance[i] + 1e-5) for i in range(size)]
                logits = logits_of(values, z, size, classes)
                top = max(logits)
                total = sum(math.exp(logit - top) for logit in logits)
                for c in range(classes):
                    off = (math.exp(logits[c] - top) / total - (c == y[r])) / n
                    for i in range(size):
                        gradient[c * size + i] += off * z[i]
                    gradient[classes * size + c] += off
            step += 1
            for i, g in enumerate(gradient):
                first[i] = 0.9 * first[i] + 0.1 * g
                second[i] = 0.999 * second[i] + 0.001 * g * g
                corrected = math.sqrt(second[i] / (1 - 0.999**step)) + 1e-8
                values[i] -= lr * first[i] / (1 - 0.9**step) / corrected
    mean = [sum(each[i] for each in means) / len(means) for i in range(size)]
    variance = [sum(each[i] for each in variances) / len(variances) for i in range(size)]
    return [
        logits_of(values, [(row[i] - mean[i]) / math.sqrt(variance[i] + 1e-5) for i in range(size)], size, classes)
        for row in x
    ]


def logits_of(values: list[float], z: list[float], size: int, classes: int) -> list[float]:
    return [sum(values[c * size + i] * z[i] for i in range(size)) + values[classes * size + c] for c in range(classes)]


# No batch can have equal numbers of videos per class: gradients would be exactly zero.
@pytest.mark.parametrize(("videos", "batch"), [(14, 7), (7, 100), (10, 5), (25, 5)])
def test_steps_equal_those_of_plain_loops(videos: int, batch: int) -> None:
    features, labels = clusters(videos, 3, 3, seed=1)
    config = LinearConfig(epochs=6, lr=0.05, drop_every=2, batch_size=batch)
    probe = train_linear(features, labels, 3, config, seed=5)
    expected = torch.tensor(trained_by_loop(features, labels, 3, config, seed=5))
    found = probe(features).detach()
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-3)


def test_accuracy_is_that_of_scikit_learn_within_half_a_point() -> None:
    features, labels = clusters(12000, 32, 8, seed=1)
    test, truth = clusters(12000, 32, 8, seed=2)
    probe = train_linear(features, labels, 8)
    ours = float((linear_predict(probe, test) == truth).double().mean())
    scaler = StandardScaler().fit(features.numpy())
    judge = LogisticRegression(max_iter=500).fit(scaler.transform(features.numpy()), labels.numpy())
    theirs = judge.score(scaler.transform(test.numpy()), truth.numpy())
    assert 0.5 < theirs < 0.97
    assert abs(ours - theirs) <= 0.005


def test_features_are_frozen_and_the_seed_decides() -> None:
    features, labels = clusters(60, 4, 3, seed=1)
    before = features.clone()
    config = LinearConfig(batch_size=8, epochs=2)
    state = torch.get_rng_state()
    one, same, other = (train_linear(features, labels, 3, config, seed=s) for s in (0, 0, 1))
    assert torch.equal(features, before)
    assert not features.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    values, again, others = (torch.cat([p.flatten() for p in m.parameters()])
                             for m in (one, same, other))  # fmt: skip
    assert torch.equal(values, again)
    assert not torch.equal(values, others)


def test_batches_of_a_prediction_do_not_matter() -> None:
    features, labels = clusters(50, 4, 3, seed=1)
    probe = train_linear(features, labels, 3, LinearConfig(epochs=2))
    assert torch.equal(linear_predict(probe, features), linear_predict(probe, features, chunk=7))


def test_a_single_training_video_is_too_few() -> None:
    with pytest.raises(CrosspairError):
        train_linear(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), 2)


# --- label subsets ------------------------------------------------------------------------------

label_lists = st.lists(st.sampled_from("abcde"), max_size=200)
fractions = st.floats(0.001, 1)
seeds = st.integers(0, 2**31)


@given(labels=label_lists, one=fractions, other=fractions, seed=seeds)
def test_a_smaller_subset_is_part_of_a_larger(labels, one, other, seed) -> None:
    small, large = sorted([one, other])
    assert set(label_subset(labels, small, seed)) <= set(label_subset(labels, large, seed))


@given(labels=label_lists, fraction=fractions, seed=seeds)
def test_every_class_gives_its_fraction_and_at_least_one(labels, fraction, seed) -> None:
    drawn = label_subset(labels, fraction, seed)
    assert drawn == sorted(set(drawn))
    given_ = Counter(labels)
    of_drawn = Counter(labels[i] for i in drawn)
    assert set(of_drawn) == set(given_)
    for label, count in of_drawn.items():
        assert count == 1 or abs(count - fraction * given_[label]) <= 0.5 + 1e-8


def test_half_items_are_rounded_up() -> None:
    assert len(label_subset(["a"] * 50, 0.29, 0)) == 15  # 14.5, slightly less in floating point


def test_the_papers_fractions_are_nested() -> None:
    labels = [f"class {i % 7}" for i in range(700)]
    drawn = [label_subset(labels, fraction, seed=3) for fraction in (*LowshotConfig().fractions, 1.0)]
    assert [len(each) for each in drawn] == [7, 70, 140, 700]
    for small, large in itertools.pairwise(drawn):
        assert set(small) < set(large)


def test_other_classes_change_nothing() -> None:
    alone = label_subset(["a"] * 30, 0.2, 5)
    assert label_subset(["a"] * 30 + ["b"] * 9, 0.2, 5)[: len(alone)] == alone
