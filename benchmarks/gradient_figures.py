"""Draw two figures of the objectives' gradients with respect to negatives, on synthetic pairs.

    python -m benchmarks.gradient_figures

The first shows the weight of a negative in the gradients of NCE and of the ranking loss (Appendix
A.1). The second compares NCE's gradient with that of the exact softmax, by number of noise samples.
Figures and their points as JSON are written to docs/results/objectives. Takes seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.gradients import estimate_quality, estimate_quality_figure, gradient_weights, gradient_weights_figure
from benchmarks.measuring import write_results
from crosspair.files import write_atomically

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "objectives"
FIGURES = {"weights": (gradient_weights, gradient_weights_figure), "nce": (estimate_quality, estimate_quality_figure)}


def main() -> None:
    """Compute the points, draw the figures and write both."""
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
