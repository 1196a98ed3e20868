"""Measure the time of each part of a training step, and memory growth, over whole epochs.

    python -m benchmarks.training [MANIFEST] [--steps 2000]

Uses the recipe ``laptop`` with word vectors learned from the titles, on rendered videos and on an
optional manifest. The parts of a step are wall-clock times from the sixth step to the end of the
second epoch, including validation and checkpoints; time outside all parts is "all else". The
network is forward, backward and optimiser. A second run of `--steps` steps of a small network
measures whether memory, threads or open files grow. Memory includes the worker processes, with
shared memory counted once (Linux only).
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
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
from crosspair.recipes import load_recipe
from crosspair.training import loop, pretrain
from crosspair.training.profile import SectionTimer
from crosspair.video.loader import Batch
from crosspair.workers import cpu_count

RESULTS = Path(__file__).parent / "results" / "training.json"
WARM_UP, EPOCHS = 5, 2
NETWORK = ("forward", "backward", "optimiser")
SMALL = ["video.width=8", "clip.size=32", "training.batch_size=8", "training.validate_every=1000"]


def main() -> None:
    """Run the benchmark, print tables and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("manifest", nargs="?", type=Path, help="a prepared corpus, in addition")
    parser.add_argument("--pairs", type=int, default=600, help="pairs to render (default: 600)")
    parser.add_argument("--steps", type=int, default=2000, help="steps of the second run (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(cpu_count())
    with tempfile.TemporaryDirectory() as folder:
        rendered = render_corpus(Path(folder) / "rendered", options.pairs, options.seed)
        corpora = {"rendered": rendered}
        if options.manifest:
            corpora["given"] = Manifest.read(options.manifest)
        results: dict[str, Any] = {}
        for name, corpus in corpora.items():
            recipe = load_recipe("laptop", [f"training.epochs={EPOCHS}"])
            results[name] = record_training(corpus, recipe, Path(folder) / name).results()
            show(name, results[name])
        growth = measure_growth(rendered, options.steps, Path(folder) / "small")
    settings = {"recipe": "laptop", "epochs": EPOCHS, "threads": torch.get_num_threads()}
    content = {"settings": settings, "results": results, "growth": growth}
    write_results(options.out, content, seed=options.seed, packages=["torch", "av"])


class Recorder:
    """Times the sections of a training, and samples its resource usage.

    Attributes:
        samples: step, memory in MiB, threads and open files at regular intervals.
    """

    def __init__(self, steps: int) -> None:
        self.samples: list[dict[str, float]] = []
        self.clips = self.steps = 0
        self.sample_every = max(1, steps // 20)

    def record(self, batches: Iterable[Batch], _: Path, device: torch.device) -> Iterator[Batch]:
        """Yield the batches, and time everything from the sixth batch on."""
        source = iter(batches)
        yield from islice(source, WARM_UP)
        with SectionTimer(device) as self.timer:
            while True:
                with self.timer.record("data wait"):
                    batch = next(source, None)
                if batch is None:
                    break
                if self.steps % self.sample_every == 0:
                    with self.timer.record("benchmark"):
                        self.samples.append({"step": self.steps, **resource_usage()})
                self.steps += 1
                self.clips += len(batch.rows)
                yield batch

    def results(self) -> dict[str, Any]:
        """Summarise the parts in ms per step and as fractions, without the benchmark's own cost."""
        parts = self.timer.milliseconds(self.steps)
        parts.pop("benchmark")
        whole = sum(parts.values())
        return {
            "steps": self.steps,
            "clips_per_s": 1e3 * self.clips / self.steps / whole,
            "ms_a_step": whole,
            "parts": {name: {"ms": value, "share": value / whole} for name, value in parts.items()},
            "network": sum(parts[name] for name in NETWORK) / whole,
            "most_MiB": max(each["MiB"] for each in self.samples),
        }


def record_training(corpus: Manifest, recipe: Recipe, run: Path) -> Recorder:
    """Pre-train with a recorder."""
    batch = recipe.training.batch_size
    recorder = Recorder(recipe.training.epochs * len(corpus.split("train")) // batch)
    with patch.object(loop, "profile_steps", recorder.record):
        pretrain(recipe, corpus, run, profile=True)
    return recorder


def measure_growth(corpus: Manifest, steps: int, run: Path) -> dict[str, Any]:
    """Measure the growth of resource usage during many steps of a small network."""
    recipe = load_recipe("laptop", SMALL)
    steps_per_epoch = len(corpus.split("train")) // recipe.training.batch_size
    recipe = load_recipe("laptop", [*SMALL, f"training.epochs={math.ceil(steps / steps_per_epoch)}"])
    seen = record_training(corpus, recipe, run).samples
    half = seen[len(seen) // 2 :]  # all caches are filled by then
    growth = {name: half[-1][name] - half[0][name] for name in half[0]}
    Console().print(f"second half of {seen[-1]['step']} steps: " + ", ".join(
        f"{name} {value:+.0f}" for name, value in growth.items()
    ))  # fmt: skip
    return {"seen": seen, "second_half": growth}


def resource_usage() -> dict[str, float]:
    """Return memory in MiB, threads and open files of this process and its workers."""
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
    children = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            children += [child, *_children(child)]
    return children


def show(name: str, result: dict[str, Any]) -> None:
    """Print the time of each part of a step."""
    title = f"{name}: {result['clips_per_s']:.0f} clips/s, {result['most_MiB']:.0f} MiB"
    table = Table("part", title=title, box=None, header_style="bold")
    for column in ("ms per step", "fraction"):
        table.add_column(column, justify="right")
    for part, each in result["parts"].items():
        table.add_row(part, f"{each['ms']:.1f}", f"{each['share']:.1%}")
    table.add_row("a step", f"{result['ms_a_step']:.1f}", "")
    table.add_row("the network", "", f"{result['network']:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
