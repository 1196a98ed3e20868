"""Search in a library of made-up windows: how long it takes, and how much of the nearest it finds.

    python -m benchmarks.search [--windows 1000000]

Vectors are clustered, as embeddings are: a window is a random centre and as much noise again;
queries are made alike. `--spread` makes them ever more alike random vectors, the hardest case of
any index. The library's own search is compared with looking at every window, and with a bare
matrix product over vectors in memory. p50 and p95 are of the clock, and mean little on a machine
that is busy otherwise; processor milliseconds a query are beside them. The library is made by a
process of its own, so that memory is told of making it and of searching it; `--library` keeps it,
so that searching can be measured again.
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
AT_ONCE = 100_000  # windows that are added together
A_VIDEO = 100  # windows of a video
FOLDERS = 100  # that videos lie in
NEAREST = 10
MADE = "made.json"


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
    parser.add_argument("--library", type=Path, metavar="L", help="made there, and kept")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.library or Path(temporary) / "library"
        made = making(folder, options)
        results = measured(folder, options)
    results["results"] = {"making": made, **results["results"]}
    show(results)
    write_results(options.out, results, seed=options.seed, packages=["lancedb", "pyarrow", "torch"])


def making(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """What making the library took; it is made where it is not there."""
    if not (folder / MADE).exists():
        process = multiprocessing.get_context("spawn").Process(target=make, args=(folder, options))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)
    made: dict[str, Any] = json.loads((folder / MADE).read_text())
    if made.pop("settings") != about(options):
        raise SystemExit(f"{folder} holds other vectors; name another folder, or remove it")
    return made


def make(folder: Path, options: argparse.Namespace) -> None:
    """Make the library, and write down what that took."""
    model = small_model()
    library = Library.create(folder, model, Windows())
    begun = time.perf_counter()
    for vectors, first in parts(options):
        library.table.add(rows(vectors, first))
    added = time.perf_counter() - begun
    store_module.EXACT_UP_TO = 0  # an index at any size, so that a small run tells something
    begun, worked = time.perf_counter(), time.process_time()
    library.tidy()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    made = {
        "settings": about(options), "add_s": added, "index_s": time.perf_counter() - begun,
        "index_cpu_s": time.process_time() - worked, "GB": size / 1e9, "GiB_of_memory": memory(),
    }  # fmt: skip
    (folder / MADE).write_text(json.dumps(made))


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Times in ms, and the shares of the nearest windows that are found."""
    searcher = Searcher(Library(folder))
    queries = drawn(options, options.queries, options.windows)
    places = partial(found, searcher)
    one_folder = partial(places, folder="/videos/0")
    by_index, near = timed(places, queries)
    in_folder, near_in_folder = timed(one_folder, queries)
    searching = memory()
    by_exact, truth = timed(partial(places, exact=True), queries)
    truth_in_folder = [one_folder(query, exact=True) for query in queries]
    product = torch.from_numpy(np.concatenate([vectors for vectors, _ in parts(options)]))
    by_product, _ = timed(lambda query: (product @ torch.from_numpy(query)).topk(NEAREST), queries)
    recall = f"recall@{NEAREST}"
    return {
        "settings": {**about(options), "queries": options.queries},
        "results": {
            "index": {**by_index, recall: share(near, truth), "GiB_of_memory": searching},
            "index, one folder of 100": {
                **in_folder, recall: share(near_in_folder, truth_in_folder),
            },
            "exact": by_exact,
            "matrix product": by_product,
        },
    }  # fmt: skip


def about(options: argparse.Namespace) -> dict[str, Any]:
    """What the vectors hang on."""
    recipe = recipe_of({})
    return {
        "windows": options.windows, "dimensions": recipe.head.embedding,
        "centres": options.centres, "spread": options.spread, "seed": options.seed,
    }  # fmt: skip


def small_model() -> CPD:
    """Its video encoder is never used."""
    recipe = recipe_of({"video.depth": 10, "video.width": 4})
    words = WordAverage(["a"], torch.randn(1, 8))
    return CPD(words, recipe.clip, recipe.video, recipe.text, recipe.head).eval()


def parts(options: argparse.Namespace) -> Iterator[tuple[np.ndarray, int]]:
    """The library's vectors, and the number of the first; the same in every process."""
    for first in range(0, options.windows, AT_ONCE):
        yield drawn(options, min(AT_ONCE, options.windows - first), first), first


def drawn(options: argparse.Namespace, count: int, first: int) -> np.ndarray:
    """(count, D) float32 of unit norm, around centres; ``first`` tells parts apart."""
    dimensions = about(options)["dimensions"]
    of_centres = np.random.default_rng(options.seed)
    centres = of_centres.standard_normal((options.centres, dimensions), dtype=np.float32)
    generator = np.random.default_rng((options.seed, 1 + first))
    vectors = generator.standard_normal((count, dimensions), dtype=np.float32)
    vectors *= options.spread
    vectors += centres[generator.integers(0, len(centres), count)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def rows(vectors: np.ndarray, first: int) -> pa.Table:
    """Rows of a library's table, without thumbnails."""
    numbers = np.arange(first, first + len(vectors))
    videos = numbers // A_VIDEO
    paths = [f"/videos/{video % FOLDERS}/{video}.mp4" for video in videos]
    # Apart, so that no window is left out as another one's neighbour.
    starts = 10.0 * (numbers % A_VIDEO)
    columns = {
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
        "video": paths, "path": paths, "start": starts, "end": starts + 4,
        "title": pa.nulls(len(vectors), pa.string()),
        "thumbnail": pa.nulls(len(vectors), pa.binary()),
        "size": np.zeros(len(vectors), np.int64), "modified": np.zeros(len(vectors), np.int64),
    }  # fmt: skip
    return pa.table(columns, schema=schema(vectors.shape[1]))


def found(searcher: Searcher, query: np.ndarray, **choices: Any) -> set[tuple[str, float]]:
    """Where the moments are that a query finds."""
    moments = searcher.nearest(query, limit=NEAREST, **choices)
    return {(moment.path, moment.start) for moment in moments}


def share(near: list[set[Any]], truth: list[set[Any]]) -> float:
    """How many of the nearest were found."""
    both = zip(near, truth, strict=True)
    return statistics.mean(len(one & other) / len(other) for one, other in both)


def timed(
    search: Callable[[np.ndarray], Any], queries: np.ndarray
) -> tuple[dict[str, float], list[Any]]:
    """Milliseconds of a query, and what each finds; the first is asked once more before."""
    search(queries[0])
    times, answers = [], []
    worked = time.process_time()
    for query in queries:
        begun = time.perf_counter()
        answers.append(search(query))
        times.append(1e3 * (time.perf_counter() - begun))
    worked = time.process_time() - worked
    return {
        "cpu_ms": 1e3 * worked / len(queries),
        "p50_ms": float(np.percentile(times, 50)),
        "p95_ms": float(np.percentile(times, 95)),
    }, answers  # fmt: skip


def memory() -> float:
    """The most that this process held so far, in GiB, libraries included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def show(results: dict[str, Any]) -> None:
    """Print times and recall."""
    settings, of = results["settings"], dict(results["results"])
    made = of.pop("making")
    table = Table("way", title=f"{settings['windows']:,} windows", box=None, header_style="bold")
    for column in ("p50 ms", "p95 ms", "processor ms", f"recall@{NEAREST}"):
        table.add_column(column, justify="right")
    for way, times in of.items():
        shown = [f"{times[name]:.1f}" for name in ("p50_ms", "p95_ms", "cpu_ms")]
        table.add_row(way, *shown, f"{times.get(f'recall@{NEAREST}', 1.0):.3f}")
    Console().print(table)
    print(
        f"adding {made['add_s']:.1f} s, indexing {made['index_s']:.1f} s, {made['GB']:.2f} GB; "
        f"memory {made['GiB_of_memory']:.1f} GiB for making, "
        f"{of['index']['GiB_of_memory']:.1f} GiB for searching"
    )


if __name__ == "__main__":
    main()
