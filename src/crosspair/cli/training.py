"""``crosspair quickstart`` and ``crosspair pretrain``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosspair.cli.verbs import Verbs


def add_quickstart(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "quickstart", help="render a corpus, pre-train on it, evaluate, write report.html"
    )
    verb.add_argument("--out", type=Path, required=True, help="folder for all that is made")
    verb.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
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
    verb.add_argument("--run", type=Path, required=True, metavar="DIR", help="the run's folder")
    verb.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    verb.add_argument(
        "overrides", nargs="*", metavar="key=value", help="as training.epochs=30 clip.size=112"
    )
    verb.set_defaults(verb=_pretrain)


def _pretrain(options: argparse.Namespace) -> None:
    from crosspair.recipes import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)

    from crosspair.corpora import Manifest
    from crosspair.distributed import joined
    from crosspair.training import pretrain

    with joined() as world:
        if not world.is_main:
            logging.getLogger().setLevel(logging.WARNING)
        model = pretrain(
            recipe, Manifest.read(options.manifest), options.run,
            resume=options.resume, world=world,
        )  # fmt: skip
        if model is not None and world.is_main:
            print(f"model: {options.run / 'model'}")
