"""Time retrieval, kNN and the linear probe on a large corpus, compared with common implementations.

    python -m benchmarks.evaluation [--scale 0.02]

At scale 1: 240,000 training videos and 20,000 queries of 400 classes with 2,048 synthetic float32
features; for retrieval, 20,000 queries among 240,000 videos in 256 dimensions. The common
implementation of retrieval sorts all videos for each query and finds the rank of the correct one;
those of kNN and the linear probe are scikit-learn's (one epoch of SGDClassifier, multiplied by
the number of epochs). They run on two fractions of the work, and their time is extrapolated
linearly, so that fixed costs count once. A matrix product of the same size is the lower bound: the
probe needs two per epoch, the others one. Times are CPU seconds on one thread. Memory is the peak
of the process so far, including features and libraries.
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
from crosspair.evaluation.retrieval import target_ranks
from crosspair.progress import progress

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
TRAIN, QUERIES, CLASSES, FEATURES, EMBEDDING = 240_000, 20_000, 400, 2048, 256
PARTIAL_QUERIES, PARTIAL_VIDEOS = (50, 250), (800, 2400)  # for the common implementations
NOISE = 3.0  # standard deviation per feature, relative to that of the class centres


def main() -> None:
    """Run the benchmarks, print a table and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the videos (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the features (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        results = run_benchmarks(options.scale, options.seed)
    show(results)
    write_results(options.out, results, seed=options.seed, packages=["torch", "scikit-learn"])


def run_benchmarks(scale: float, seed: int) -> dict[str, Any]:
    """Run all benchmarks; return times in s, and sizes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    videos, query_count = round(scale * TRAIN), round(scale * QUERIES)
    results = {"retrieval": benchmark_retrieval(videos, query_count, generator)}
    train, labels = synthetic_features(videos, centres, generator)
    queries, truth = synthetic_features(query_count, centres, generator)
    results["kNN"] = benchmark_knn(train, labels, queries, truth)
    results["linear"] = benchmark_linear(train, labels, queries, truth)
    sizes = {"train": videos, "queries": query_count, "classes": CLASSES, "features": FEATURES,
             "embedding": EMBEDDING}  # fmt: skip
    return {"settings": {"scale": scale, **sizes}, "results": results}


def synthetic_features(
    videos: int, centres: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw features (videos, FEATURES) around class centres, and the labels."""
    labels = torch.randint(len(centres), (videos,), generator=generator)
    features = torch.empty(videos, centres.shape[1]).normal_(0, NOISE, generator=generator)
    for rows in torch.arange(videos).split(4096):  # in chunks, to keep the peak memory low
        features[rows] += centres[labels[rows]]
    return features, labels


def benchmark_retrieval(videos: int, query_count: int, generator: torch.Generator) -> dict[str, Any]:
    """Rank the correct video of each query; by sorting only for the first queries."""
    targets = F.normalize(torch.randn(videos, EMBEDDING, generator=generator), dim=1)
    noise = torch.randn(query_count, EMBEDDING, generator=generator) / EMBEDDING**0.5
    queries = F.normalize(targets[:query_count] + NOISE * noise, dim=1)
    ours, ranks = time_call(lambda: target_ranks(queries, targets))
    memory = peak_memory()

    def product() -> None:
        for part in queries.split(256):
            torch.mm(part, targets.T)

    def rank_by_sorting(part: int) -> torch.Tensor:
        order = (queries[:part] @ targets.T).argsort(dim=1, descending=True)
        return (order == torch.arange(part).unsqueeze(1)).nonzero()[:, 1] + 1

    product_s, _ = time_call(product)
    few, many = (min(part, query_count) for part in PARTIAL_QUERIES)
    theirs, found = extrapolate_time(rank_by_sorting, few, many, query_count)
    return {
        "crosspair": {"s": ours, "GiB": memory, "recall@1": fraction_equal(ranks, torch.ones(query_count))},
        "matrix product": {"s": product_s},
        "sorting": {
            "s": theirs,
            "extrapolated_from": f"{few} and {many} of {query_count} queries",
            "agreement": fraction_equal(found, ranks[:many]),
        },
        "times_a_matrix_product": ours / product_s,
        "times_faster": theirs / ours,
    }


def benchmark_knn(
    train: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, truth: torch.Tensor
) -> dict[str, Any]:
    """Time kNN on all queries, and scikit-learn's on the first queries."""
    ours, predicted = time_call(lambda: knn_predict(train, labels, queries))
    memory = peak_memory()

    def product() -> None:
        for part in queries.split(256):
            torch.mm(part, train.T)

    product_s, _ = time_call(product)
    classifier = KNeighborsClassifier(25, algorithm="brute", metric="cosine")
    classifier.fit(train.numpy(), labels.numpy())
    few, many = (min(part, len(queries)) for part in PARTIAL_QUERIES)
    theirs, their_labels = extrapolate_time(
        lambda part: classifier.predict(queries[:part].numpy()), few, many, len(queries)
    )
    return {
        "crosspair": {"s": ours, "GiB": memory, "accuracy": fraction_equal(predicted, truth)},
        "matrix product": {"s": product_s},
        "scikit-learn": {
            "s": theirs,
            "extrapolated_from": f"{few} and {many} of {len(queries)} queries",
            "agreement": fraction_equal(torch.from_numpy(their_labels), predicted[:many]),
        },
        "times_a_matrix_product": ours / product_s,
        "times_faster": theirs / ours,
    }


def benchmark_linear(
    train: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, truth: torch.Tensor
) -> dict[str, Any]:
    """Time the paper's 30 epochs on all videos, and one scikit-learn epoch on some of them."""
    config = LinearConfig()
    with progress("linear probe", config.epochs, "epochs") as bar:
        ours, probe = time_call(
            lambda: train_linear(train, labels, CLASSES, config, progress=lambda done, _: bar.advance(done))
        )
    memory = peak_memory()
    layer = torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(0))
    once, _ = time_call(lambda: train @ layer)
    product_s = 2 * config.epochs * once  # logits, and the gradient of the weights
    classifier = SGDClassifier(loss="log_loss", max_iter=1, tol=None)
    few, many = (min(part, len(train)) for part in PARTIAL_VIDEOS)
    once, _ = extrapolate_time(
        lambda part: classifier.fit(train[:part].numpy(), labels[:part].numpy()), few, many, len(train)
    )
    theirs = once * config.epochs
    return {
        "crosspair": {
            "s": ours,
            "GiB": memory,
            "accuracy": fraction_equal(linear_predict(probe, queries), truth),
            "epochs": config.epochs,
            "batch": config.batch_size,
        },
        "matrix product": {"s": product_s, "extrapolated_from": f"one of {2 * config.epochs} products"},
        "scikit-learn": {
            "s": theirs,
            "extrapolated_from": f"1 of {config.epochs} epochs, {few} and {many} of {len(train)} videos",
        },
        "times_a_matrix_product": ours / product_s,
        "times_faster": theirs / ours,
    }


def time_call(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a call and its result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def extrapolate_time(work: Callable[[int], Any], few: int, many: int, whole: int) -> tuple[float, Any]:
    """Extrapolate the CPU seconds from two fractions; also return the result of the larger one."""
    work(few)  # warm-up
    (few_s, _), (many_s, result) = time_call(lambda: work(few)), time_call(lambda: work(many))
    return many_s + (whole - many) * max(0.0, many_s - few_s) / max(1, many - few), result


def peak_memory() -> float:
    """Return the peak memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def fraction_equal(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the fraction of values that are as expected, 0 to 1."""
    return float((found == expected).double().mean())


def show(results: dict[str, Any]) -> None:
    """Print times, memory and ratios."""
    sizes = results["settings"]
    title = f"{sizes['train']:,} × {sizes['features']:,}, {sizes['queries']:,} queries"
    table = Table("protocol", "way", title=title, box=None, header_style="bold")
    for column in ("s", "GiB", "times a matrix product", "times faster than the common implementation"):
        table.add_column(column, justify="right")
    for protocol, ways in results["results"].items():
        for way, values in ways.items():
            if not isinstance(values, dict):
                continue
            ratios = [""] * 2
            if way == "crosspair":
                ratios = [f"{ways['times_a_matrix_product']:.2f}",
                          f"{ways['times_faster']:.1f}"]  # fmt: skip
            prefix = "~" if "extrapolated_from" in values else ""
            memory = f"{values['GiB']:.1f}" if "GiB" in values else ""
            table.add_row(protocol, way, f"{prefix}{values['s']:,.1f}", memory, *ratios)
    Console().print(table)


if __name__ == "__main__":
    main()
