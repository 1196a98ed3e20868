"""Measure the training of projection heads from stored features of frozen encoders, in pairs per second.

    python -m benchmarks.heads [--pairs 800] [--views 1] [--epochs 40]

Renders a corpus, stores its features by an encoder with 768 features and by averaged word vectors, and trains heads
with each objective. A row is the median rate of a run, which excludes validation and checkpoints; the rate of the run
without stored features, for which the same views are decoded and encoded in every step, is for comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.measuring import write_results
from crosspair import api
from crosspair.corpora.rendered import render_corpus

RESULTS = Path(__file__).parent / "results" / "heads.json"
COMMON = (
    "clip.size=64", "clip.frames=2", "clip.stride=30", "video.source=benchmarks.heads:colors", "training.workers=2",
    "text.encoder=words", "text.source=titles", "training.validate_every=1000", "training.log_every=5",
    "objective.soft_targets=0",
)  # fmt: skip
RUNS = {
    "in_batch": (),
    "ranking": ("objective.name=ranking",),
    "cross_pair, nce": ("objective.name=cross_pair", "objective.noise_samples=1024", "objective.temperature=0.07"),
    "cross_pair, softmax": ("objective.name=cross_pair", "objective.estimate=softmax"),
    "in_batch, MLP heads": ("head.video_hidden=512", "head.hidden=512"),
    "in_batch, two stages": ("curriculum.strategy=curriculum", "curriculum.stage2_epoch=1"),
}
UNSTORED = "in_batch, without stored features"


class Colors(nn.Module):
    """Frames (N, 3, H, W) to the colours of 16 × 16 squares, (N, 768): an encoder that takes no time."""

    features, frames, size, image = 768, None, None, True
    mean, std = 0.45, 0.225

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(frames, 16).flatten(1)


def colors() -> nn.Module:
    """Return the encoder."""
    return Colors()


def pairs_per_second(manifest: Path, folder: Path, settings: tuple[str, ...]) -> float:
    """Train, and return the median rate of the log lines."""
    api.pretrain("laptop-pretrained", str(manifest), folder, overrides=[*COMMON, *settings])
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return statistics.median(line["clips_per_second"] for line in lines if line["kind"] == "train")


def main() -> None:
    """Run the benchmark, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=800)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    table = Table("training", "batch", "pairs/s", title="Heads on frozen encoders")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["CROSSPAIR_CACHE"] = str(folder / "cache")
        manifest = render_corpus(folder / "videos", pairs=arguments.pairs, seed=0, workers=2).path
        sizes = f"video.views={arguments.views}", f"training.epochs={arguments.epochs}"
        for run, settings in {**RUNS, UNSTORED: ("video.cache=false", "training.epochs=3")}.items():
            for batch in (32, 128, 256) if run == "in_batch" else (128,):
                out = folder / f"{run}-{batch}"
                rate = pairs_per_second(manifest, out, (*sizes, f"training.batch_size={batch}", *settings))
                rows.append({"run": run, "batch": batch, "pairs_per_second": round(rate)})
                table.add_row(run, str(batch), f"{rate:,.0f}")
    Console().print(table)
    sizes_of = {"pairs": arguments.pairs, "views": arguments.views, "features": Colors.features, "embedding": 256}
    write_results(arguments.out, {"results": {**sizes_of, "runs": rows}}, seed=0, packages=("torch", "numpy"))


if __name__ == "__main__":
    main()
