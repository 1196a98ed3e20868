"""Commands that train: quickstart, pretrain, finetune, benchmark, ablate."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspair.cli.options import Subparsers, add_seed, add_splits, distributed_context, int_at_least

if TYPE_CHECKING:
    from crosspair.ablation.plan import AblationPlan
    from crosspair.config import FinetuneRecipe, Recipe

_RECIPE_KEYS = "All recipe keys are listed in the YAML files and in crosspair/config.py."


def add_quickstart(commands: Subparsers) -> None:
    parser = commands.add_parser("quickstart", help="render a corpus, pre-train on it, evaluate, and write report.html")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    add_seed(parser, "the whole run")
    parser.set_defaults(command=_quickstart)


def _quickstart(options: argparse.Namespace) -> None:
    from crosspair.quickstart import quickstart

    quickstart(options.out, seed=options.seed)


def add_pretrain(commands: Subparsers) -> None:
    parser = commands.add_parser("pretrain", help="pre-train video and text encoder on a manifest", epilog=_RECIPE_KEYS)
    parser.add_argument("--recipe", required=True, metavar="NAME|FILE", help="for example laptop or my.yaml")
    parser.add_argument("--manifest", required=True, metavar="M", help="training pairs")
    parser.add_argument(
        "--init", default="random", metavar="DIR|imagenet:FILE",
        help="initial weights: a model folder or Hub name, of which matching parts are loaded, or "
        "the state dict of a 2D ResNet, which is inflated (default: random)",
    )  # fmt: skip
    _add_run(parser)
    parser.set_defaults(command=_pretrain)


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


def add_finetune(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "finetune", help="train a classifier from pre-trained weights and test it with 30 views", epilog=_RECIPE_KEYS
    )
    parser.add_argument(
        "--recipe", required=True, metavar="NAME|FILE",
        help="ucf101, hmdb51, kinetics400, laptop-finetune, or my.yaml",
    )  # fmt: skip
    parser.add_argument(
        "--init", required=True, metavar="DIR|random|imagenet:FILE",
        help="initial weights: a model folder or Hub name, random to train from scratch, or the "
        "state dict of a 2D ResNet, which is inflated",
    )  # fmt: skip
    parser.add_argument("--manifest", required=True, metavar="M", help="videos with labels")
    parser.add_argument(
        "--labels", type=float, metavar="FRACTION",
        help="low-shot: fraction of the labels of each class to use, for example 0.01; the recipe "
        "key labels.share",
    )  # fmt: skip
    add_splits(parser, "--manifest and --init")
    parser.add_argument(
        "--test-split", choices=("test", "val"), default="test",
        help="split to test on; with val, validation videos are held out of train (default: test)",
    )  # fmt: skip
    parser.add_argument("--no-test", action="store_true", help="train only")
    _add_run(parser)
    parser.set_defaults(command=_finetune)


def _finetune(options: argparse.Namespace) -> None:
    from crosspair.config import FinetuneRecipe
    from crosspair.errors import RecipeError
    from crosspair.recipes import read_recipe

    labels = [] if options.labels is None else [f"labels.share={options.labels}"]
    recipe = read_recipe(FinetuneRecipe, options.recipe, [*options.overrides, *labels])
    if options.splits and options.no_test:
        raise RecipeError("--splits averages test results and cannot be combined with --no-test")

    from crosspair.reporting.tables import print_table
    from crosspair.training.finetune import finetune_and_test, finetune_over_splits

    inputs = recipe, options.manifest, options.init, options.run
    with distributed_context() as world:
        settings: dict[str, Any] = {
            "test_split": options.test_split, "resume": options.resume, "profile": options.profile,
            "world": world,
        }  # fmt: skip
        if options.splits:
            results = finetune_over_splits(*inputs, options.splits, **settings)
        else:
            results = finetune_and_test(*inputs, test=not options.no_test, **settings)
        if results is None or not world.is_main:
            return
        if results:
            print_table(results)
        print(f"model: {options.run / ('split*/model' if options.splits else 'model')}")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder")
    parser.add_argument("--resume", action="store_true", help="resume the run in that folder")
    parser.add_argument(
        "--profile", action="store_true",
        help="time the parts of 20 training steps and write a page and a Perfetto trace to "
        "profile/ in the run folder; results do not change",
    )  # fmt: skip
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value",
        help="recipe overrides, for example training.epochs=30 clip.size=112",
    )  # fmt: skip


def add_benchmark(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "benchmark",
        help="measure a training: clips/s, time in parts, hours, memory, disk space, advice",
        description="Run less than a minute of a pre-training or fine-tuning, write no files, and estimate what the "
        "whole training takes on this machine.",
        epilog=_RECIPE_KEYS,
    )
    parser.add_argument("--recipe", required=True, metavar="NAME|FILE", help="for example laptop or my.yaml")
    parser.add_argument("--manifest", required=True, metavar="M", help="training videos")
    parser.add_argument(
        "--init", default="random", metavar="DIR|imagenet:FILE",
        help="initial weights, as in pretrain and finetune (default: random)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=int_at_least(1), default=30, metavar="S",
        help="approximate time to measure (default: 30)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value",
        help="recipe overrides, for example training.workers=8 clip.size=112",
    )  # fmt: skip
    parser.set_defaults(command=_benchmark)


def _benchmark(options: argparse.Namespace) -> None:
    recipe = _read_any_recipe(options.recipe, options.overrides)

    from dataclasses import asdict

    from crosspair.benchmark import benchmark
    from crosspair.corpora.manifest import Manifest

    result = benchmark(recipe, Manifest.read(options.manifest), options.init, options.seconds)
    print(json.dumps(asdict(result), ensure_ascii=False, indent=2) if options.json else result)


def _read_any_recipe(name: str, overrides: list[str]) -> Recipe | FinetuneRecipe:
    """Read a packaged recipe of either kind, or a file: for pre-training if valid as such, else for fine-tuning."""
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


def add_ablate(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "ablate",
        help="run an ablation: every row of a plan with every seed, and a report",
        description="Pre-train, test and optionally fine-tune one cell for each row and seed of a "
        "plan, all with the same number of clips. Finished cells are not run again: the same "
        "command resumes after an interruption and retries failed cells.",
        epilog="Exit status 1: some cells failed; see the report and their logs. Plans that render "
        "their pairs need no data. Plans for your own pairs (table-1a-ucf, ...) take any manifest "
        "with labels; plans at the size of the paper are named table-1a-paper, ...",
    )
    parser.add_argument("plan", metavar="PLAN", help="for example table-1a, noise, or my.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value",
        help="directly after PLAN: a recipe key for all cells (training.epochs=5), a plan key "
        "(seeds=0, corpus.pairs=500), or a variable of the plan (transformer=DIR)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")
    parser.add_argument("--manifest", metavar="M", help="pairs for a plan that does not render any")
    parser.add_argument(
        "--only", action="append", default=[], metavar="ROW",
        help='run only these rows: a row name such as ranking or "words / joint", or words for all '
        "rows that contain it; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=int_at_least(1), default=1, metavar="N",
        help="cells to run at the same time; cores are divided between them, GPUs are assigned in "
        "turn (default: 1)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="list the cells without running")
    parser.add_argument(
        "--print", action="store_true",
        help="run nothing; write the training pairs and print one shell command per cell, for a "
        "scheduler",
    )  # fmt: skip
    parser.add_argument("--report-only", action="store_true", help="write the report without running any cell")
    parser.set_defaults(command=_ablate)


def _ablate(options: argparse.Namespace) -> None:
    from crosspair.ablation.plan import read_plan
    from crosspair.ablation.run import ablate

    plan = read_plan(options.plan, options.overrides)
    if options.dry_run or options.print:
        _print_cells(plan, options)
        return
    outcome = ablate(
        plan, options.out,
        manifest=options.manifest, only=options.only, jobs=options.jobs,
        report_only=options.report_only,
    )  # fmt: skip
    counts = f"{outcome.done} of {outcome.cells} cells done, {outcome.failed} failed"
    print(f"{outcome.report or options.out}: {counts}")
    if outcome.stopped:
        sys.exit(130)
    if outcome.failed:
        sys.exit(1)


def _print_cells(plan: AblationPlan, options: argparse.Namespace) -> None:
    """Print state and clips of the cells; with --print, write the jobs of those not done, and print their commands."""
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
    print(f"{plan.title}: {len(cells)} cells; all {len(every)} take about {plan.minutes:g} minutes")
    for cell in cells:
        state = status(options.out / cell.folder)
        print(f"{cell.hash}  {state:7}  {cell.count_clips():,} clips of {cell.pairs:,} pairs  {cell.name}")
