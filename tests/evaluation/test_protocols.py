"""kNN, linear probe, label subsets, retrieval and zero-shot: against plain loops, and properties."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from crosspair.errors import CrosspairError
from crosspair.evaluation import (
    FewshotConfig,
    KnnConfig,
    LinearConfig,
    LowshotConfig,
    ZeroshotConfig,
    class_embeddings,
    draw_classes,
    few_labels,
    knn_predict,
    label_subset,
    linear_predict,
    logistic_predict,
    retrieval,
    target_ranks,
    train_linear,
    zero_shot_predict,
)
from crosspair.evaluation.fewshot import fit_logistic
from crosspair.evaluation.retrieval import chance_rank, chance_recall
from crosspair.evaluation.zeroshot import read_templates
from crosspair.models import CPD

pytestmark = pytest.mark.usefixtures("one_thread")

seeds = st.integers(0, 2**31)


# --- kNN ----------------------------------------------------------------------------------------


def knn_task(seed: int, train: int, queries: int, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
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
    train, labels, queries = knn_task(seed, 30, 9, classes)
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
    train, labels, queries = knn_task(0, 40, 10, 3)
    scales = torch.linspace(0.01, 100, 40).unsqueeze(1)
    scaled = knn_predict(train * scales, labels, queries * 7, KnnConfig(5))
    assert scaled.tolist() == knn_predict(train, labels, queries, KnnConfig(5)).tolist()


@given(seed=seeds, k=st.integers(1, 12), temperature=st.floats(0.05, 2))
@settings(max_examples=50)
def test_votes_by_distance_equal_a_plain_loops(seed: int, k: int, temperature: float) -> None:
    train, labels, queries = knn_task(seed, 30, 9, 4)
    found = knn_predict(train, labels, queries, KnnConfig(k, "distance", temperature), chunk=4)
    for query, prediction in zip(queries.double(), found.tolist(), strict=True):
        cosines = torch.cosine_similarity(query, train.double())
        nearest = sorted(range(30), key=lambda i: -cosines[i])[:k]
        votes = [0.0] * 4
        for i in nearest:
            votes[int(labels[i])] += math.exp(float(cosines[i]) / temperature)
        assert votes[prediction] >= max(votes) * (1 - 1e-4)


def test_more_neighbours_than_training_videos() -> None:
    with pytest.raises(CrosspairError, match=r"k = 11"):
        knn_predict(*knn_task(0, 10, 2, 2), KnnConfig(11))


# --- linear probe -------------------------------------------------------------------------------


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


def test_a_probe_that_diverges_is_an_error() -> None:
    features, labels = clusters(50, 4, 3, seed=1)
    with pytest.raises(CrosspairError, match=r"epoch 2 .*linear\.lr"):
        train_linear(features, labels, 3, LinearConfig(lr=1e38))


label_lists = st.lists(st.sampled_from("abcde"), max_size=200)
fractions = st.floats(0.001, 1)


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


# --- few-shot -----------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_logistic_regression_is_that_of_scikit_learn(classes: int) -> None:
    features, labels = clusters(8 * classes, 12, classes, seed=3)
    queries, _ = clusters(500, 12, classes, seed=4)
    features, queries = (3 * F.normalize(each, dim=1) for each in (features, queries))
    judge = LogisticRegression(tol=1e-6, max_iter=1000).fit(features.double().numpy(), labels.numpy())
    weight, bias = fit_logistic(features, labels)
    if classes == 2:  # scikit-learn has one weight vector
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    found, expected = weight, torch.from_numpy(judge.coef_)
    assert expected.abs().max() > 0.3
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0.01)
    logits = F.linear(queries.double(), weight, bias)
    expected = torch.from_numpy(judge.decision_function(queries.double().numpy())).view(500, -1)
    if classes > 2:  # a constant may be added to all biases
        logits, expected = (each - each.mean(dim=1, keepdim=True) for each in (logits, expected))
    torch.testing.assert_close(logits, expected, atol=0.02, rtol=0.01)
    predicted = logistic_predict(features, 2 * labels, queries)  # classes 1, 3, ... have no video
    best = torch.from_numpy(judge.predict_proba(queries.double().numpy())).sort(dim=1).values
    clear = best[:, -1] - best[:, -2] > 0.02
    assert clear.double().mean() > 0.8
    assert torch.equal(predicted[clear], 2 * torch.from_numpy(judge.predict(queries.double().numpy()))[clear])


@given(labels=label_lists, count=st.integers(1, 9), seed=seeds)
def test_few_labels_are_as_many_of_each_class(labels: list[str], count: int, seed: int) -> None:
    drawn = few_labels(labels, count, seed)
    assert drawn == sorted(set(drawn))
    assert Counter(labels[i] for i in drawn) == {label: min(count, n) for label, n in Counter(labels).items()}


def test_draws_of_few_labels_differ_and_repeat() -> None:
    labels = ["a"] * 40 + ["b"] * 40
    draws = [tuple(few_labels(labels, 8, seed=0, draw=draw)) for draw in range(10)]
    assert len(set(draws)) == 10
    assert draws[3] == tuple(few_labels(labels, 8, seed=0, draw=3))
    assert draws[3] != tuple(few_labels(labels, 8, seed=1, draw=3))


def test_defaults_are_those_of_mteb_and_of_bare_class_names() -> None:
    assert FewshotConfig() == FewshotConfig(labels=8, draws=10)
    assert ZeroshotConfig().templates == ("{}",)


# --- retrieval and zero-shot --------------------------------------------------------------------


def vectors(count: int, dimensions: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dimensions, generator=generator), dim=1)


def ranks_by_loop(queries: torch.Tensor, targets: torch.Tensor) -> list[int]:
    scores = (queries @ targets.T).tolist()
    return [1 + sum(other >= row[own] for j, other in enumerate(row) if j != own) for own, row in enumerate(scores)]


@given(count=st.integers(1, 40), seed=seeds, chunk=st.integers(1, 50))
def test_ranks_equal_a_plain_loops_for_any_chunk(count: int, seed: int, chunk: int) -> None:
    queries, targets = vectors(count, 6, seed), vectors(count, 6, seed + 1)
    assert target_ranks(queries, targets, chunk=chunk).tolist() == ranks_by_loop(queries, targets)


@given(count=st.integers(2, 30), seed=seeds)
def test_ranks_of_many_ties_equal_a_plain_loops(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # One-hot vectors: every score is exactly 0 or 1.
    queries, targets = torch.eye(3)[torch.randint(0, 3, (2, count), generator=generator)]
    assert target_ranks(queries, targets, chunk=7).tolist() == ranks_by_loop(queries, targets)


def test_ties_are_ranked_last() -> None:
    same = torch.eye(4)[:1].expand(5, 4)
    assert target_ranks(same, same).tolist() == [5] * 5
    assert retrieval(same, same).recall == {1: 0.0, 5: 1.0, 10: 1.0}
    lost = torch.full((20, 4), float("nan"))
    assert target_ranks(lost, lost).tolist() == [20] * 20


@given(count=st.integers(1, 40), seed=seeds)
def test_the_measures_are_those_of_the_ranks(count: int, seed: int) -> None:
    queries, targets = vectors(count, 4, seed), vectors(count, 4, seed + 1)
    ranks = ranks_by_loop(queries, targets)
    found = retrieval(queries, targets)
    for level in (1, 5, 10):
        assert found.recall[level] == pytest.approx(sum(r <= level for r in ranks) / count)
    assert found.median_rank == statistics.median(ranks)
    assert found.mrr == pytest.approx(sum(1 / r for r in ranks) / count)
    assert found.count == count


def best_ranks_by_loop(
    queries: torch.Tensor, targets: torch.Tensor, query_items: list[int], target_items: list[int]
) -> list[int]:
    ranks = []
    for query, item in zip((queries @ targets.T).tolist(), query_items, strict=True):
        best = max(score for score, other in zip(query, target_items, strict=True) if other == item)
        ahead = [score >= best for score, other in zip(query, target_items, strict=True) if other != item]
        ranks.append(1 + sum(ahead))
    return ranks


@given(own=st.lists(st.integers(1, 4), min_size=1, max_size=12), seed=seeds, chunk=st.integers(1, 20))
def test_ranks_of_several_captions_equal_a_plain_loops(own: list[int], seed: int, chunk: int) -> None:
    captions = [video for video, count in enumerate(own) for _ in range(count)]
    of_videos, texts = vectors(len(own), 5, seed), vectors(len(captions), 5, seed + 1)
    items, every = torch.tensor(captions), list(range(len(own)))
    by_text = target_ranks(texts, of_videos, query_items=items, chunk=chunk)
    assert by_text.tolist() == best_ranks_by_loop(texts, of_videos, captions, every)
    by_video = target_ranks(of_videos, texts, target_items=items, chunk=chunk)
    assert by_video.tolist() == best_ranks_by_loop(of_videos, texts, every, captions)


def test_several_captions_by_hand() -> None:
    """Video 0 has the captions 0 and 1, video 1 the caption 2."""
    of_videos = torch.eye(2)
    texts = F.normalize(torch.tensor([[3.0, 4.0], [1.0, 0.1], [0.9, 1.0]]), dim=1)
    items = torch.tensor([0, 0, 1])
    assert target_ranks(texts, of_videos, query_items=items).tolist() == [2, 1, 1]
    assert target_ranks(of_videos, texts, target_items=items).tolist() == [1, 2]
    found = retrieval(texts, of_videos, query_items=items)
    assert (found.recall[1], found.median_rank, found.count) == (pytest.approx(2 / 3), 1.0, 3)


@given(own=st.lists(st.integers(1, 3), min_size=1, max_size=3), k=st.sampled_from([1, 2, 5]))
def test_chance_is_the_mean_over_all_rankings(own: list[int], k: int) -> None:
    targets = [item for item, count in enumerate(own) for _ in range(count)]
    hits, ranks = [], []
    for order in itertools.permutations(targets[:7]):
        for item in set(order):
            first = order.index(item)
            hits.append(first < k)
            ranks.append(1 + first)
    own = [targets[:7].count(item) for item in dict.fromkeys(targets[:7])]
    assert chance_recall(k, own, sum(own)) == pytest.approx(statistics.fmean(hits))
    assert chance_rank(own, sum(own)) == pytest.approx(statistics.fmean(ranks))


@given(videos=st.integers(1, 20), classes=st.integers(1, 8), seed=seeds)
def test_zero_shot_takes_the_class_of_the_largest_cosine(videos: int, classes: int, seed: int) -> None:
    of_videos, names = vectors(videos, 5, seed), vectors(classes, 5, seed + 1)
    expected = [max(range(classes), key=lambda c: float(torch.dot(video, names[c]))) for video in of_videos]
    assert zero_shot_predict(of_videos, names).tolist() == expected


@torch.no_grad()
def test_a_class_is_the_mean_over_templates_of_unit_norm(model: CPD) -> None:
    found = class_embeddings(model, ["Dog", "cat_dog"], ["{}", "a cat and a {}", "{} {}"])
    for row, phrase in zip(found, ["dog", "cat dog"], strict=True):
        texts = [phrase, f"a cat and a {phrase}", f"{phrase} {phrase}"]
        mean = sum(model.eval().encode_text([text])[0] for text in texts) / 3
        torch.testing.assert_close(row, mean / mean.norm())


@given(
    among=st.sets(st.integers(0, 50), min_size=2),
    fraction=st.floats(0, 1),
    draws=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_draws_are_classes_of_those_given(among: set[int], fraction: float, draws: int, seed: int) -> None:
    count = 2 + int(fraction * (len(among) - 2))
    found = draw_classes(sorted(among), count, draws, seed)
    assert len(found) == draws
    for draw in found:
        assert draw == sorted(set(draw))
        assert len(draw) == count
        assert set(draw) <= among
    assert found == draw_classes(sorted(among), count, draws, seed)
    assert found[:1] == draw_classes(sorted(among), count, 1, seed)


def test_more_classes_than_there_are() -> None:
    with pytest.raises(CrosspairError, match=" 6 "):
        draw_classes(range(5), 6, 10, 0)


def test_templates_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("\ufeff{}\n\n  a video of {} \n", encoding="utf-8")
    assert read_templates(path) == ("{}", "a video of {}")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{}\na clip\n", "line 2: 'a clip'"), (b"\n\n", "empty"), ("{}\na clip\n".encode("utf-16"), "line 2: 'a clip'")],
)
def test_an_invalid_template_file(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_bytes(content)
    with pytest.raises(CrosspairError, match=rf"templates\.txt.*{message}"):
        read_templates(path)
