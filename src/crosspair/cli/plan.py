"""``crosspair plan``: what a training will take, before it is begun."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from crosspair.cli.verbs import Verbs, check_place, whole_number

if TYPE_CHECKING:
    from crosspair.config import FinetuneRecipe, Recipe
    from crosspair.planning import Plan


def add_plan(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "plan",
        help="what a training will take: clips/s, hours, memory, disk, and what to change",
        description="Does a part of a minute of a pre-training or fine-tuning, and tells what all "
        "of it will take here and on more GPUs. Nothing is written but what --json names.",
        epilog="Recipes' keys and values: see the YAML files, or crosspair/config.py.",
    )
    verb.add_argument("--recipe", required=True, metavar="NAME|FILE", help="as laptop, my.yaml")
    verb.add_argument("--manifest", required=True, metavar="M", help="what is to be learnt from")
    verb.add_argument(
        "--init", default="random", metavar="DIR|imagenet:FILE",
        help="weights to begin with, as of pretrain and finetune (default: none)",
    )  # fmt: skip
    verb.add_argument(
        "--gpus", type=_numbers, default=[], metavar="2,4,8",
        help="numbers of GPUs to compute besides this one; of machines, where it has no GPU "
        "(default: 2,4,8, as far as the batch can be shared)",
    )  # fmt: skip
    verb.add_argument(
        "--seconds", type=whole_number(1), default=30, metavar="S",
        help="to measure for, about (default: 30)",
    )  # fmt: skip
    verb.add_argument("--json", type=Path, metavar="FILE", help="gets all the figures")
    verb.add_argument(
        "overrides", nargs="*", metavar="key=value", help="as training.workers=8 clip.size=112"
    )
    verb.set_defaults(verb=_plan)


def _plan(options: argparse.Namespace) -> None:
    if options.json:
        check_place(options.json, "--json")
    recipe = _recipe(options.recipe, options.overrides)

    from dataclasses import asdict

    from crosspair.atomic import write_atomically
    from crosspair.corpora import Manifest
    from crosspair.distributed import joined
    from crosspair.planning import plan

    size, parts = recipe.training.batch_size, recipe.training.accumulate
    shared = [each for each in (2, 4, 8) if size % each == 0 and size // (each * parts) > 1]
    with joined() as world:
        made = plan(
            recipe, Manifest.read(options.manifest), name=options.recipe, init=options.init,
            processes=options.gpus or shared, seconds=options.seconds, world=world,
        )  # fmt: skip
    if options.json:
        text = json.dumps(asdict(made), ensure_ascii=False, indent=2)
        write_atomically(options.json, text + "\n")
    _print(made, recipe)


def _recipe(name: str, overrides: list[str]) -> Recipe | FinetuneRecipe:
    """A recipe of either kind; a file is of the first that it fits."""
    from crosspair.config import FinetuneRecipe, Recipe
    from crosspair.errors import RecipeError
    from crosspair.recipes import read_recipe, recipe_names

    if name in recipe_names(FinetuneRecipe):
        return read_recipe(FinetuneRecipe, name, overrides)
    try:
        return read_recipe(Recipe, name, overrides)
    except RecipeError:
        if not Path(name).is_file():
            raise
    return read_recipe(FinetuneRecipe, name, overrides)


def _numbers(text: str) -> list[int]:
    return [whole_number(1)(number) for number in text.split(",")]


def _print(plan: Plan, recipe: Recipe | FinetuneRecipe) -> None:
    measured, machine = plan.measured, plan.machine
    on = machine.cpu if machine.device == "cpu" else machine.device
    waiting = f"{measured.data_wait:.0%} of the time the network waits for clips"
    workers, part = recipe.training.workers, measured.part
    rows = [
        ("loading, one worker", measured.by_worker, ""),
        (f"loading, {workers} workers", measured.loading, ""),
        (f"steps of {part} clips in memory", measured.step, _as_the_recipe_says(part, plan.part)),
        ("both together", measured.together, waiting),
    ]
    print(
        f"{plan.recipe} on {plan.manifest}: {plan.pairs:,} pairs, {plan.clips:,} clips to see\n"
        f"measured in {measured.seconds:.0f} s on {on}, {machine.cores} cores:"
    )
    for name, rate, note in rows:
        print(f"  {name:<30} {rate:9.1f} clips/s{note and '  ' + note}")
    print(f"{'data' if plan.data_bound else 'compute'}-bound\n")
    _print_projections(plan)
    print(
        f"each worker besides: {_gigabytes(measured.worker_memory)}\n"
        * bool(measured.worker_memory)
        + f"disk: {_gigabytes(plan.checkpoints)} of checkpoints at most, "
        f"{_gigabytes(plan.model)} the model, {_gigabytes(plan.logs)} of logs"
    )
    for advice in plan.advice:
        print(f"change: {advice}")


def _as_the_recipe_says(part: int, whole: int) -> str:
    return "" if part == whole else f"the recipe's {whole} take too long or too much here"


def _print_projections(plan: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for head in ("", "clips/s", "hours", "memory a process", "gradients sent a step"):
        table.add_column(head, justify="right" if head else "left")
    what = "machines" if plan.machine.device == "cpu" else "GPUs"
    for each in plan.projections:
        table.add_row(
            "measured" if each.measured else f"computed, {each.processes} {what}",
            f"{each.clips_per_second:.1f}",
            f"{each.hours:.1f}" if each.hours >= 1 else f"{each.hours:.2f}",
            _gigabytes(each.memory),
            _gigabytes(each.all_reduce) if each.all_reduce else "–",
        )
    Console().print(table)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
