"""Measure latency and recall of searches in a library of synthetic windows.

    python -m benchmarks.search [--windows 1000000]

Vectors are clustered like embeddings: a window is a random centre plus noise of the same size, and
so is a query. A larger `--spread` makes them more like random vectors, the hardest case for an
index. The library's indexed search is compared with its exact search and with a matrix product over
vectors in memory. p50 and p95 are wall-clock latencies, which need an otherwise idle machine; CPU
milliseconds per query are reported too. The library is built in a separate process, so that the
memory of building and of searching is measured separately. `--library` keeps it, so that you can
repeat the search.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import write_results
from crosspair.library import Library, Searcher, Windows
from crosspair.library import store as store_module
from crosspair.library.store import schema
from crosspair.models import CPD, WordAverage
from crosspair.recipes import recipe_of

RESULTS = Path(__file__).parent / "results" / "search.json"
BATCH = 100_000  # windows added in one call
WINDOWS_PER_VIDEO = 100
FOLDERS = 100  # folders of the videos
NEAREST = 10
COST_FILE = "made.json"


def main() -> None:
    """Build the library, measure searches, print a table and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--windows", type=int, default=1_000_000, help="default: 1000000")
    parser.add_argument("--queries", type=int, default=100, help="default: 100")
    parser.add_argument("--centres", type=int, default=1000, help="number of clusters (default: 1000)")
    parser.add_argument("--spread", type=float, default=1.0, help="noise relative to the centres (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the vectors (default: 0)")
    parser.add_argument("--library", type=Path, metavar="L", help="build the library here and keep it")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.library or Path(temporary) / "library"
        cost = build_library(folder, options)
        results = measure_search(folder, options)
    results["results"] = {"making": cost, **results["results"]}
    show(results)
    write_results(options.out, results, seed=options.seed, packages=["lancedb", "pyarrow", "torch"])


def build_library(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Build the library if it does not exist, and return the cost of building it."""
    if not (folder / COST_FILE).exists():
        process = multiprocessing.get_context("spawn").Process(target=build_and_measure, args=(folder, options))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)
    cost: dict[str, Any] = json.loads((folder / COST_FILE).read_text())
    if cost.pop("settings") != vector_settings(options):
        raise SystemExit(f"{folder} was built with other settings; delete it or use another folder")
    return cost


def build_and_measure(folder: Path, options: argparse.Namespace) -> None:
    """Build the library and write the cost of building it."""
    model = small_model()
    library = Library.create(folder, model, Windows())
    start = time.perf_counter()
    for vectors, first in vector_batches(options):
        library.table.add(table_rows(vectors, first))
    added = time.perf_counter() - start
    store_module.EXACT_UP_TO = 0  # build the index at any size
    start, cpu_start = time.perf_counter(), time.process_time()
    library.optimize()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    cost = {
        "settings": vector_settings(options),
        "add_s": added,
        "index_s": time.perf_counter() - start,
        "index_cpu_s": time.process_time() - cpu_start,
        "GB": size / 1e9,
        "GiB_of_memory": peak_memory(),
    }
    (folder / COST_FILE).write_text(json.dumps(cost))


def measure_search(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure latencies in ms, and the fraction of the nearest windows that are found."""
    searcher = Searcher(Library(folder))
    queries = draw_vectors(options, options.queries, options.windows)
    search = partial(find_windows, searcher)
    search_folder = partial(search, folder="/videos/0")
    by_index, near = time_queries(search, queries)
    in_folder, near_in_folder = time_queries(search_folder, queries)
    search_memory = peak_memory()
    by_exact, truth = time_queries(partial(search, exact=True), queries)
    truth_in_folder = [search_folder(query, exact=True) for query in queries]
    product = torch.from_numpy(np.concatenate([vectors for vectors, _ in vector_batches(options)]))
    by_product, _ = time_queries(lambda query: (product @ torch.from_numpy(query)).topk(NEAREST), queries)
    recall = f"recall@{NEAREST}"
    return {
        "settings": {**vector_settings(options), "queries": options.queries},
        "results": {
            "index": {**by_index, recall: mean_recall(near, truth), "GiB_of_memory": search_memory},
            "index, one folder of 100": {
                **in_folder, recall: mean_recall(near_in_folder, truth_in_folder),
            },
            "exact": by_exact,
            "matrix product": by_product,
        },
    }  # fmt: skip


def vector_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that determine the vectors."""
    recipe = recipe_of({})
    return {
        "windows": options.windows, "dimensions": recipe.head.embedding,
        "centres": options.centres, "spread": options.spread, "seed": options.seed,
    }  # fmt: skip


def small_model() -> CPD:
    """Build a model for the library; its video encoder is never used."""
    recipe = recipe_of({"video.depth": 10, "video.width": 4})
    words = WordAverage(["a"], torch.randn(1, 8))
    return CPD(words, recipe.clip, recipe.video, recipe.text, recipe.head).eval()


def vector_batches(options: argparse.Namespace) -> Iterator[tuple[np.ndarray, int]]:
    """Yield batches of vectors with the index of the first; the same in every process."""
    for first in range(0, options.windows, BATCH):
        yield draw_vectors(options, min(BATCH, options.windows - first), first), first


def draw_vectors(options: argparse.Namespace, count: int, first: int) -> np.ndarray:
    """Draw vectors (count, D), float32 of unit norm, around centres; ``first`` seeds the batch."""
    dimensions = vector_settings(options)["dimensions"]
    centre_generator = np.random.default_rng(options.seed)
    centres = centre_generator.standard_normal((options.centres, dimensions), dtype=np.float32)
    generator = np.random.default_rng((options.seed, 1 + first))
    vectors = generator.standard_normal((count, dimensions), dtype=np.float32)
    vectors *= options.spread
    vectors += centres[generator.integers(0, len(centres), count)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def table_rows(vectors: np.ndarray, first: int) -> pa.Table:
    """Return rows of a library's table, without thumbnails."""
    numbers = np.arange(first, first + len(vectors))
    videos = numbers // WINDOWS_PER_VIDEO
    paths = [f"/videos/{video % FOLDERS}/{video}.mp4" for video in videos]
    # Far apart, so that no window is suppressed as a neighbour of another.
    starts = 10.0 * (numbers % WINDOWS_PER_VIDEO)
    columns = {
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
        "video": paths, "path": paths, "start": starts, "end": starts + 4,
        "title": pa.nulls(len(vectors), pa.string()),
        "thumbnail": [b""] * len(vectors),
        "size": np.zeros(len(vectors), np.int64), "modified": np.zeros(len(vectors), np.int64),
    }  # fmt: skip
    return pa.table(columns, schema=schema(vectors.shape[1]))


def find_windows(searcher: Searcher, query: np.ndarray, **choices: Any) -> set[tuple[str, float]]:
    """Return path and start of the windows that a query finds."""
    hits = searcher.nearest(query, limit=NEAREST, **choices)
    return {(hit.path, hit.start) for hit in hits}


def mean_recall(near: list[set[Any]], truth: list[set[Any]]) -> float:
    """Return the mean fraction of the true nearest windows that were found."""
    pairs = zip(near, truth, strict=True)
    return statistics.mean(len(found & expected) / len(expected) for found, expected in pairs)


def time_queries(search: Callable[[np.ndarray], Any], queries: np.ndarray) -> tuple[dict[str, float], list[Any]]:
    """Return latencies in ms and the results of all queries, after one warm-up query."""
    search(queries[0])
    times, answers = [], []
    cpu_start = time.process_time()
    for query in queries:
        start = time.perf_counter()
        answers.append(search(query))
        times.append(1e3 * (time.perf_counter() - start))
    cpu_s = time.process_time() - cpu_start
    return {
        "cpu_ms": 1e3 * cpu_s / len(queries),
        "p50_ms": float(np.percentile(times, 50)),
        "p95_ms": float(np.percentile(times, 95)),
    }, answers  # fmt: skip


def peak_memory() -> float:
    """Return the peak memory of this process so far in GiB, including libraries."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def show(results: dict[str, Any]) -> None:
    """Print latencies and recall."""
    settings, ways = results["settings"], dict(results["results"])
    cost = ways.pop("making")
    table = Table("way", title=f"{settings['windows']:,} windows", box=None, header_style="bold")
    for column in ("p50 ms", "p95 ms", "CPU ms", f"recall@{NEAREST}"):
        table.add_column(column, justify="right")
    for way, times in ways.items():
        shown = [f"{times[name]:.1f}" for name in ("p50_ms", "p95_ms", "cpu_ms")]
        table.add_row(way, *shown, f"{times.get(f'recall@{NEAREST}', 1.0):.3f}")
    Console().print(table)
    print(
        f"adding {cost['add_s']:.1f} s, indexing {cost['index_s']:.1f} s, {cost['GB']:.2f} GB; "
        f"memory {cost['GiB_of_memory']:.1f} GiB for building, "
        f"{ways['index']['GiB_of_memory']:.1f} GiB for searching"
    )


if __name__ == "__main__":
    main()
