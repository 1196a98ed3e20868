"""``crosspair corpus``: where pairs come from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from crosspair.errors import CrosspairError

if TYPE_CHECKING:
    from crosspair.cli.verbs import Verbs


def add_corpus(verbs: Verbs) -> None:
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
