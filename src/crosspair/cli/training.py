"""``crosspair quickstart``, ``crosspair pretrain`` and ``crosspair finetune``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from crosspair.cli.verbs import Verbs, add_seed, add_splits, processes


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

    from crosspair.corpora import Manifest
    from crosspair.training import pretrain

    with processes() as world:
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

    from crosspair.reporting.table import print_table
    from crosspair.training.transfer import transfer, transfer_over_splits

    inputs = recipe, options.manifest, options.init, options.run
    with processes() as world:
        how: Any = {
            "tested": options.test_split, "resume": options.resume, "profile": options.profile,
            "world": world,
        }  # fmt: skip
        if options.splits:
            results = transfer_over_splits(*inputs, options.splits, **how)
        else:
            results = transfer(*inputs, test=not options.no_test, **how)
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
