"""Compare loss curves with and without each speed-up: none may change the training.

    python -m benchmarks.curves [--steps 300]

A small network is trained on synthetic pairs: 256 clips of 16 classes, whose titles are the class
name and a random word. Pairs, their order and the initial weights are the same in all runs. The
plain run uses float32, contiguous layout, unfused SGD and per-pair noise; each other run differs by
one speed-up. Shared noise draws other samples, so these two runs are means over four seeds. The
effect of rounding alone is measured by a plain run whose initial weights are rounded to bfloat16.
Curves are compared by means over 30 steps.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import write_results
from crosspair import objectives
from crosspair.config import ObjectiveConfig, OptimizerConfig
from crosspair.device import autocast
from crosspair.distributed import World
from crosspair.models import CPD, WordAverage
from crosspair.objectives import MemoryBank
from crosspair.recipes import recipe_of
from crosspair.training.schedule import build_grouped_optimizer

RESULTS = Path(__file__).parent / "results" / "curves.json"
PAIRS, CLASSES, BATCH, WINDOW = 256, 16, 16, 30
NOISE_SEEDS = (2, 3, 4, 5)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Way:
    """Settings of a run; the defaults are the plain run."""

    precision: str = "fp32"
    layout: torch.memory_format = torch.contiguous_format
    fused: bool = False
    noise: Literal["batch", "pair"] = "pair"
    round_weights: bool = False
    noise_seeds: tuple[int, ...] = (1,)


PLAIN = "plain"
WAYS = {
    PLAIN: Way(),
    "plain, first weights rounded": Way(round_weights=True),
    "bfloat16": Way(precision="bf16"),
    "channels_last_3d": Way(layout=torch.channels_last_3d),
    "one pass of the optimiser": Way(fused=True),
    "all three": Way("bf16", torch.channels_last_3d, fused=True),
    "plain, other noise": Way(noise_seeds=NOISE_SEEDS),
    "noise of the batch": Way(noise="batch", noise_seeds=NOISE_SEEDS),
}


def main() -> None:
    """Train all runs, compare their losses and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=300, help="default: 300")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and pairs (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    losses = {name: mean_losses(way, options.steps, options.seed) for name, way in WAYS.items()}
    results = {
        name: {**differences(values, losses[PLAIN]), "losses": [round(each, 5) for each in values]}
        for name, values in losses.items()
    }
    show(results)
    settings = {"steps": options.steps, "pairs": PAIRS, "batch": BATCH, "window": WINDOW}
    content = {"settings": settings, "results": results}
    write_results(options.out, content, seed=options.seed, packages=["torch"])


def mean_losses(way: Way, steps: int, seed: int) -> list[float]:
    """Train once per noise seed and return the mean loss of every step."""
    curves = [train(way, steps, seed, noise_seed) for noise_seed in way.noise_seeds]
    means: list[float] = torch.tensor(curves).mean(dim=0).tolist()
    return means


def train(way: Way, steps: int, seed: int, noise_seed: int) -> list[float]:
    """Train a small network and return the loss of every step."""
    recipe = recipe_of({"video.depth": 10, "video.width": 8, "head.embedding": 64})
    clips, titles = synthetic_pairs(seed)
    torch.manual_seed(seed)
    names = sorted({word for title in titles for word in title.split()})
    words = WordAverage(names, torch.randn(len(names), 32))
    model = CPD(words, recipe.clip, recipe.video, recipe.text, recipe.head).train()
    words.requires_grad_(False)
    for parameter in model.parameters():
        if way.round_weights:
            parameter.data = parameter.bfloat16().float()
        if parameter.dim() == 5:
            parameter.data = parameter.contiguous(memory_format=way.layout)
    config = ObjectiveConfig(noise=way.noise, noise_samples=128)
    objective = objectives.build_objective(config, PAIRS, recipe.head.embedding, noise_seed, World())
    bank = MemoryBank(PAIRS, recipe.head.embedding, config.bank_momentum, seed, World())
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = build_grouped_optimizer({"rest": trainable}, OptimizerConfig(lr=0.05))
    for group in optimizer.param_groups:
        group["fused"] = way.fused
    order = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        index = torch.randperm(PAIRS, generator=order)[:BATCH]
        with autocast(CPU, way.precision):
            video, text = model(clips[index], [titles[row] for row in index.tolist()])
        loss, _scalars = objective(video, text, index, bank)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        bank.update(index, video.detach(), text.detach())
        losses.append(loss.item())
    return losses


def synthetic_pairs(seed: int) -> tuple[torch.Tensor, list[str]]:
    """Draw clips, (PAIRS, 3, 4, 32, 32) uint8, and their titles."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(CLASSES, (PAIRS,), generator=generator)
    looks = torch.rand(CLASSES, 3, 4, 8, 8, generator=generator).repeat_interleave(4, 3)
    looks = looks.repeat_interleave(4, 4)
    noise = torch.rand(PAIRS, 3, 4, 32, 32, generator=generator)
    clips = (255 * (looks[classes] + noise) / 2).to(torch.uint8)
    others = torch.randint(100, (PAIRS,), generator=generator).tolist()
    pairs = zip(classes.tolist(), others, strict=True)
    return clips, [f"kind{label} other{other}" for label, other in pairs]


def differences(losses: list[float], plain: list[float]) -> dict[str, float]:
    """Compare means over `WINDOW` steps with the plain run: largest and last difference."""
    values, base = (torch.tensor(each).unfold(0, WINDOW, WINDOW).mean(dim=1) for each in (losses, plain))
    relative = (values - base) / base
    return {
        "first": float(values[0]), "last": float(values[-1]),
        "largest_difference": float(relative.abs().max()),
        "last_difference": float(relative[-1]),
    }  # fmt: skip


def show(results: dict[str, Any]) -> None:
    """Print first and last losses, and differences from the plain run."""
    table = Table("way", box=None, header_style="bold")
    for column in ("first loss", "last loss", "largest difference", "last difference"):
        table.add_column(column, justify="right")
    for name, row in results.items():
        table.add_row(
            name, f"{row['first']:.3f}", f"{row['last']:.3f}",
            f"{row['largest_difference']:.2%}", f"{row['last_difference']:+.2%}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
