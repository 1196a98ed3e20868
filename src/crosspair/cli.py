"""The command ``crosspair``: one thin function a verb. Heavy imports wait until a verb runs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from crosspair.errors import CrosspairError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; a fault in the user's input ends it with one line and status 2."""
    options = _parser().parse_args(arguments)
    # Idle threads of the network must not spin on the cores that the decoding workers need: on two
    # cores that costs a quarter of the speed. It counts only if set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _log_to_terminal(options.quiet)
    try:
        options.verb(options)
    except CrosspairError as error:
        print(f"crosspair: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if TYPE_CHECKING:
    Verbs: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crosspair",
        description="Learn video representations from videos and the text that comes with them.",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _add_quickstart(verbs)
    _add_corpus(verbs)
    _add_pretrain(verbs)
    _add_evaluate(verbs)
    return parser


def _add_quickstart(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "quickstart", help="render a corpus, pre-train on it, evaluate, write report.html"
    )
    verb.add_argument("--out", type=Path, required=True, help="folder for all that is made")
    verb.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    verb.set_defaults(verb=_quickstart)


def _quickstart(options: argparse.Namespace) -> None:
    from crosspair.quickstart import quickstart

    quickstart(options.out, seed=options.seed)


def _add_corpus(verbs: Verbs) -> None:
    corpus = verbs.add_parser(
        "corpus", help="make a manifest: rendered videos, or a folder of them"
    )
    kinds = corpus.add_subparsers(required=True, metavar="KIND")

    rendered = kinds.add_parser("rendered", help="render video files with noisy titles")
    rendered.add_argument("out", type=Path, metavar="OUT", help="folder for videos and manifest")
    rendered.add_argument("--pairs", type=int, default=1200, help="default: 1200")
    rendered.add_argument("--seed", type=int, default=0, help="default: 0")
    rendered.add_argument(
        "--noise", type=float, default=0.3, help="0 (clean titles) to 1 (all wrong); default: 0.3"
    )
    rendered.add_argument("--workers", type=int, help="processes (default: one a core)")
    rendered.set_defaults(verb=_corpus_rendered)

    folder = kinds.add_parser("folder", help="join a folder of videos with a title file")
    folder.add_argument("folder", type=Path, metavar="DIR", help="searched with its subfolders")
    folder.add_argument(
        "--titles", type=Path, required=True, metavar="FILE",
        help="csv or tsv: video_id or path, title, and optionally label, split, start, end",
    )  # fmt: skip
    folder.add_argument("--out", type=Path, required=True, help="the manifest, or its folder")
    folder.add_argument(
        "--label-by-folder", action="store_true", help="a video's label is its folder's name"
    )
    folder.add_argument(
        "--split-list", action="append", default=[], metavar="SPLIT=FILE",
        help="a text file that names the videos of train, val or test; may be repeated",
    )  # fmt: skip
    folder.add_argument(
        "--val", type=float, default=0.0, help="share of train to hold out as val (default: 0)"
    )
    folder.add_argument("--seed", type=int, default=0, help="of that choice (default: 0)")
    folder.add_argument(
        "--skip-broken", action="store_true", help="mark broken videos instead of refusing"
    )
    folder.set_defaults(verb=_corpus_folder)


def _corpus_rendered(options: argparse.Namespace) -> None:
    from crosspair.corpora.rendered import render_corpus
    from crosspair.progress import progress

    with progress("rendering", options.pairs, "videos") as bar:
        manifest = render_corpus(
            options.out, options.pairs, options.seed, options.noise, options.workers,
            progress=lambda done, _: bar.advance(done),
        )  # fmt: skip
    _tell_manifest(manifest)


def _corpus_folder(options: argparse.Namespace) -> None:
    from crosspair.corpora.folder import folder_corpus

    lists = {}
    for given in options.split_list:
        split, sign, file = given.partition("=")
        if not sign:
            raise CrosspairError(f"--split-list {given!r} is not of the form SPLIT=FILE")
        lists[split] = Path(file)
    manifest = folder_corpus(
        options.folder, options.titles, options.out, label_by_folder=options.label_by_folder,
        split_lists=lists, val_share=options.val, seed=options.seed,
        skip_broken=options.skip_broken,
    )  # fmt: skip
    _tell_manifest(manifest)


def _tell_manifest(manifest: object) -> None:
    from crosspair.corpora import SPLITS, Manifest

    assert isinstance(manifest, Manifest)
    counts = ", ".join(f"{len(manifest.split(name))} {name}" for name in SPLITS)
    print(f"{manifest.path}: {len(manifest)} pairs ({counts})")


def _add_pretrain(verbs: Verbs) -> None:
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


def _add_evaluate(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "evaluate", help="retrieval, kNN and zero-shot on the test split, beside random weights"
    )
    verb.add_argument("--model", required=True, metavar="DIR", help="a model folder or hub name")
    verb.add_argument("--manifest", required=True, metavar="M")
    verb.add_argument("--out", type=Path, required=True, metavar="FILE", help="results.json")
    verb.add_argument("--clips", type=int, default=10, help="a video; the paper's and default: 10")
    verb.add_argument("--workers", type=int, default=2, help="decoding processes (default: 2)")
    verb.add_argument("--seed", type=int, default=0, help="of the random weights (default: 0)")
    verb.set_defaults(verb=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    import torch

    from crosspair.corpora import Manifest
    from crosspair.distributed import World
    from crosspair.evaluation import (
        Features,
        extract_features,
        provenance,
        results_beside_random,
        write_results,
    )
    from crosspair.models import CPD
    from crosspair.progress import progress
    from crosspair.recipes import load_recipe, recipe_hash
    from crosspair.reporting.table import print_table

    world = World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    manifest, model = Manifest.read(options.manifest), CPD.from_pretrained(options.model)

    def extract(each: CPD) -> Features:
        with progress("encoding", len(manifest) * options.clips, "clips") as bar:
            return extract_features(
                each, manifest, clips=options.clips, workers=options.workers, world=world,
                progress=lambda done, _: bar.advance(done),
            )  # fmt: skip

    results, _ = results_beside_random(model.to(world.device), manifest, extract, seed=options.seed)
    recipe = Path(options.model).parent / "recipe.yaml"  # a run's model lies beside its recipe
    origin = provenance(
        recipe=recipe_hash(load_recipe(str(recipe))) if recipe.is_file() else "",
        model=model.hash, manifest=manifest.hash, seed=options.seed,
    )  # fmt: skip
    write_results(options.out, results, origin)
    print_table(results)


def _log_to_terminal(quiet: bool) -> None:
    from rich.logging import RichHandler

    from crosspair.progress import console

    handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%X")
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO, format="%(message)s", handlers=[handler]
    )
