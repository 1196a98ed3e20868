"""Measure the cost and accuracy of a library of labelled clips and long videos made from them.

    python -m benchmarks.library --manifest split1/prepared --model runs/mine/model

Indexes all clips of a manifest and ten long videos, each a concatenation of twenty test clips.
Searches for each class by name and counts the correct results among the ten best. Searches each
long video for its classes, and all of them for degraded copies of clips: a result is correct if it
overlaps a correct clip. Chance is the fraction of correct windows. Then five clips are removed and
added again. Finally, another library is built by a process that is killed repeatedly and commits
after every video. Titles are not used. Times are wall-clock; CPU seconds of all processes are
reported too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.joined import join, poor_copy
from benchmarks.measuring import write_results
from crosspair.corpora import Manifest
from crosspair.corpora.build import class_phrase
from crosspair.library import InferenceEngine, Library, Searcher, SearchHit, index_videos, load_engine
from crosspair.library import index as indexing
from crosspair.library.store import is_library, sql_quote
from crosspair.progress import delayed_progress, progress

RESULTS = Path(__file__).parent / "results" / "library.json"
LONG_VIDEOS, CLIPS_PER_VIDEO = 10, 20
TOP = 10  # results per query
COPIES, CHANGED_FILES = 100, 5


@dataclass(frozen=True)
class Occurrence:
    """An occurrence of a clip in a video.

    Attributes:
        path: the video.
        start, end: time range in s.
        label: class of the clip.
        source: file of the clip.
    """

    path: str
    start: float
    end: float
    label: str
    source: str

    def overlaps(self, path: str, start: float, end: float) -> bool:
        """Whether a time range of a file overlaps this occurrence."""
        return path == self.path and start < self.end and end > self.start


@dataclass(frozen=True)
class Material:
    """The indexed videos.

    Attributes:
        folder: contains the folders ``clips`` and ``long``.
        clips: label, and whether the clip is in the test split, by path.
        occurrences: the clips in the long videos.
    """

    folder: Path
    clips: dict[str, tuple[str, bool]]
    occurrences: list[Occurrence]

    @property
    def folders(self) -> list[Path]:
        return [self.folder / "clips", self.folder / "long"]


def main() -> None:
    """Run the benchmark, print the results and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--manifest", type=Path, required=True, help="manifest of labelled clips")
    parser.add_argument("--model", type=Path, required=True, help="model trained on the training split")
    parser.add_argument("--kills", type=int, default=10, help="kills of another indexing process (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of random choices (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    manifest, encoder = Manifest.read(options.manifest), load_engine(options.model)
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        material = prepare_material(manifest, Path(temporary), draw)
        library = Path(temporary) / "library"
        indexed = measure_indexing(material, library, encoder)
        searcher = Searcher(library, encoder)
        results = {
            "index": indexed,
            "classes": precision_by_class(material, searcher),
            "long videos": search_long_videos(material, searcher, draw),
            "changes": measure_updates(material, library, encoder, draw),
            "kills": measure_kills(material, library, options, draw, indexed["s"]),
        }
    show(results)
    settings = {
        "manifest": manifest.hash, "model": encoder.model.hash, "clips": len(material.clips),
        "long_videos": LONG_VIDEOS, "clips_of_each": CLIPS_PER_VIDEO, "device": str(encoder.device),
    }  # fmt: skip
    write_results(
        options.out, {"settings": settings, "results": results},
        seed=options.seed, packages=["lancedb", "torch", "av"],
    )  # fmt: skip


def prepare_material(manifest: Manifest, folder: Path, draw: random.Random) -> Material:
    """Copy the clips, and concatenate test clips to long videos."""
    for name in ("clips", "long"):
        (folder / name).mkdir()
    clips = {}
    columns = (manifest.column(name) for name in ("pair_id", "label", "split", "error"))
    rows = zip(manifest.clips(), *columns, strict=True)
    for clip, pair_id, label, split, error in rows:
        if label and not error:
            copy = folder / "clips" / f"{pair_id}{Path(clip.path).suffix}"
            shutil.copyfile(clip.path, copy)
            clips[str(copy)] = class_phrase(label), split == "test"
    tested = sorted(path for path, (_, test) in clips.items() if test)
    chosen = draw.sample(tested, LONG_VIDEOS * CLIPS_PER_VIDEO)
    occurrences = []
    with progress("joining", LONG_VIDEOS, "videos") as bar:
        for number in range(LONG_VIDEOS):
            sources = chosen[number * CLIPS_PER_VIDEO : (number + 1) * CLIPS_PER_VIDEO]
            path = folder / "long" / f"{number}.mp4"
            for source, span in zip(sources, join(sources, path), strict=True):
                occurrences.append(Occurrence(str(path), *span, clips[source][0], source))
            bar.advance(number + 1)
    return Material(folder, clips, occurrences)


def measure_indexing(material: Material, library: Path, encoder: InferenceEngine) -> dict[str, float]:
    """Index everything and measure the cost."""
    start, cpu_start = time.perf_counter(), cpu_seconds()
    with delayed_progress("indexing", "videos") as advance:
        done = index_videos(library, encoder, material.folders, progress=advance)
    seconds, cpu_s = time.perf_counter() - start, cpu_seconds() - cpu_start
    length = sum(max(end for _, end in spans) for spans in windows_of(library).values())
    size = sum(path.stat().st_size for path in (library / "windows.lance").rglob("*.*"))
    return {
        "videos": done.added, "broken": len(done.broken), "windows": done.windows,
        "video_s": length, "s": seconds, "cpu_s": cpu_s, "windows_a_s": done.windows / seconds,
        "video_s_a_s": length / seconds, "MB": size / 1e6,
    }  # fmt: skip


def precision_by_class(material: Material, searcher: Searcher) -> dict[str, Any]:
    """Compute P@10 of each class, among all clips and among the test clips."""
    windows = windows_of(searcher.library.folder)
    results: dict[str, Any] = {}
    for among in ("all", "test"):
        paths = [path for path, (_, test) in material.clips.items() if test or among == "all"]
        counts = Counter[str]()
        for path in paths:
            counts[material.clips[path][0]] += len(windows.get(path, ()))
        for label in sorted(counts):
            hits = search_paths(searcher, label, paths)
            right = sum(material.clips[moment.path][0] == label for moment in hits)
            class_results = results.setdefault(label, {})
            class_results[among] = {
                f"P@{TOP}": right / TOP, "chance": counts[label] / counts.total(),
            }  # fmt: skip
    return results


def search_paths(searcher: Searcher, text: str, paths: Sequence[str]) -> list[SearchHit]:
    """Return the best results among some videos, in parts because the length of a condition is limited."""
    hits: list[SearchHit] = []
    for first in range(0, len(paths), 100):
        listed = ", ".join(map(sql_quote, paths[first : first + 100]))
        hits += searcher.text(text, limit=TOP, where=f"path IN ({listed})", by="picture")
    return sorted(hits, key=lambda hit: hit.score, reverse=True)[:TOP]


def search_long_videos(material: Material, searcher: Searcher, draw: random.Random) -> dict[str, Any]:
    """Measure how often the best result overlaps a correct clip."""
    windows = windows_of(searcher.library.folder)
    text_correct, text_chance = [], []
    for path in sorted({each.path for each in material.occurrences}):
        in_video = [each for each in material.occurrences if each.path == path]
        for label in sorted({each.label for each in in_video}):
            correct = [each for each in in_video if each.label == label]
            (best,) = searcher.text(label, limit=1, where=f"path = {sql_quote(path)}", by="picture")
            text_correct.append(overlaps_any(best, correct))
            inside = [any(each.overlaps(path, *span) for each in correct) for span in windows[path]]
            text_chance.append(sum(inside) / len(inside))
    copy_correct, copy_chance = list[bool](), list[float]()
    total = sum(len(windows[path]) for path in {each.path for each in material.occurrences})
    copy = material.folder / "copy.mp4"
    for each in draw.sample(material.occurrences, min(COPIES, len(material.occurrences))):
        poor_copy(each.source, copy)
        (best,) = searcher.video(copy, limit=1, folder=material.folder / "long")
        copy_correct.append(overlaps_any(best, [each]))
        copy_chance.append(sum(each.overlaps(each.path, *span) for span in windows[each.path]) / total)
    return {
        "by class name": success_rates(text_correct, text_chance),
        "by a poor copy": success_rates(copy_correct, copy_chance),
    }


def measure_updates(material: Material, library: Path, encoder: InferenceEngine, draw: random.Random) -> dict[str, Any]:
    """Remove some clips and add them again, updating the library each time."""
    before = windows_of(library)
    away = material.folder / "away"
    away.mkdir()
    chosen = [Path(path) for path in draw.sample(sorted(material.clips), CHANGED_FILES)]
    results: dict[str, Any] = {}
    for name, source, target in (
        ("deleted", material.folders[0], away), ("added", away, material.folders[0]),
    ):  # fmt: skip
        for path in chosen:
            (source / path.name).rename(target / path.name)
        start = time.perf_counter()
        done = index_videos(library, encoder, material.folders)
        results[name] = {
            "files": CHANGED_FILES, "added": done.added, "removed": done.removed,
            "unchanged": done.unchanged, "s": time.perf_counter() - start,
        }  # fmt: skip
    results["windows as before"] = windows_of(library) == before
    return results


def measure_kills(
    material: Material, library: Path, options: argparse.Namespace, draw: random.Random, seconds: float
) -> dict[str, int]:
    """Kill an indexing process at random moments, and check the library each time.

    Args:
        material: videos to index.
        library: complete library for comparison.
        options: of the command: the model and the number of kills.
        draw: random generator of the moments.
        seconds: duration of a complete indexing.
    """
    whole, another = windows_of(library), material.folder / "another"
    counts = Counter(dict.fromkeys(("kills", "no library yet", "opened", "grown", "faults"), 0))
    before = 0
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.library"])
    for _ in range(options.kills):
        receiver, sender = context.Pipe()
        process = context.Process(target=index_to_be_killed, args=(another, material.folders, options.model, sender))
        process.start()
        sender.close()
        receiver.recv()
        process.join(draw.uniform(0, seconds / 3))
        counts["kills"] += process.exitcode is None
        process.kill()
        process.join()
        if is_library(another):
            counts["opened"] += 1
            windows = windows_of(another)
            counts["faults"] += any(whole[path] != spans for path, spans in windows.items())
            count = sum(map(len, windows.values()))
            counts["grown"] += count > before
            before = count
        else:
            counts["no library yet"] += 1
    index_videos(another, load_engine(options.model), material.folders)
    counts["faults"] += windows_of(another) != whole
    return dict(counts)


def index_to_be_killed(library: Path, folders: list[Path], model: Path, started: Connection) -> None:
    """Index and commit after every video."""
    indexing.COMMIT_SECONDS = 0.0
    encoder = load_engine(model)
    started.send(None)
    index_videos(library, encoder, folders)


Windows = dict[str, list[tuple[float, float]]]  # (start, end) in s, by path


def windows_of(library: Path) -> Windows:
    """Return the windows of a library in order of time; duplicates are kept."""
    windows: Windows = defaultdict(list)
    rows = Library(library).table.search().select(["path", "start", "end"]).to_list()
    for row in rows:
        windows[row["path"]].append((row["start"], row["end"]))
    return {path: sorted(spans) for path, spans in windows.items()}


def overlaps_any(moment: SearchHit, occurrences: Sequence[Occurrence]) -> bool:
    """Whether a search result overlaps any of the given occurrences."""
    return any(each.overlaps(moment.path, moment.start, moment.end) for each in occurrences)


def success_rates(right: Sequence[bool], chances: Sequence[float]) -> dict[str, float]:
    """Return the fraction of successful queries, and the fraction expected by chance."""
    count = len(right)
    return {"queries": count, "right": sum(right) / count, "chance": sum(chances) / count}


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and its finished children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in usages)


def show(results: dict[str, Any]) -> None:
    """Print the results."""
    cost = results["index"]
    print(
        f"{cost['videos']} videos, {cost['video_s']:.0f} s, {cost['windows']} windows "
        f"in {cost['s']:.0f} s "
        f"({cost['cpu_s']:.0f} CPU s): {cost['windows_a_s']:.0f} windows/s, "
        f"{cost['video_s_a_s']:.0f} video s/s; {cost['MB']:.0f} MB"
    )
    table = Table("class", box=None, header_style="bold")
    for among in ("all clips", "test clips"):
        table.add_column(f"P@{TOP}, {among}", justify="right")
        table.add_column("chance", justify="right")
    for label, values in results["classes"].items():
        cells = (f"{values[among][name]:.2f}" for among in ("all", "test") for name in values[among])
        table.add_row(label, *cells)
    Console().print(table)
    for name in ("long videos", "changes", "kills"):
        print(f"{name}: {results[name]}")


if __name__ == "__main__":
    main()
