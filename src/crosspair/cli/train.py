"""``crosspair quickstart``, ``crosspair pretrain`` and ``crosspair finetune``."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspair.cli.options import (
    Verbs,
    add_seed,
    add_splits,
    check_output_path,
    distributed_context,
    int_at_least,
)

if TYPE_CHECKING:
    from crosspair.ablation.cells import Cell
    from crosspair.ablation.plan import AblationPlan
    from crosspair.config import FinetuneRecipe, Recipe
    from crosspair.planning import TrainingEstimate


def add_quickstart(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "quickstart", help="render a corpus, pre-train on it, evaluate, write report.html"
    )
    verb.add_argument("--out", type=Path, required=True, help="folder for all that is made")
    add_seed(verb, "everything random")
    verb.set_defaults(verb=_quickstart)


def _quickstart(options: argparse.Namespace) -> None:
    from crosspair.quickstart import quickstart

    quickstart(options.out, seed=options.seed)


def add_pretrain(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "pretrain",
        help="pre-train on a manifest by a recipe",
        epilog="Recipes' keys and values: see the YAML files, or crosspair/config.py.",
    )
    verb.add_argument("--recipe", required=True, metavar="NAME|FILE", help="as laptop, my.yaml")
    verb.add_argument("--manifest", required=True, metavar="M", help="pairs to learn from")
    verb.add_argument(
        "--init", default="random", metavar="DIR|imagenet:FILE",
        help="weights to begin with, as far as they fit: a model folder or hub name; a 2D ResNet's "
        "state dict, inflated (default: none)",
    )  # fmt: skip
    _add_run(verb)
    verb.set_defaults(verb=_pretrain)


def _pretrain(options: argparse.Namespace) -> None:
    from crosspair.recipes import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)

    from crosspair.corpora.manifest import Manifest
    from crosspair.training.pretrain import pretrain

    with distributed_context() as world:
        model = pretrain(
            recipe, Manifest.read(options.manifest), options.run,
            init=options.init, resume=options.resume, profile=options.profile, world=world,
        )  # fmt: skip
        if model is not None and world.is_main:
            print(f"model: {options.run / 'model'}")


def add_finetune(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "finetune",
        help="train a classifier from pre-trained weights, and test it with 30 views",
        epilog="Recipes' keys and values: see the YAML files, or crosspair/config.py.",
    )
    verb.add_argument(
        "--recipe", required=True, metavar="NAME|FILE",
        help="ucf101, hmdb51, kinetics400, laptop-finetune, or my.yaml",
    )  # fmt: skip
    verb.add_argument(
        "--init", required=True, metavar="DIR|random|imagenet:FILE",
        help="weights to begin with: a model folder or hub name; none, to train from scratch; a 2D "
        "ResNet's state dict, inflated",
    )  # fmt: skip
    verb.add_argument("--manifest", required=True, metavar="M", help="videos with labels")
    verb.add_argument(
        "--labels", type=float, metavar="SHARE",
        help="low-shot: the share of each class's labels to see, as 0.01; the key labels.share",
    )  # fmt: skip
    add_splits(verb, "--manifest and --init")
    verb.add_argument(
        "--test-split", choices=("test", "val"), default="test",
        help="what is tested; with val, validation is held out of train (default: test)",
    )  # fmt: skip
    verb.add_argument("--no-test", action="store_true", help="train only")
    _add_run(verb)
    verb.set_defaults(verb=_finetune)


def _finetune(options: argparse.Namespace) -> None:
    from crosspair.config import FinetuneRecipe
    from crosspair.errors import RecipeError
    from crosspair.recipes import read_recipe

    share = [] if options.labels is None else [f"labels.share={options.labels}"]
    recipe = read_recipe(FinetuneRecipe, options.recipe, [*options.overrides, *share])
    if options.splits and options.no_test:
        raise RecipeError("--splits averages tests; leave out --no-test")

    from crosspair.reporting.tables import print_table
    from crosspair.training.finetune import finetune_and_test, finetune_over_splits

    inputs = recipe, options.manifest, options.init, options.run
    with distributed_context() as world:
        how: Any = {
            "tested": options.test_split, "resume": options.resume, "profile": options.profile,
            "world": world,
        }  # fmt: skip
        if options.splits:
            results = finetune_over_splits(*inputs, options.splits, **how)
        else:
            results = finetune_and_test(*inputs, test=not options.no_test, **how)
        if results is None or not world.is_main:
            return
        if results:
            print_table(results)
        print(f"model: {options.run / ('split*/model' if options.splits else 'model')}")


def _add_run(verb: argparse.ArgumentParser) -> None:
    """Where a training goes, and what of its recipe is other."""
    verb.add_argument("--run", type=Path, required=True, metavar="DIR", help="the run's folder")
    verb.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    verb.add_argument(
        "--profile", action="store_true",
        help="time the parts of 20 steps: a page and a trace for Perfetto in the folder profile/ "
        "of the run; its numbers stay as they are",
    )  # fmt: skip
    verb.add_argument(
        "overrides", nargs="*", metavar="key=value", help="as training.epochs=30 clip.size=112"
    )


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
        "--seconds", type=int_at_least(1), default=30, metavar="S",
        help="to measure for, about (default: 30)",
    )  # fmt: skip
    verb.add_argument("--json", type=Path, metavar="FILE", help="gets all the figures")
    verb.add_argument(
        "overrides", nargs="*", metavar="key=value", help="as training.workers=8 clip.size=112"
    )
    verb.set_defaults(verb=_plan)


def _plan(options: argparse.Namespace) -> None:
    if options.json:
        check_output_path(options.json, "--json")
    recipe = _recipe(options.recipe, options.overrides)

    from dataclasses import asdict

    from crosspair.corpora.manifest import Manifest
    from crosspair.distributed import init_distributed
    from crosspair.files import write_atomically
    from crosspair.planning import estimate_training

    size, parts = recipe.training.batch_size, recipe.training.accumulate
    shared = [each for each in (2, 4, 8) if size % each == 0 and size // (each * parts) > 1]
    with init_distributed() as world:
        made = estimate_training(
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
    return [int_at_least(1)(number) for number in text.split(",")]


def _print(plan: TrainingEstimate, recipe: Recipe | FinetuneRecipe) -> None:
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


def _print_projections(plan: TrainingEstimate) -> None:
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


def add_ablate(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "ablate",
        help="run an ablation: every row of a plan with every seed, and a report",
        description="Pre-train, test and perhaps fine-tune one cell for each row and seed of a "
        "plan, all on equally many clips. What is done is never run again: the same command goes "
        "on after a kill, and tries again what failed.",
        epilog="Status 1: cells failed, as the report and the end of their logs tell. A plan that "
        "renders its pairs needs no data. Plans for your own: table-1a-ucf and so on, of any "
        "manifest with labels; the paper's sizes: table-1a-paper and so on.",
    )
    verb.add_argument("plan", metavar="PLAN", help="as table-1a, noise, batch; or my.yaml")
    verb.add_argument(
        "overrides", nargs="*", metavar="key=value",
        help="right after PLAN: a key of the recipe for all cells, as training.epochs=5; of the "
        "plan, as seeds=0, corpus.pairs=500; or what the plan needs, as transformer=DIR",
    )  # fmt: skip
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder for all")
    verb.add_argument("--manifest", metavar="M", help="the pairs, for a plan that renders none")
    verb.add_argument(
        "--only", action="append", default=[], metavar="ROW",
        help='run these rows only: a row\'s name, as ranking, or "words / joint", or words for '
        "all with it; may be given several times",
    )  # fmt: skip
    verb.add_argument(
        "--jobs", type=int_at_least(1), default=1, metavar="N",
        help="cells at a time; they share the cores, and take the GPUs in turn (default: 1)",
    )  # fmt: skip
    verb.add_argument("--dry-run", action="store_true", help="tell what would be run, and end")
    verb.add_argument(
        "--print", action="store_true",
        help="run nothing; write the training pairs, and print one shell command per cell, for a "
        "scheduler",
    )  # fmt: skip
    verb.add_argument(
        "--report-only", action="store_true", help="report what is there, run nothing"
    )
    verb.set_defaults(verb=_ablate)


def _ablate(options: argparse.Namespace) -> None:
    from crosspair.ablation.plan import read_plan
    from crosspair.ablation.run import ablate

    plan = read_plan(options.plan, options.overrides)
    if options.dry_run or options.print:
        _tell(plan, options)
        return
    outcome = ablate(
        plan, options.out,
        manifest=options.manifest, only=options.only, jobs=options.jobs,
        report_only=options.report_only,
    )  # fmt: skip
    told = f"{outcome.done} of {outcome.cells} cells done, {outcome.failed} failed"
    print(f"{outcome.report or options.out}: {told}")
    if outcome.stopped:
        sys.exit(130)
    if outcome.failed:
        sys.exit(1)


def _tell(plan: AblationPlan, options: argparse.Namespace) -> None:
    from crosspair.ablation.cells import plan_cells, select, status, write_jobs
    from crosspair.ablation.run import LOG, cell_command

    every = plan_cells(plan, options.out, options.manifest)
    cells = select(every, options.only)
    if options.print:
        for i, cell in enumerate(write_jobs(options.out, plan, cells)):
            folder = options.out.absolute() / cell.folder
            command = shlex.join(cell_command(folder, i % options.jobs))
            print(f"{command} >> {shlex.quote(str(folder / LOG))} 2>&1")
        return
    print(f"{plan.title}: {len(cells)} cells; all {len(every)} are meant to take "
          f"{plan.minutes:g} minutes")  # fmt: skip
    for cell in cells:
        print(_line(cell, status(options.out / cell.folder)))


def _line(cell: Cell, status: str) -> str:
    return f"{cell.hash}  {status:7}  {cell.clips:,} clips of {cell.pairs:,} pairs  {cell.name}"
