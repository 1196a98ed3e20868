"""Retrieval, kNN and the linear probe on a large corpus, beside common ways and bare products.

    python -m benchmarks.evaluation [--scale 0.02]

At scale 1: 240,000 training videos and 20,000 queries of 400 classes, 2,048 features, float32, made
up; for retrieval, 20,000 queries among as many videos, in 256 dimensions. The common way of
retrieval sorts all videos for each query, and looks where its own stands; those of kNN and the
linear probe are scikit-learn's (one epoch of its SGDClassifier, times the epochs). They get two
parts of the work, as told, and their time is extrapolated along the line through both, so that what
is done but once counts once. A bare matrix product of the same size says what cannot be beaten: a
probe needs two an epoch, the others one. Times are processor seconds on one thread; memory is the
most that the process held so far, features and libraries included.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import SGDClassifier
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from benchmarks.measuring import write_results
from crosspair.evaluation import LinearConfig, knn_predict, linear_predict, train_linear
from crosspair.evaluation.retrieval import own_ranks
from crosspair.progress import progress

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
TRAIN, QUERIES, CLASSES, FEATURES, EMBEDDING = 240_000, 20_000, 400, 2048, 256
SOME_QUERIES, SOME_VIDEOS = (50, 250), (800, 2400)  # for common ways
NOISE = 3.0  # in units of the distance between centres, along each feature


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="of the videos (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the features (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        results = measured(options.scale, options.seed)
    show(results)
    write_results(options.out, results, seed=options.seed, packages=["torch", "scikit-learn"])


def measured(scale: float, seed: int) -> dict[str, Any]:
    """All times, in s, and what they are times of."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    videos, asked = round(scale * TRAIN), round(scale * QUERIES)
    results = {"retrieval": retrieval_times(videos, asked, generator)}
    train, labels = made_up(videos, centres, generator)
    queries, truth = made_up(asked, centres, generator)
    results["kNN"] = knn_times(train, labels, queries, truth)
    results["linear"] = linear_times(train, labels, queries, truth)
    sizes = {"train": videos, "queries": asked, "classes": CLASSES, "features": FEATURES,
             "embedding": EMBEDDING}  # fmt: skip
    return {"settings": {"scale": scale, **sizes}, "results": results}


def made_up(
    videos: int, centres: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (videos, FEATURES) around the centres of their classes, and the classes."""
    labels = torch.randint(len(centres), (videos,), generator=generator)
    features = torch.empty(videos, centres.shape[1]).normal_(0, NOISE, generator=generator)
    for rows in torch.arange(videos).split(4096):  # a copy of all would count as memory
        features[rows] += centres[labels[rows]]
    return features, labels


def retrieval_times(videos: int, asked: int, generator: torch.Generator) -> dict[str, Any]:
    """The rank of each query's own video among all; found by sorting for the first of them."""
    targets = F.normalize(torch.randn(videos, EMBEDDING, generator=generator), dim=1)
    noise = torch.randn(asked, EMBEDDING, generator=generator) / EMBEDDING**0.5
    queries = F.normalize(targets[:asked] + NOISE * noise, dim=1)
    ours, ranks = timed(lambda: own_ranks(queries, targets))
    memory = most_memory()

    def product() -> None:
        for part in queries.split(256):
            torch.mm(part, targets.T)

    def by_sorting(part: int) -> torch.Tensor:
        order = (queries[:part] @ targets.T).argsort(dim=1, descending=True)
        return (order == torch.arange(part).unsqueeze(1)).nonzero()[:, 1] + 1

    bare, _ = timed(product)
    few, many = (min(part, asked) for part in SOME_QUERIES)
    theirs, found = extrapolated(by_sorting, few, many, asked)
    return {
        "crosspair": {"s": ours, "GiB": memory, "recall@1": share(ranks, torch.ones(asked))},
        "matrix product": {"s": bare},
        "sorting": {
            "s": theirs,
            "extrapolated_from": f"{few} and {many} of {asked} queries",
            "agreement": share(found, ranks[:many]),
        },
        "times_a_matrix_product": ours / bare,
        "times_faster": theirs / ours,
    }


def knn_times(
    train: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, truth: torch.Tensor
) -> dict[str, Any]:
    """kNN on all queries; scikit-learn's on the first of them."""
    ours, predicted = timed(lambda: knn_predict(train, labels, queries))
    memory = most_memory()

    def product() -> None:
        for part in queries.split(256):
            torch.mm(part, train.T)

    bare, _ = timed(product)
    judge = KNeighborsClassifier(25, algorithm="brute", metric="cosine")
    judge.fit(train.numpy(), labels.numpy())
    few, many = (min(part, len(queries)) for part in SOME_QUERIES)
    theirs, judged = extrapolated(
        lambda part: judge.predict(queries[:part].numpy()), few, many, len(queries)
    )
    return {
        "crosspair": {"s": ours, "GiB": memory, "accuracy": share(predicted, truth)},
        "matrix product": {"s": bare},
        "scikit-learn": {
            "s": theirs,
            "extrapolated_from": f"{few} and {many} of {len(queries)} queries",
            "agreement": share(torch.from_numpy(judged), predicted[:many]),
        },
        "times_a_matrix_product": ours / bare,
        "times_faster": theirs / ours,
    }


def linear_times(
    train: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, truth: torch.Tensor
) -> dict[str, Any]:
    """The paper's 30 epochs on all videos; an epoch of scikit-learn on the first of them."""
    config = LinearConfig()
    with progress("linear probe", config.epochs, "epochs") as bar:
        ours, probe = timed(
            lambda: train_linear(
                train, labels, CLASSES, config, progress=lambda done, _: bar.advance(done)
            )
        )
    memory = most_memory()
    layer = torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(0))
    once, _ = timed(lambda: train @ layer)
    bare = 2 * config.epochs * once  # logits, and the gradient of the weights
    judge = SGDClassifier(loss="log_loss", max_iter=1, tol=None)
    few, many = (min(part, len(train)) for part in SOME_VIDEOS)
    once, _ = extrapolated(
        lambda part: judge.fit(train[:part].numpy(), labels[:part].numpy()), few, many, len(train)
    )
    theirs = once * config.epochs
    return {
        "crosspair": {
            "s": ours,
            "GiB": memory,
            "accuracy": share(linear_predict(probe, queries), truth),
            "epochs": config.epochs,
            "batch": config.batch_size,
        },
        "matrix product": {"s": bare, "extrapolated_from": f"one of {2 * config.epochs} products"},
        "scikit-learn": {
            "s": theirs,
            "extrapolated_from": f"1 of {config.epochs} epochs, "
            f"{few} and {many} of {len(train)} videos",
        },
        "times_a_matrix_product": ours / bare,
        "times_faster": theirs / ours,
    }


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds that something takes, and what it gives."""
    begun = time.process_time()
    given = work()
    return time.process_time() - begun, given


def extrapolated(work: Callable[[int], Any], few: int, many: int, whole: int) -> tuple[float, Any]:
    """Processor seconds that the whole would take, by two parts of it; what the larger gives."""
    work(few)  # what the first call does besides counts for neither
    (of_few, _), (of_many, given) = timed(lambda: work(few)), timed(lambda: work(many))
    return of_many + (whole - many) * max(0.0, of_many - of_few) / max(1, many - few), given


def most_memory() -> float:
    """GiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def share(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How much of what was found is as expected, 0 to 1."""
    return float((found == expected).double().mean())


def show(results: dict[str, Any]) -> None:
    """Print times, memory and ratios."""
    sizes = results["settings"]
    title = f"{sizes['train']:,} × {sizes['features']:,}, {sizes['queries']:,} queries"
    table = Table("protocol", "way", title=title, box=None, header_style="bold")
    for column in ("s", "GiB", "times a matrix product", "times faster than the common way"):
        table.add_column(column, justify="right")
    for protocol, of in results["results"].items():
        for way, told in of.items():
            if not isinstance(told, dict):
                continue
            ratios = [""] * 2
            if way == "crosspair":
                ratios = [f"{of['times_a_matrix_product']:.2f}",
                          f"{of['times_faster']:.1f}"]  # fmt: skip
            about = "~" if "extrapolated_from" in told else ""
            memory = f"{told['GiB']:.1f}" if "GiB" in told else ""
            table.add_row(protocol, way, f"{about}{told['s']:,.1f}", memory, *ratios)
    Console().print(table)


if __name__ == "__main__":
    main()
