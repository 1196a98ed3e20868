"""``crosspair corpus``: where pairs come from."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspair.cli.verbs import Verbs, add_seed, add_workers
from crosspair.errors import CrosspairError

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosspair.corpora import Manifest

    Read = Callable[[argparse.Namespace, dict[str, Any]], list[Manifest]]


def add_corpus(verbs: Verbs) -> None:
    corpus = verbs.add_parser(
        "corpus", help="make a manifest: rendered videos, a folder, or one of the paper's corpora"
    )
    kinds = corpus.add_subparsers(required=True, metavar="KIND")
    for add in (_add_rendered, _add_folder, _add_kinetics, _add_instagram, _add_three_splits):
        add(kinds)


def _add_rendered(kinds: Verbs) -> None:
    rendered = kinds.add_parser("rendered", help="render video files with noisy titles")
    rendered.add_argument("out", type=Path, metavar="OUT", help="folder for videos and manifest")
    rendered.add_argument("--pairs", type=int, default=1200, help="default: 1200")
    add_seed(rendered, "everything random")
    rendered.add_argument(
        "--noise", type=float, default=0.3, help="0 (clean titles) to 1 (all wrong); default: 0.3"
    )
    add_workers(rendered)
    rendered.set_defaults(verb=_corpus_rendered)


def _add_folder(kinds: Verbs) -> None:
    folder = _reader(kinds, "folder", "join a folder of videos with a title file", _folder)
    folder.add_argument(
        "--titles", type=Path, required=True, metavar="FILE",
        help="csv or tsv: video_id or path, title, and optionally label, split, start, end",
    )  # fmt: skip
    _add_title_columns(folder)
    folder.add_argument(
        "--label-by-folder", action="store_true", help="a video's label is its folder's name"
    )
    folder.add_argument(
        "--split-list", action="append", default=[], metavar="SPLIT=FILE",
        help="a text file that names the videos of train, val or test; may be repeated",
    )  # fmt: skip
    folder.add_argument(
        "--skip-broken", action="store_true", help="mark broken videos instead of refusing"
    )


def _add_kinetics(kinds: Verbs) -> None:
    help_ = "Kinetics-400, or with titles Kinetics-210k"
    kinetics = _reader(kinds, "kinetics", help_, _kinetics)
    kinetics.add_argument(
        "--csv", type=Path, nargs="+", action="extend", required=True, metavar="FILE",
        help="official lists: label, youtube_id, time_start, time_end, split",
    )  # fmt: skip
    _add_titles(kinetics, "pairs without a title are left out")


def _add_instagram(kinds: Verbs) -> None:
    help_ = "Instagram-300k: web videos with captions"
    instagram = _reader(kinds, "instagram", help_, _instagram)
    instagram.add_argument(
        "--captions", type=Path, required=True, metavar="FILE",
        help='json: {id: {"subset": ..., "caption": ...}}',
    )  # fmt: skip
    instagram.add_argument(
        "--template", default="trimmed_resize_{id}.mp4", help="of file names; default: %(default)s"
    )


def _add_three_splits(kinds: Verbs) -> None:
    for name, lists, group in (
        ("ucf101", "classInd.txt, trainlist0N.txt and testlist0N.txt", "whole groups of clips"),
        ("hmdb51", "CLASS_test_splitN.txt", "all clips of a source"),
    ):
        help_ = f"{name.upper()} by its official splits; --val holds out {group}"
        reader = _reader(kinds, name, help_, _three_splits)
        reader.set_defaults(corpus=name)
        reader.add_argument(
            "--lists", type=Path, required=True, metavar="DIR", help=f"folder of {lists}"
        )
        reader.add_argument(
            "--split", choices=("1", "2", "3", "all"), default="1",
            help="all: split1.parquet to split3.parquet in the folder --out (default: 1)",
        )  # fmt: skip
        _add_titles(reader, "without one, titles are empty")


def _reader(kinds: Verbs, name: str, help_: str, read: Read) -> argparse.ArgumentParser:
    """A verb with what all readers of videos on disk take."""
    reader = kinds.add_parser(name, help=help_)
    reader.set_defaults(verb=_read, read=read)
    reader.add_argument("folder", type=Path, metavar="DIR", help="searched with its subfolders")
    reader.add_argument("--out", type=Path, required=True, help="the manifest, or its folder")
    reader.add_argument(
        "--class-names", type=Path, metavar="FILE",
        help="csv or tsv without a header: official name, name for people",
    )  # fmt: skip
    reader.add_argument(
        "--val", type=float, default=0.0, help="share of train to hold out as val (default: 0)"
    )
    add_seed(reader, "that choice")
    return reader


def _add_titles(reader: argparse.ArgumentParser, meaning: str) -> None:
    reader.add_argument(
        "--titles", type=Path, metavar="FILE",
        help="csv or tsv: video_id, title; or the authors' tsv without a header: "
        f"id, processed title, original title; {meaning}",
    )  # fmt: skip
    _add_title_columns(reader)


def _add_title_columns(reader: argparse.ArgumentParser) -> None:
    reader.add_argument(
        "--title-columns", default="", metavar="COLUMN=NAME,...",
        help="what the title file calls its columns, as video_id=id,title=caption",
    )  # fmt: skip


def _corpus_rendered(options: argparse.Namespace) -> None:
    from crosspair.corpora.rendered import render_corpus
    from crosspair.progress import late_progress

    with late_progress("rendering", "videos") as progress:
        manifest = render_corpus(
            options.out, options.pairs, options.seed, options.noise, options.workers,
            progress=progress,
        )  # fmt: skip
    _tell_manifests([manifest])


def _read(options: argparse.Namespace) -> None:
    """Run a reader with what all leave to their user."""
    from crosspair.progress import late_progress

    with late_progress("probing", "videos") as progress:
        choices = {
            "class_names": options.class_names, "val_share": options.val, "seed": options.seed,
            "progress": progress,
        }  # fmt: skip
        if "title_columns" in options:
            choices["title_columns"] = _title_columns(options)
        manifests = options.read(options, choices)
    _tell_manifests(manifests)


def _folder(options: argparse.Namespace, choices: dict[str, Any]) -> list[Manifest]:
    from crosspair.corpora.folder import folder_corpus

    lists = _pairs(options.split_list, "--split-list", "SPLIT=FILE")
    return [
        folder_corpus(
            options.folder, options.titles, options.out, label_by_folder=options.label_by_folder,
            split_lists={split: Path(file) for split, file in lists.items()},
            skip_broken=options.skip_broken, **choices,
        )
    ]  # fmt: skip


def _kinetics(options: argparse.Namespace, choices: dict[str, Any]) -> list[Manifest]:
    from crosspair.corpora.kinetics import kinetics_corpus

    return [
        kinetics_corpus(options.folder, options.csv, options.out, titles=options.titles, **choices)
    ]


def _instagram(options: argparse.Namespace, choices: dict[str, Any]) -> list[Manifest]:
    from crosspair.corpora.instagram import instagram_corpus

    template = options.template
    return [
        instagram_corpus(
            options.folder, options.captions, options.out, template=template, **choices
        )
    ]


def _three_splits(options: argparse.Namespace, choices: dict[str, Any]) -> list[Manifest]:
    from crosspair.corpora.threesplits import SPLITS, hmdb51_corpus, ucf101_corpus

    read = {"ucf101": ucf101_corpus, "hmdb51": hmdb51_corpus}[options.corpus]
    splits = SPLITS if options.split == "all" else (int(options.split),)
    return read(
        options.folder, options.lists, options.out, splits=splits, titles=options.titles, **choices
    )


def _title_columns(options: argparse.Namespace) -> Mapping[str, str]:
    if options.title_columns and options.titles is None:
        raise CrosspairError("--title-columns needs the file that has them: --titles FILE")
    columns = filter(None, options.title_columns.split(","))
    return _pairs(columns, "--title-columns", "COLUMN=NAME")


def _pairs(given: Iterable[str], option: str, form: str) -> Mapping[str, str]:
    pairs: dict[str, str] = {}
    for each in given:
        key, sign, value = each.partition("=")
        if not sign:
            raise CrosspairError(f"{option} {each!r} is not of the form {form}")
        if key.strip() in pairs:
            raise CrosspairError(f"{option} gives {key.strip()} twice; give it once")
        pairs[key.strip()] = value.strip()
    return pairs


def _tell_manifests(manifests: Iterable[Manifest]) -> None:
    from crosspair.corpora import SPLITS
    from crosspair.corpora.output import left_out_file

    for manifest in manifests:
        counts = ", ".join(f"{len(manifest.split(name))} {name}" for name in SPLITS)
        print(f"{manifest.path}: {len(manifest)} pairs ({counts})")
        if left_out_file(manifest.path).exists():
            print(f"{left_out_file(manifest.path)}: pairs that are left out, and why")
