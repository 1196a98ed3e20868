"""Search in a library of made-up windows: how long it takes, and how much of the nearest it finds.

    python -m benchmarks.search [--windows 1000000]

Vectors are clustered, as embeddings are: a window is a random centre and as much noise again;
queries are made alike. `--spread` makes them ever more alike random vectors, the hardest case of
any index. The library's own search is compared with looking at every window, and with a bare
matrix product over vectors in memory. p50 and p95 are of the clock, and mean little on a machine
that is busy otherwise; processor milliseconds a query are beside them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
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
AT_ONCE = 100_000  # windows that are added together
A_VIDEO = 100  # windows of a video
NEAREST = 10


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--windows", type=int, default=1_000_000, help="default: 1000000")
    parser.add_argument("--queries", type=int, default=100, help="default: 100")
    parser.add_argument("--centres", type=int, default=1000, help="of clusters (default: 1000)")
    parser.add_argument(
        "--spread", type=float, default=1.0, help="noise in units of the centres (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the vectors (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measured(Path(folder), options)
    show(results)
    write_results(options.out, results, seed=options.seed, packages=["lancedb", "pyarrow", "torch"])


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Times in ms, and the shares of the nearest windows that are found."""
    generator = np.random.default_rng(options.seed)
    model = small_model()
    dimensions = model.head.embedding
    centres = generator.standard_normal((options.centres, dimensions)).astype(np.float32)
    vectors = made_up(options.windows, centres, options.spread, generator)
    queries = made_up(options.queries, centres, options.spread, generator)
    library = Library.create(folder / "library", model, Windows())
    begun = time.perf_counter()
    for rows in tables(vectors):
        library.table.add(rows)
    added = time.perf_counter() - begun
    searcher = Searcher(library)

    def exact(query: np.ndarray) -> set[tuple[str, float]]:
        return places(searcher, query, exact=True)

    def indexed(query: np.ndarray) -> set[tuple[str, float]]:
        return places(searcher, query)

    product = torch.from_numpy(vectors)

    def bare(query: np.ndarray) -> object:
        return (product @ torch.from_numpy(query)).topk(NEAREST)

    by_exact, truth = timed(exact, queries)
    by_product, _ = timed(bare, queries)
    store_module.EXACT_UP_TO = 0  # an index at any size, so that a small run tells something
    begun, worked = time.perf_counter(), time.process_time()
    library.tidy()
    tidied, worked = time.perf_counter() - begun, time.process_time() - worked
    by_index, found = timed(indexed, queries)
    recall = statistics.mean(
        len(one & other) / len(other) for one, other in zip(found, truth, strict=True)
    )
    size = sum(path.stat().st_size for path in (folder / "library").rglob("*") if path.is_file())
    return {
        "settings": {
            "windows": options.windows, "dimensions": dimensions, "queries": options.queries,
            "centres": options.centres, "spread": options.spread,
        },
        "results": {
            "add_s": added, "index_s": tidied, "index_cpu_s": worked, "GB": size / 1e9,
            "exact": by_exact, "index": {**by_index, f"recall@{NEAREST}": recall},
            "matrix product": by_product,
        },
    }  # fmt: skip


def small_model() -> CPD:
    """Its video encoder is never used."""
    recipe = recipe_of({"video.depth": 10, "video.width": 4})
    words = WordAverage(["a"], torch.randn(1, 8))
    return CPD(words, recipe.clip, recipe.video, recipe.text, recipe.head).eval()


def made_up(
    count: int, centres: np.ndarray, spread: float, generator: np.random.Generator
) -> np.ndarray:
    """(count, D) float32 of unit norm."""
    vectors = generator.standard_normal((count, centres.shape[1]), dtype=np.float32)
    vectors *= spread
    vectors += centres[generator.integers(0, len(centres), count)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def tables(vectors: np.ndarray) -> Iterator[pa.Table]:
    """Rows of a library's table, without thumbnails."""
    dimensions = vectors.shape[1]
    for first in range(0, len(vectors), AT_ONCE):
        part = vectors[first : first + AT_ONCE]
        numbers = np.arange(first, first + len(part))
        paths = [f"/videos/{number // A_VIDEO}.mp4" for number in numbers]
        # Apart, so that no window is left out as another one's neighbour.
        starts = 10.0 * (numbers % A_VIDEO)
        columns = {
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), dimensions),
            "video": paths, "path": paths, "start": starts, "end": starts + 4,
            "title": pa.nulls(len(part), pa.string()),
            "thumbnail": pa.nulls(len(part), pa.binary()),
            "size": np.zeros(len(part), np.int64), "modified": np.zeros(len(part), np.int64),
        }  # fmt: skip
        yield pa.table(columns, schema=schema(dimensions))


def places(searcher: Searcher, query: np.ndarray, **choices: Any) -> set[tuple[str, float]]:
    """Where the moments are that a query finds."""
    found = searcher.nearest(query, limit=NEAREST, **choices)
    return {(moment.path, moment.start) for moment in found}


def timed(
    search: Callable[[np.ndarray], Any], queries: np.ndarray
) -> tuple[dict[str, float], list[Any]]:
    """Milliseconds of a query, and what each finds; the first does not count."""
    search(queries[0])
    times, found = [], []
    worked = time.process_time()
    for query in queries:
        begun = time.perf_counter()
        found.append(search(query))
        times.append(1e3 * (time.perf_counter() - begun))
    worked = time.process_time() - worked
    return {
        "cpu_ms": 1e3 * worked / len(queries),
        "p50_ms": float(np.percentile(times, 50)),
        "p95_ms": float(np.percentile(times, 95)),
    }, found  # fmt: skip


def show(results: dict[str, Any]) -> None:
    """Print times and recall."""
    settings, of = results["settings"], results["results"]
    table = Table("way", title=f"{settings['windows']:,} windows", box=None, header_style="bold")
    for column in ("p50 ms", "p95 ms", "processor ms", f"recall@{NEAREST}"):
        table.add_column(column, justify="right")
    for way in ("index", "exact", "matrix product"):
        times = [f"{of[way][name]:.1f}" for name in ("p50_ms", "p95_ms", "cpu_ms")]
        table.add_row(way, *times, f"{of[way].get(f'recall@{NEAREST}', 1.0):.3f}")
    Console().print(table)
    print(f"adding {of['add_s']:.1f} s, indexing {of['index_s']:.1f} s, {of['GB']:.2f} GB")


if __name__ == "__main__":
    main()
