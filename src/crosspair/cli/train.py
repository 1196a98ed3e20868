"""Verbs that train: quickstart, pretrain, finetune, ablate, benchmark; and doctor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

from crosspair.cli.results import print_cells, print_line

if TYPE_CHECKING:
    from jsonargparse.typing import NonNegativeInt, PositiveInt

    from crosspair.cli.parser import RunOptions


def run_quickstart(*, out: Path, seed: NonNegativeInt = 0) -> None:
    """Render a corpus, pre-train on it, evaluate, and write report.html.

    Args:
        out: output folder; the same command resumes an interrupted run
        seed: random seed of the whole run
    """
    from crosspair.quickstart import quickstart

    quickstart(out, seed=seed)


def run_pretrain(
    overrides: tuple[str, ...],
    *,
    recipe: str,
    manifest: str,
    run: Path,
    init: str = "random",
    **options: Unpack[RunOptions],
) -> None:
    """Pre-train a video and a text encoder on a manifest.

    All recipe keys are listed in the YAML files and in crosspair/config.py. Runs under torchrun.

    Args:
        overrides: recipe keys, for example training.epochs=30 clip.size=112
        recipe: name or YAML file, for example laptop or my.yaml
        manifest: training pairs
        run: run folder, which receives the model, checkpoints, metrics and report.html
    """
    from crosspair import api

    model = api.pretrain(recipe, manifest, run, init=init, overrides=overrides, **options)
    if model is not None and api.is_main_process():
        print_line(f"model: {run / 'model'}")


def run_finetune(
    overrides: tuple[str, ...],
    *,
    recipe: str,
    init: str,
    manifest: str,
    run: Path,
    split: Literal["test", "val"] = "test",
    splits: str = "",
    no_test: bool = False,
    **options: Unpack[RunOptions],
) -> None:
    """Train a classifier from pre-trained weights and test it with 30 views.

    All recipe keys are listed in the YAML files and in crosspair/config.py. Runs under torchrun.

    Args:
        overrides: recipe keys, for example labels.share=0.01 to use 1 % of the labels
        recipe: ucf101, hmdb51, kinetics400, laptop-finetune, or a YAML file
        manifest: videos with labels
        run: run folder, which receives the model, checkpoints, results.json and report.html
        split: split to test on; with val, validation videos are held out of train
        splits: official splits to run one after another, such as 1,2,3; their numbers replace {} in
            --manifest and --init; results are averaged
        no_test: train only
    """
    from crosspair import api
    from crosspair.cli.parser import parse_splits
    from crosspair.reporting.tables import print_table

    numbers = parse_splits(splits)
    results = api.finetune(
        recipe, manifest, run,
        init=init, split=split, splits=numbers, test=not no_test, overrides=overrides, **options,
    )  # fmt: skip
    if results is None or not api.is_main_process():
        return
    if results:
        print_table(results)
    print_line(f"model: {run / ('split*/model' if numbers else 'model')}")


def run_ablate(
    plan: str,
    overrides: tuple[str, ...],
    *,
    out: Path,
    manifest: str | None = None,
    only: list[str] = [],  # noqa: B006
    jobs: PositiveInt = 1,
    dry_run: bool = False,
    print: bool = False,
    report_only: bool = False,
) -> None:
    """Run an ablation: every row of a plan with every seed, and a report.

    Pre-train, test and optionally fine-tune one cell for each row and seed of a plan, all with the
    same number of pairs. The same command resumes after an interruption, skips finished cells and
    retries failed ones. Exit status 1: some cells failed; see the report and their logs.

    Args:
        plan: for example table-1a, noise, or my.yaml. Plans for your own pairs (table-1a-ucf, ...)
            need --manifest; plans at the size of the paper are named table-1a-paper, ...
        overrides: a recipe key for all cells (training.epochs=5), a plan key (seeds=0,
            corpus.pairs=500), or a variable of the plan (transformer=DIR)
        out: output folder
        manifest: pairs with labels for a plan that does not render any
        only: run only this row, for example "words / joint", or all rows with this value of an
            axis, for example words; may be repeated
        jobs: cells to run at once; cores are divided between them, GPUs are assigned in turn
        dry_run: list the cells without running
        print: run nothing; write the training pairs and print one shell command per cell, for a
            scheduler
        report_only: write the report without running any cell
    """
    from crosspair.ablation.plan import read_plan
    from crosspair.ablation.run import ablate

    loaded = read_plan(plan, overrides)
    if dry_run or print:
        print_cells(loaded, out, manifest, only, jobs, commands=print)
        return
    outcome = ablate(loaded, out, manifest=manifest, only=only, jobs=jobs, report_only=report_only)
    counts = f"{outcome.done} of {outcome.cells} cells done, {outcome.failed} failed"
    # The option --print hides the function.
    sys.stdout.write(f"{outcome.report or out}: {counts}\n")
    if outcome.stopped:
        sys.exit(130)
    if outcome.failed:
        sys.exit(1)


def run_benchmark(
    overrides: tuple[str, ...],
    *,
    recipe: str,
    manifest: str,
    init: str = "random",
    seconds: PositiveInt = 30,
    json: bool = False,
) -> None:
    """Measure a training: clips/s, time in parts, hours, memory, disk space, advice.

    Run less than a minute of a pre-training or fine-tuning, write no files, and estimate what the
    whole training takes on this machine.

    Args:
        overrides: recipe keys, for example training.workers=8 clip.size=112
        recipe: name or YAML file, as in pretrain and finetune
        manifest: training videos
        seconds: approximate time to measure
        json: print all values as JSON
    """
    from dataclasses import asdict

    from crosspair.benchmark import benchmark
    from crosspair.cli.parser import print_json
    from crosspair.corpora.manifest import Manifest
    from crosspair.models.video import read_resolved_recipe
    from crosspair.recipes import recipe_kind

    settings = read_resolved_recipe(recipe_kind(recipe), recipe, overrides)
    result = benchmark(settings, Manifest.read(manifest), init, seconds)
    if json:
        print_json(asdict(result))
    else:
        print(result)


def run_doctor(*, json: bool = False) -> None:
    """Check this machine and the installation, and print how to fix problems.

    Exit status 1: a check fails that does not concern an optional extra.

    Args:
        json: print the checks as JSON
    """
    from dataclasses import asdict

    from rich.markup import escape
    from rich.table import Table

    from crosspair.cli.parser import print_json
    from crosspair.doctor import run_checks
    from crosspair.progress import Terminal

    checks = run_checks(Path())
    if json:
        print_json([asdict(check) for check in checks])
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        for _ in range(3):
            table.add_column(overflow="fold")
        for check in checks:
            mark = "[green]ok[/green]" if check.ok else "[red]--[/red]"
            table.add_row(mark, check.name, escape(check.found))
        Terminal().print(table)
        for check in checks:
            if not check.ok:
                print_line(f"{check.name}, for {check.needed_for}: {check.fix}")
    sys.exit(0 if all(check.ok or check.optional for check in checks) else 1)
