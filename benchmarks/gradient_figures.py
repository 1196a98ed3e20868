"""What objectives do with their negatives: two figures of gradients, on made-up pairs.

    python -m benchmarks.gradient_figures

Appendix A.1: the weight that a negative has in CPD's gradient and in that of the ranking loss. And
how near NCE's gradient is to that of the exact softmax, by number of noise samples. Pictures, and
their points as JSON, go to docs/results/objectives. Seconds on one thread.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.gradients import (
    estimate_quality,
    estimate_quality_figure,
    gradient_weights,
    gradient_weights_figure,
)
from benchmarks.measuring import write_results
from crosspair.atomic import write_atomically

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "objectives"
FIGURES = {
    "weights": (gradient_weights, gradient_weights_figure),
    "nce": (estimate_quality, estimate_quality_figure),
}


def main() -> None:
    """Compute, draw, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, (compute, draw) in FIGURES.items():
        points = compute()
        write_atomically(options.out / f"{name}.png", draw(points))
        seed = points["settings"]["seed"]
        write_results(options.out / f"{name}.json", points, seed=seed, packages=["torch"])
        Console().print(options.out / f"{name}.png")


if __name__ == "__main__":
    main()
