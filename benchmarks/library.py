"""A library of labelled clips and of long videos made of them: what it costs, and what it finds.

    python -m benchmarks.library --manifest split1/prepared --model runs/mine/model

It indexes all clips of a manifest and ten long videos, each made by joining twenty clips of the
test split. It searches for each class by its name, and counts the classes of the ten best moments.
It looks in each long video for the classes that it holds, and in all of them for poor copies of
clips: a moment is right that overlaps a right clip. Chance is the share of windows that would be
right. Then five clips are taken away and put back; and another library is made by a process that is
killed again and again, which commits every video, so that there is much to kill. Titles take no
part. Times are of the clock; processor seconds, of all processes, are beside them.
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
from crosspair.corpora.labels import class_phrase
from crosspair.library import Engine, Library, Moment, Searcher, engine, index, indexing
from crosspair.library.store import is_library, quoted
from crosspair.progress import late_progress, progress

RESULTS = Path(__file__).parent / "results" / "library.json"
LONG, OF_CLIPS = 10, 20  # long videos, and clips of each
FOUND = 10  # moments
COPIES, CHANGED, KILLS = 100, 5, 10


@dataclass(frozen=True)
class Shown:
    """A clip, somewhere.

    Attributes:
        path: of the file that shows it.
        start, end: when, in s.
        label: what it is.
        source: the file of the clip itself.
    """

    path: str
    start: float
    end: float
    label: str
    source: str

    def meets(self, path: str, start: float, end: float) -> bool:
        """Whether some seconds of a file show a part of it."""
        return path == self.path and start < self.end and end > self.start


@dataclass(frozen=True)
class Material:
    """What is indexed.

    Attributes:
        clips: label and whether it is tested, by path.
        shown: what the long videos show.
    """

    folder: Path
    clips: dict[str, tuple[str, bool]]
    shown: list[Shown]

    @property
    def folders(self) -> list[Path]:
        return [self.folder / "clips", self.folder / "long"]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--manifest", type=Path, required=True, help="of labelled clips")
    parser.add_argument("--model", type=Path, required=True, help="trained on its training split")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    manifest, of = Manifest.read(options.manifest), engine(options.model)
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        material = prepared(manifest, Path(temporary), draw)
        library = Path(temporary) / "library"
        indexed = indexing_told(material, library, of)
        searcher = Searcher(library, of)
        results = {
            "index": indexed,
            "classes": by_class(material, searcher),
            "long videos": in_long_videos(material, searcher, draw),
            "changes": changes(material, library, of, draw),
            "kills": kills(material, library, options.model, draw, indexed["s"]),
        }
    show(results)
    settings = {
        "manifest": manifest.hash, "model": of.model.hash, "clips": len(material.clips),
        "long_videos": LONG, "clips_of_each": OF_CLIPS, "device": str(of.device),
    }  # fmt: skip
    write_results(
        options.out, {"settings": settings, "results": results},
        seed=options.seed, packages=["lancedb", "torch", "av"],
    )  # fmt: skip


def prepared(manifest: Manifest, folder: Path, draw: random.Random) -> Material:
    """Copies of the clips, which may be deleted, and long videos of those that are tested."""
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
    chosen = draw.sample(tested, LONG * OF_CLIPS)
    shown = []
    with progress("joining", LONG, "videos") as bar:
        for number in range(LONG):
            sources = chosen[number * OF_CLIPS : (number + 1) * OF_CLIPS]
            path = folder / "long" / f"{number}.mp4"
            for source, span in zip(sources, join(sources, path), strict=True):
                shown.append(Shown(str(path), *span, clips[source][0], source))
            bar.advance(number + 1)
    return Material(folder, clips, shown)


def indexing_told(material: Material, library: Path, of: Engine) -> dict[str, float]:
    """What indexing everything takes."""
    begun, worked = time.perf_counter(), processor_seconds()
    with late_progress("indexing", "videos") as advance:
        done = index(library, of, material.folders, progress=advance)
    seconds, worked = time.perf_counter() - begun, processor_seconds() - worked
    length = sum(max(end for _, end in of_video) for of_video in windows_of(library).values())
    size = sum(path.stat().st_size for path in (library / "windows.lance").rglob("*.*"))
    return {
        "videos": done.added, "broken": len(done.broken), "windows": done.windows,
        "video_s": length, "s": seconds, "cpu_s": worked, "windows_a_s": done.windows / seconds,
        "video_s_a_s": length / seconds, "MB": size / 1e6,
    }  # fmt: skip


def by_class(material: Material, searcher: Searcher) -> dict[str, Any]:
    """P@10 of each class, among all clips and among those that training has not seen."""
    windows = windows_of(searcher.library.folder)
    told: dict[str, Any] = {}
    for among in ("all", "test"):
        paths = [path for path, (_, test) in material.clips.items() if test or among == "all"]
        where = f"path IN ({', '.join(map(quoted, paths))})"
        counts = Counter[str]()
        for path in paths:
            counts[material.clips[path][0]] += len(windows.get(path, ()))
        for label in sorted(counts):
            found = searcher.text(label, limit=FOUND, where=where)
            right = sum(material.clips[moment.path][0] == label for moment in found)
            of_class = told.setdefault(label, {})
            of_class[among] = {
                f"P@{FOUND}": right / FOUND, "chance": counts[label] / counts.total(),
            }  # fmt: skip
    return told


def in_long_videos(material: Material, searcher: Searcher, draw: random.Random) -> dict[str, Any]:
    """How often the best moment is at the right second."""
    windows = windows_of(searcher.library.folder)
    by_text, of_text = [], []
    for path in sorted({each.path for each in material.shown}):
        here = [each for each in material.shown if each.path == path]
        for label in sorted({each.label for each in here}):
            right = [each for each in here if each.label == label]
            (best,) = searcher.text(label, limit=1, where=f"path = {quoted(path)}")
            by_text.append(is_right(best, right))
            inside = [any(each.meets(path, *span) for each in right) for span in windows[path]]
            of_text.append(sum(inside) / len(inside))
    by_copy, of_copy = list[bool](), list[float]()
    total = sum(len(windows[path]) for path in {each.path for each in material.shown})
    copy = material.folder / "copy.mp4"
    for each in draw.sample(material.shown, min(COPIES, len(material.shown))):
        poor_copy(each.source, copy)
        (best,) = searcher.video(copy, limit=1, folder=material.folder / "long")
        by_copy.append(is_right(best, [each]))
        of_copy.append(sum(each.meets(each.path, *span) for span in windows[each.path]) / total)
    return {
        "by class name": shares(by_text, of_text),
        "by a poor copy": shares(by_copy, of_copy),
    }


def changes(material: Material, library: Path, of: Engine, draw: random.Random) -> dict[str, Any]:
    """Take some clips away, and put them back."""
    before = windows_of(library)
    away = material.folder / "away"
    away.mkdir()
    chosen = [Path(path) for path in draw.sample(sorted(material.clips), CHANGED)]
    told: dict[str, Any] = {}
    for what, here, there in (
        ("deleted", material.folders[0], away), ("added", away, material.folders[0]),
    ):  # fmt: skip
        for path in chosen:
            (here / path.name).rename(there / path.name)
        begun = time.perf_counter()
        done = index(library, of, material.folders)
        told[what] = {
            "files": CHANGED, "added": done.added, "removed": done.removed,
            "unchanged": done.unchanged, "s": time.perf_counter() - begun,
        }  # fmt: skip
    told["windows as before"] = windows_of(library) == before
    return told


def kills(
    material: Material, library: Path, model: Path, draw: random.Random, seconds: float
) -> dict[str, int]:
    """Kill who makes a library, at random moments, and look at what is left each time.

    Args:
        material: to index.
        library: what is to come of it.
        model: to index with.
        draw: of the moments.
        seconds: that all takes.
    """
    whole, another = windows_of(library), material.folder / "another"
    told = Counter(dict.fromkeys(("kills", "no library yet", "opened", "grown", "faults"), 0))
    before = 0
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.library"])
    for _ in range(KILLS):
        here, there = context.Pipe()
        process = context.Process(
            target=index_to_be_killed, args=(another, material.folders, model, there)
        )
        process.start()
        there.close()
        here.recv()
        process.join(draw.uniform(0, seconds / 3))
        told["kills"] += process.exitcode is None
        process.kill()
        process.join()
        if is_library(another):
            told["opened"] += 1
            left = windows_of(another)
            told["faults"] += any(whole[path] != spans for path, spans in left.items())
            now = sum(map(len, left.values()))
            told["grown"] += now > before
            before = now
        else:
            told["no library yet"] += 1
    index(another, engine(model), material.folders)
    told["faults"] += windows_of(another) != whole
    return dict(told)


def index_to_be_killed(library: Path, folders: list[Path], model: Path, begun: Connection) -> None:
    """Index, with a version of the table for every video."""
    indexing.COMMIT_SECONDS = 0.0
    of = engine(model)
    begun.send("begun")
    index(library, of, folders)


Windows = dict[str, list[tuple[float, float]]]  # start and end of each in s, by path


def windows_of(library: Path) -> Windows:
    """What a library holds, in the order of time; a window that stands twice is there twice."""
    windows: Windows = defaultdict(list)
    rows = Library(library).table.search().select(["path", "start", "end"]).to_list()
    for row in rows:
        windows[row["path"]].append((row["start"], row["end"]))
    return {path: sorted(spans) for path, spans in windows.items()}


def is_right(moment: Moment, shown: Sequence[Shown]) -> bool:
    """Whether a moment shows a part of one of some clips."""
    return any(each.meets(moment.path, moment.start, moment.end) for each in shown)


def shares(right: Sequence[bool], chances: Sequence[float]) -> dict[str, float]:
    """How many queries found what is right, and how many would by chance."""
    count = len(right)
    return {"queries": count, "right": sum(right) / count, "chance": sum(chances) / count}


def processor_seconds() -> float:
    """Of this process, and of those that it waited for."""
    both = (resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def show(results: dict[str, Any]) -> None:
    """Print what was found."""
    of = results["index"]
    print(
        f"{of['videos']} videos, {of['video_s']:.0f} s, {of['windows']} windows in {of['s']:.0f} s "
        f"({of['cpu_s']:.0f} processor s): {of['windows_a_s']:.0f} windows/s, "
        f"{of['video_s_a_s']:.0f} video s/s; {of['MB']:.0f} MB"
    )
    table = Table("class", box=None, header_style="bold")
    for among in ("all clips", "test clips"):
        table.add_column(f"P@{FOUND}, {among}", justify="right")
        table.add_column("chance", justify="right")
    for label, found in results["classes"].items():
        cells = (f"{found[among][name]:.2f}" for among in ("all", "test") for name in found[among])
        table.add_row(label, *cells)
    Console().print(table)
    for name in ("long videos", "changes", "kills"):
        print(f"{name}: {results[name]}")


if __name__ == "__main__":
    main()
