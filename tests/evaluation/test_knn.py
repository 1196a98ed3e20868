"""kNN, against a plain loop and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from crosspair.errors import CrosspairError
from crosspair.evaluation import KnnConfig, knn_predict

seeds = st.integers(0, 2**31)


def task(seed: int, train: int, queries: int, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(train, 6, generator=generator)
    labels = torch.randint(0, classes, (train,), generator=generator)
    return features, labels, torch.randn(queries, 6, generator=generator)


def predicted_by_loop(train: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, k: int) -> list[int]:
    predictions = []
    for query in queries.double().numpy():
        cosines = [
            (float(query @ row / (np.linalg.norm(query) * np.linalg.norm(row))), label)
            for row, label in zip(train.double().numpy(), labels.tolist(), strict=True)
        ]
        nearest = sorted(cosines, reverse=True)[:k]
        strength: dict[int, tuple[int, float]] = {}
        for cosine, label in nearest:
            votes, total = strength.get(label, (0, 0.0))
            strength[label] = votes + 1, total + cosine
        predictions.append(max(strength, key=lambda label: strength[label]))
    return predictions


@given(seed=seeds, k=st.integers(1, 12), classes=st.integers(1, 5), chunk=st.integers(1, 20))
@settings(max_examples=50)
def test_predictions_equal_a_plain_loops(seed: int, k: int, classes: int, chunk: int) -> None:
    train, labels, queries = task(seed, 30, 9, classes)
    found = knn_predict(train, labels, queries, KnnConfig(k), chunk=chunk)
    assert found.tolist() == predicted_by_loop(train, labels, queries, k)


def test_ties_go_to_the_nearer_neighbours() -> None:
    train = torch.tensor([[1.0, 0.0], [0.9, 0.5], [1.0, 0.05], [0.5, 0.9]])
    query = torch.tensor([[1.0, 0.0]])
    for labels, winner in (([0, 0, 1, 1], 0), ([1, 1, 0, 0], 1)):
        assert knn_predict(train, torch.tensor(labels), query, KnnConfig(4)).tolist() == [winner]


def test_one_more_vote_beats_similarity() -> None:
    train = torch.tensor([[1.0, 0.0], [-1.0, 0.01], [-1.0, 0.02]])
    predicted = knn_predict(train, torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]]), KnnConfig(3))
    assert predicted.tolist() == [1]


def test_length_does_not_matter() -> None:
    train, labels, queries = task(0, 40, 10, 3)
    scales = torch.linspace(0.01, 100, 40).unsqueeze(1)
    scaled = knn_predict(train * scales, labels, queries * 7, KnnConfig(5))
    assert scaled.tolist() == knn_predict(train, labels, queries, KnnConfig(5)).tolist()


@given(seed=seeds, k=st.integers(1, 12), temperature=st.floats(0.05, 2))
@settings(max_examples=50)
def test_votes_by_distance_equal_a_plain_loops(seed: int, k: int, temperature: float) -> None:
    train, labels, queries = task(seed, 30, 9, 4)
    found = knn_predict(train, labels, queries, KnnConfig(k, "distance", temperature), chunk=4)
    for query, prediction in zip(queries.double(), found.tolist(), strict=True):
        cosines = torch.cosine_similarity(query, train.double())
        nearest = sorted(range(30), key=lambda i: -cosines[i])[:k]
        votes = [0.0] * 4
        for i in nearest:
            votes[int(labels[i])] += math.exp(float(cosines[i]) / temperature)
        assert votes[prediction] >= max(votes) * (1 - 1e-4)


def test_accuracy_is_that_of_scikit_learn_within_half_a_point() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 16, generator=generator)
    labels = torch.randint(0, 10, (6000,), generator=generator)
    features = centres[labels] + torch.randn(6000, 16, generator=generator)
    train, test = features[:2000], features[2000:]
    ours = knn_predict(train, labels[:2000], test)
    accuracy = float((ours == labels[2000:]).double().mean())
    judge = KNeighborsClassifier(25, metric="cosine").fit(train.numpy(), labels[:2000].numpy())
    theirs = judge.score(test.numpy(), labels[2000:].numpy())
    assert 0.4 < theirs < 0.95
    assert abs(accuracy - theirs) <= 0.005


def test_more_neighbours_than_training_videos() -> None:
    with pytest.raises(CrosspairError, match=r"k = 11"):
        knn_predict(*task(0, 10, 2, 2), KnnConfig(11))
