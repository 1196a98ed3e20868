"""The protocols that leave a model as it is: retrieval, kNN, zero-shot (Sections 4.2 and 4.4)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch

from crosspair.corpora import Manifest
from crosspair.corpora.labels import class_phrase
from crosspair.errors import ManifestError
from crosspair.evaluation.features import Features, embed_texts
from crosspair.evaluation.knn import knn_predict
from crosspair.evaluation.results import MEDIAN_RANK, Result, Subject
from crosspair.evaluation.retrieval import retrieval
from crosspair.evaluation.zeroshot import zero_shot_predict
from crosspair.models import CPD

NEIGHBOURS = 25  # Section 4.2


def frozen_results(
    model: CPD,
    manifest: Manifest,
    features: Features,
    *,
    of: Subject = "trained",
    k: int = NEIGHBOURS,
) -> list[Result]:
    """Retrieval both ways, and, where videos have labels, kNN and zero-shot, on the test split.

    Args:
        model: the model to test.
        manifest: split ``test`` is tested; kNN's neighbours are all other videos with labels.
        features: of the manifest's videos, by this model.
        of: what the model is, for the results.
        k: neighbours of kNN.

    Returns:
        The results, and those of chance beside them.

    Raises:
        ManifestError: the test split is empty, or its labels or titles do not do.
    """
    splits, labels = manifest.column("split"), manifest.column("label")
    rows = features.rows.tolist()
    tested = torch.tensor([splits[row] == "test" for row in rows])
    if not tested.any():
        raise ManifestError(f"{manifest.path}: no video of split test; there is nothing to test on")
    results = _retrieval_results(model, manifest, features, tested, of)
    if any(labels[row] for row in features.rows[tested].tolist()):
        results += _class_results(model, manifest, features, tested, of, k)
    return [
        dataclasses.replace(result, settings={**result.settings, "clips": features.clips})
        for result in results
    ]


def results_beside_random(
    model: CPD, manifest: Manifest, extract: Callable[[CPD], Features], *, seed: int = 0
) -> tuple[list[Result], Features]:
    """The results of a model, of the same network with random weights, and of chance.

    Args:
        model: the model to test.
        manifest: see `frozen_results`.
        extract: gives the features of the manifest's videos by a model.
        seed: of the random weights.

    Returns:
        The results, and the features of the model itself.
    """
    features = extract(model)
    untrained = random_like(model, seed)
    results = frozen_results(model, manifest, features)
    results += frozen_results(untrained, manifest, extract(untrained), of="random weights")
    unique = [result for i, result in enumerate(results) if result not in results[:i]]
    return unique, features


def random_like(model: CPD, seed: int) -> CPD:
    """A model of the same architecture with random weights; the language model stays.

    It tells what comes from the architecture and the data rather than from the training.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = copy.deepcopy(model.text_encoder)
        fresh = CPD(encoder, model.clip, model.video, model.text, model.head)
    return fresh.to(next(model.parameters()).device).eval()


def _retrieval_results(
    model: CPD, manifest: Manifest, features: Features, tested: torch.Tensor, of: Subject
) -> list[Result]:
    titles = manifest.column(model.text.column)
    texts = [titles[row] or "" for row in features.rows[tested].tolist()]
    readable = torch.tensor([not model.text_encoder.is_empty(text) for text in texts])
    if not readable.any():
        raise ManifestError(f"{manifest.path}: no title of split test holds a known word")
    videos = features.embedding[tested][readable]
    known = embed_texts(model, [t for t, keep in zip(texts, readable, strict=True) if keep])
    results = []
    for protocol, found in (
        ("retrieval text→video", retrieval(known, videos)),
        ("retrieval video→text", retrieval(videos, known)),
    ):
        n = found.count
        values = {f"R@{level}": (recall, level / n) for level, recall in found.recall.items()}
        values[MEDIAN_RANK] = (found.median_rank, (n + 1) / 2)
        for metric, (value, guess) in values.items():
            one = Result(protocol, metric, value, of, feature="embedding", count=n)
            results += [one, _chance(one, min(guess, 1.0) if metric != MEDIAN_RANK else guess)]
    return results


def _class_results(
    model: CPD, manifest: Manifest, features: Features, tested: torch.Tensor, of: Subject, k: int
) -> list[Result]:
    labels = manifest.column("label")
    for row in features.rows[tested].tolist():
        if not labels[row]:
            name = manifest.column("pair_id")[row]
            raise ManifestError(
                f"{manifest.path}: pair {name!r} of split test has no label, but others have"
            )
    classes = sorted({label for label in labels if label})
    of_classes = {label: index for index, label in enumerate(classes)}
    of_videos = torch.tensor([of_classes.get(labels[row], -1) for row in features.rows.tolist()])
    gallery = (of_videos >= 0) & ~tested
    truth = of_videos[tested]
    results = []
    for feature in ("visual", "embedding"):
        values: torch.Tensor = getattr(features, feature)
        predicted = knn_predict(values[gallery], of_videos[gallery], values[tested], k=k)
        accuracy = float((predicted == truth).double().mean())
        settings = {"k": k, "classes": len(classes)}
        results.append(
            Result(
                "kNN", "top-1", accuracy, of, feature=feature, count=len(truth), settings=settings
            )
        )
    names = embed_texts(model, [class_phrase(label) for label in classes])
    predicted = zero_shot_predict(features.embedding[tested], names)
    results.append(
        Result(
            "zero-shot", "top-1", float((predicted == truth).double().mean()), of,
            feature="embedding", count=len(truth), settings={"classes": len(classes)},
        )
    )  # fmt: skip
    return [each for one in results for each in (one, _chance(one, 1 / len(classes)))]


def _chance(result: Result, value: float) -> Result:
    return dataclasses.replace(result, of="chance", value=value)
