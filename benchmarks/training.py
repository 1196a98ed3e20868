"""A whole epoch of pre-training: where the time of its steps goes, and what it holds on to.

    python -m benchmarks.training [MANIFEST] [--steps 2000]

The recipe is ``laptop`` with words learnt from titles, on rendered videos and on a manifest that is
given. Parts of a step are timed by the clock, from the sixth step to the end of the second epoch,
validation and checkpoints included; what is in none of them is "all else". The network's share is
that of forward, backward and optimiser. Then so many steps of a small network tell whether memory,
threads or open files grow. Memory is that of the process and its workers, what they share counted
once, where the system tells it (Linux).
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import write_results
from crosspair.config import Recipe
from crosspair.corpora import Manifest
from crosspair.corpora.rendered import render_corpus
from crosspair.isolation import cores
from crosspair.recipes import load_recipe
from crosspair.training import loop, pretrain
from crosspair.training.profile import observed
from crosspair.video import Batch

RESULTS = Path(__file__).parent / "results" / "training.json"
WARM_UP, EPOCHS = 5, 2
NETWORK = ("forward", "backward", "optimiser")
SMALL = ["video.width=8", "clip.size=32", "training.batch_size=8", "training.validate_every=1000"]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("manifest", nargs="?", type=Path, help="a prepared corpus, besides")
    parser.add_argument("--pairs", type=int, default=600, help="to render (default: 600)")
    parser.add_argument("--steps", type=int, default=2000, help="that may not grow (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of all (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(cores())
    with tempfile.TemporaryDirectory() as folder:
        rendered = render_corpus(Path(folder) / "rendered", options.pairs, options.seed)
        corpora = {"rendered": rendered}
        if options.manifest:
            corpora["given"] = Manifest.read(options.manifest)
        results: dict[str, Any] = {}
        for name, corpus in corpora.items():
            recipe = load_recipe("laptop", [f"training.epochs={EPOCHS}"])
            results[name] = watched(corpus, recipe, Path(folder) / name).results()
            show(name, results[name])
        growth = grown(rendered, options.steps, Path(folder) / "small")
    settings = {"recipe": "laptop", "epochs": EPOCHS, "threads": torch.get_num_threads()}
    content = {"settings": settings, "results": results, "growth": growth}
    write_results(options.out, content, seed=options.seed, packages=["torch", "av"])


class Recorder:
    """What pre-training's own marks and its loader tell.

    Attributes:
        parts: seconds of each.
        holding: for each time that was looked, the step, memory in MiB, threads and open files.
    """

    def __init__(self, steps: int) -> None:
        self.parts: defaultdict[str, float] = defaultdict(float)
        self.holding: list[dict[str, float]] = []
        self.clips = self.steps = 0
        self.seconds = 0.0
        self.look_every = max(1, steps // 20)

    def watch(self, batches: Iterable[Batch], *_: Any) -> Iterator[Batch]:
        """The batches as they come, everything from the sixth to the end being timed."""
        source = iter(batches)
        for _step in range(WARM_UP):
            yield next(source)
        begun = time.perf_counter()
        with observed(self.part):
            while True:
                with self.part("data wait"):
                    batch = next(source, None)
                if batch is None:
                    break
                if self.steps % self.look_every == 0:
                    with self.part("benchmark"):
                        self.holding.append({"step": self.steps, **held()})
                self.steps += 1
                self.clips += len(batch.rows)
                yield batch
        self.seconds = time.perf_counter() - begun

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what is within."""
        begun = time.perf_counter()
        yield
        self.parts[name] += time.perf_counter() - begun

    def results(self) -> dict[str, Any]:
        """Milliseconds a step and shares of the whole, without what the benchmark itself costs."""
        whole = self.seconds - self.parts.pop("benchmark", 0.0)
        parts = {**self.parts, "all else": whole - sum(self.parts.values())}
        return {
            "steps": self.steps,
            "clips_per_s": self.clips / whole,
            "ms_a_step": 1e3 * whole / self.steps,
            "parts": {
                name: {"ms": 1e3 * seconds / self.steps, "share": seconds / whole}
                for name, seconds in parts.items()
            },
            "network": sum(parts[name] for name in NETWORK) / whole,
            "most_MiB": max(each["MiB"] for each in self.holding),
        }


def watched(corpus: Manifest, recipe: Recipe, run: Path) -> Recorder:
    """Pre-train, and look on."""
    batch = recipe.training.batch_size
    recorder = Recorder(recipe.training.epochs * len(corpus.split("train")) // batch)
    with patch.object(loop, "profiled", recorder.watch):
        pretrain(recipe, corpus, run, profile=True)
    return recorder


def grown(corpus: Manifest, steps: int, run: Path) -> dict[str, Any]:
    """What the process held during many steps of a small network, and how it grew."""
    recipe = load_recipe("laptop", SMALL)
    an_epoch = len(corpus.split("train")) // recipe.training.batch_size
    recipe = load_recipe("laptop", [*SMALL, f"training.epochs={math.ceil(steps / an_epoch)}"])
    seen = watched(corpus, recipe, run).holding
    half = seen[len(seen) // 2 :]  # by then all is there that stays
    growth = {name: half[-1][name] - half[0][name] for name in half[0]}
    Console().print(f"second half of {seen[-1]['step']} steps: " + ", ".join(
        f"{name} {value:+.0f}" for name, value in growth.items()
    ))  # fmt: skip
    return {"seen": seen, "second_half": growth}


def held() -> dict[str, float]:
    """Of this process and its workers: memory in MiB, threads, open files."""
    processes = [os.getpid(), *_children(os.getpid())]
    totals = {"MiB": 0.0, "threads": 0.0, "files": 0.0}
    for process in processes:
        proc = Path(f"/proc/{process}")
        if (proc / "smaps_rollup").exists():
            lines = (proc / "smaps_rollup").read_text().splitlines()
            totals["MiB"] += sum(int(x.split()[1]) for x in lines if x.startswith("Pss:")) / 1024
            totals["threads"] += len(list((proc / "task").iterdir()))
            totals["files"] += len(list((proc / "fd").iterdir()))
    return totals


def _children(process: int) -> list[int]:
    found = []
    for told in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, told.read_text().split()):
            found += [child, *_children(child)]
    return found


def show(name: str, of: dict[str, Any]) -> None:
    """Print the parts of a step."""
    title = f"{name}: {of['clips_per_s']:.0f} clips/s, {of['most_MiB']:.0f} MiB"
    table = Table("part", title=title, box=None, header_style="bold")
    for column in ("ms a step", "share"):
        table.add_column(column, justify="right")
    for part, each in of["parts"].items():
        table.add_row(part, f"{each['ms']:.1f}", f"{each['share']:.1%}")
    table.add_row("a step", f"{of['ms_a_step']:.1f}", "")
    table.add_row("the network", "", f"{of['network']:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
