"""Loss curves with and without each speed-up: none may change what is learnt.

    python -m benchmarks.curves [--steps 300]

A small network learns made-up pairs: 256 clips of 16 kinds, each with a title of its kind's word
and another. The same pairs come in the same order, from the same weights. The plain way is float32,
PyTorch's usual layout, SGD that passes over the weights for each operation, and noise of each pair;
each of the others differs from it by one speed-up. Noise of the batch is other noise, so both
kinds are means over four seeds. What rounding alone does is seen in a plain run whose first weights
were rounded to bfloat16. Curves are compared by means over 30 steps.
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
from crosspair.distributed import World
from crosspair.models import CPD, WordAverage
from crosspair.objectives import MemoryBank
from crosspair.precision import autocast
from crosspair.recipes import recipe_of
from crosspair.training.optimizer import optimizer_of

RESULTS = Path(__file__).parent / "results" / "curves.json"
PAIRS, KINDS, BATCH, WINDOW = 256, 16, 16, 30
SEEDS = (2, 3, 4, 5)  # of the noise
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Way:
    """How to train: the defaults are the plain way."""

    precision: str = "fp32"
    layout: torch.memory_format = torch.contiguous_format
    fused: bool = False
    noise: Literal["batch", "pair"] = "pair"
    rounded: bool = False
    noise_seeds: tuple[int, ...] = (1,)


PLAIN = "plain"
WAYS = {
    PLAIN: Way(),
    "plain, first weights rounded": Way(rounded=True),
    "bfloat16": Way(precision="bf16"),
    "channels_last_3d": Way(layout=torch.channels_last_3d),
    "one pass of the optimiser": Way(fused=True),
    "all three": Way("bf16", torch.channels_last_3d, fused=True),
    "plain, other noise": Way(noise_seeds=SEEDS),
    "noise of the batch": Way(noise="batch", noise_seeds=SEEDS),
}


def main() -> None:
    """Train, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=300, help="default: 300")
    parser.add_argument("--seed", type=int, default=0, help="of weights and pairs (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    losses = {name: mean_curve(way, options.steps, options.seed) for name, way in WAYS.items()}
    results = {
        name: {**differences(of, losses[PLAIN]), "losses": [round(each, 5) for each in of]}
        for name, of in losses.items()
    }
    show(results)
    settings = {"steps": options.steps, "pairs": PAIRS, "batch": BATCH, "window": WINDOW}
    content = {"settings": settings, "results": results}
    write_results(options.out, content, seed=options.seed, packages=["torch"])


def mean_curve(way: Way, steps: int, seed: int) -> list[float]:
    """The loss of every step, its mean over the seeds of the noise."""
    curves = [curve(way, steps, seed, noise_seed) for noise_seed in way.noise_seeds]
    means: list[float] = torch.tensor(curves).mean(dim=0).tolist()
    return means


def curve(way: Way, steps: int, seed: int, noise_seed: int) -> list[float]:
    """The loss of every step."""
    recipe = recipe_of({"video.depth": 10, "video.width": 8, "head.embedding": 64})
    clips, titles = made_up(seed)
    torch.manual_seed(seed)
    names = sorted({word for title in titles for word in title.split()})
    words = WordAverage(names, torch.randn(len(names), 32))
    model = CPD(words, recipe.clip, recipe.video, recipe.text, recipe.head).train()
    words.requires_grad_(False)
    for parameter in model.parameters():
        if way.rounded:
            parameter.data = parameter.bfloat16().float()
        if parameter.dim() == 5:
            parameter.data = parameter.contiguous(memory_format=way.layout)
    config = ObjectiveConfig(noise=way.noise, noise_samples=128)
    objective = objectives.build(config, PAIRS, recipe.head.embedding, noise_seed, World())
    bank = MemoryBank(PAIRS, recipe.head.embedding, config.bank_momentum, seed, World())
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizer_of({"rest": learns}, OptimizerConfig(lr=0.05))
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


def made_up(seed: int) -> tuple[torch.Tensor, list[str]]:
    """Clips (PAIRS, 3, 4, 32, 32) uint8, and their titles."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(KINDS, (PAIRS,), generator=generator)
    looks = torch.rand(KINDS, 3, 4, 8, 8, generator=generator).repeat_interleave(4, 3)
    looks = looks.repeat_interleave(4, 4)
    noise = torch.rand(PAIRS, 3, 4, 32, 32, generator=generator)
    clips = (255 * (looks[kinds] + noise) / 2).to(torch.uint8)
    others = torch.randint(100, (PAIRS,), generator=generator).tolist()
    pairs = zip(kinds.tolist(), others, strict=True)
    return clips, [f"kind{kind} other{other}" for kind, other in pairs]


def differences(losses: list[float], plain: list[float]) -> dict[str, float]:
    """To the plain curve: of means over `WINDOW` steps the largest, and that of the last ones."""
    of, base = (
        torch.tensor(each).unfold(0, WINDOW, WINDOW).mean(dim=1) for each in (losses, plain)
    )
    relative = (of - base) / base
    return {
        "first": float(of[0]), "last": float(of[-1]),
        "largest_difference": float(relative.abs().max()),
        "last_difference": float(relative[-1]),
    }  # fmt: skip


def show(results: dict[str, Any]) -> None:
    """Print where curves begin and end, and how far they are from the plain one."""
    table = Table("way", box=None, header_style="bold")
    for column in ("first loss", "last loss", "largest difference", "last difference"):
        table.add_column(column, justify="right")
    for name, of in results.items():
        table.add_row(
            name, f"{of['first']:.3f}", f"{of['last']:.3f}",
            f"{of['largest_difference']:.2%}", f"{of['last_difference']:+.2%}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
