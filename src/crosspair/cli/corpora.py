"""``crosspair corpus``: where pairs come from."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspair.cli.options import (
    Verbs,
    add_cluster,
    add_seed,
    add_workers,
    check_output_path,
    uses_ray,
)
from crosspair.errors import CrosspairError

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosspair.corpora.manifest import Manifest

    Read = Callable[[argparse.Namespace, dict[str, Any]], list[Manifest]]
    from crosspair.corpora.check import CheckedManifest
    from crosspair.corpora.prepare import PreparationPlan, TranscodeBackend
    from crosspair.corpora.transcode import TranscodeSettings


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
    from crosspair.corpora.rendered.render import render_corpus
    from crosspair.progress import delayed_progress

    with delayed_progress("rendering", "videos") as progress:
        manifest = render_corpus(
            options.out, options.pairs, options.seed, options.noise, options.workers,
            progress=progress,
        )  # fmt: skip
    _tell_manifests([manifest])


def _read(options: argparse.Namespace) -> None:
    """Run a reader with what all leave to their user."""
    from crosspair.progress import delayed_progress

    with delayed_progress("probing", "videos") as progress:
        choices = {
            "class_names": options.class_names, "val_fraction": options.val, "seed": options.seed,
            "progress": progress,
        }  # fmt: skip
        if "title_columns" in options:
            choices["title_columns"] = _title_columns(options)
        manifests = options.read(options, choices)
    _tell_manifests(manifests)


def _folder(options: argparse.Namespace, choices: dict[str, Any]) -> list[Manifest]:
    from crosspair.corpora.readers import folder_corpus

    lists = _pairs(options.split_list, "--split-list", "SPLIT=FILE")
    return [
        folder_corpus(
            options.folder, options.titles, options.out, label_by_folder=options.label_by_folder,
            split_lists={split: Path(file) for split, file in lists.items()},
            skip_broken=options.skip_broken, **choices,
        )
    ]  # fmt: skip


def _kinetics(options: argparse.Namespace, choices: dict[str, Any]) -> list[Manifest]:
    from crosspair.corpora.readers import kinetics_corpus

    return [
        kinetics_corpus(options.folder, options.csv, options.out, titles=options.titles, **choices)
    ]


def _instagram(options: argparse.Namespace, choices: dict[str, Any]) -> list[Manifest]:
    from crosspair.corpora.readers import instagram_corpus

    template = options.template
    return [
        instagram_corpus(
            options.folder, options.captions, options.out, template=template, **choices
        )
    ]


def _three_splits(options: argparse.Namespace, choices: dict[str, Any]) -> list[Manifest]:
    from crosspair.corpora.ucf_hmdb import SPLITS, hmdb51_corpus, ucf101_corpus

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
    from crosspair.corpora.build import skipped_list_path
    from crosspair.corpora.manifest import SPLITS

    for manifest in manifests:
        counts = ", ".join(f"{len(manifest.split(name))} {name}" for name in SPLITS)
        print(f"{manifest.path}: {len(manifest)} pairs ({counts})")
        if skipped_list_path(manifest.path).exists():
            print(f"{skipped_list_path(manifest.path)}: pairs that are left out, and why")


def add_check(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "check",
        help="look at every video of a manifest, and mark those that cannot be used",
        epilog="Status: 0 if every video can be used, 1 if not, 2 for a fault in what was given.",
    )
    verb.add_argument("manifest", metavar="MANIFEST")
    verb.add_argument(
        "--decode", action="store_true",
        help="decode every frame, too; a check that was stopped goes on where it was",
    )  # fmt: skip
    verb.add_argument(
        "--out", type=Path, metavar="MANIFEST2", help="write here (default: over MANIFEST)"
    )
    verb.add_argument(
        "--list", type=Path, metavar="FILE.csv",
        help="write a list of what was found: pair_id, path, kind, message",
    )  # fmt: skip
    add_workers(verb)
    verb.add_argument(
        "--timeout", type=_seconds, metavar="S",
        help="seconds for a file (default: 20; with --decode 60, and its own length)",
    )  # fmt: skip
    verb.set_defaults(verb=_check)


def _check(options: argparse.Namespace) -> None:
    from crosspair.corpora.check import check
    from crosspair.corpora.manifest import Manifest
    from crosspair.progress import progress

    if options.list:
        check_output_path(options.list, "--list", "list.csv")
    manifest = Manifest.read(options.manifest)
    videos = len({clip.path for clip in manifest.clips()})
    try:
        with progress("decoding" if options.decode else "checking", videos, "videos") as bar:
            checked = check(
                manifest, options.out, decode=options.decode, workers=options.workers,
                seconds=options.timeout, progress=bar.advance,
            )  # fmt: skip
    except KeyboardInterrupt:
        if options.decode:
            print("stopped; the same command goes on from here", file=sys.stderr)
        raise
    if options.list:
        checked.write_list(options.list)
    _print_summary(checked, options.list)
    sys.exit(1 if checked.broken else 0)


def _print_summary(checked: CheckedManifest, listed: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("kind", box=None, header_style="bold", pad_edge=False)
    table.add_column("videos", justify="right")
    table.add_column("pairs", justify="right")
    table.add_column("training")
    for kind, (videos, pairs) in checked.counts().items():
        use = "[red]leaves them out[/red]" if kind.broken else "uses them"
        table.add_row(kind.value, f"{videos:,}", f"{pairs:,}", use)
    Console().print(table)
    total = len(checked.manifest)
    print(f"{checked.manifest.path}: {total - checked.broken} of {total} pairs can be used")
    if listed:
        print(f"{listed}: what is the matter with which")
    elif any(result.reason for result in checked.results):
        print("--list FILE.csv tells what is the matter with which")


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return number


def add_prepare(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "prepare",
        help="trim and scale a corpus's videos to small files that load fast",
        description="Make of every row's video a trimmed, scaled H.264 file with key frames close "
        "together, and a manifest of these files. Run again, it does only what is missing. "
        "Status: 0 all done, 1 some sources are broken (their rows say how), 2 not done.",
    )
    verb.add_argument("manifest", metavar="MANIFEST")
    verb.add_argument("--out", type=Path, required=True, help="folder for manifest and videos")
    verb.add_argument(
        "--short-side", type=int, default=128, metavar="PX",
        help="of the frames, never enlarged (default: 128, for crops of 112; take 256 for 224)",
    )  # fmt: skip
    verb.add_argument("--gop", type=int, default=16, help="frames a key frame (default: 16)")
    verb.add_argument(
        "--fps", default="own", metavar="own|N", help="each video's own (default), or a constant N"
    )
    verb.add_argument(
        "--middle", type=float, metavar="S", help="keep only the middle S seconds of longer videos"
    )
    verb.add_argument("--crf", type=float, default=20, help="x264's quality (default: 20)")
    add_workers(verb)
    verb.add_argument(
        "--dry-run", action="store_true", help="only tell what there is to do, and what it costs"
    )
    verb.add_argument(
        "--sample", type=int, default=20, help="videos that --dry-run tries out (default: 20)"
    )
    add_seed(verb, "that sample")
    add_cluster(verb)
    verb.set_defaults(verb=_prepare)


def _prepare(options: argparse.Namespace) -> None:
    settings = _settings(options)

    from crosspair.corpora.manifest import Manifest
    from crosspair.corpora.prepare import plan_preparation, prepare_corpus
    from crosspair.progress import progress
    from crosspair.workers import cpu_count

    workers = options.workers or cpu_count()
    plan = plan_preparation(Manifest.read(options.manifest), options.out, settings)
    if options.dry_run:
        _estimate(plan, options, workers)
        return
    engine = _engine(options, workers)
    with progress("preparing", len(plan.requests), "videos") as bar:
        manifest = prepare_corpus(
            plan, engine, lambda done, broken: bar.advance(done, f"{broken} broken")
        )
    broken = sum(error is not None for error in manifest.column("error"))
    print(
        f"{manifest.path}: {len(manifest)} pairs, {broken} broken; "
        f"{len(plan.requests)} videos, {len(plan.done)} of them prepared before"
    )
    if broken:
        sys.exit(1)


def _settings(options: argparse.Namespace) -> TranscodeSettings:
    from crosspair.corpora.transcode import TranscodeSettings

    try:
        fps = None if options.fps == "own" else float(options.fps)
    except ValueError as error:
        raise CrosspairError(f"--fps {options.fps!r} is neither own nor a number") from error
    return TranscodeSettings(options.short_side, options.gop, fps, options.middle, options.crf)


def _engine(options: argparse.Namespace, workers: int) -> TranscodeBackend:
    from functools import partial

    from crosspair.corpora.prepare import transcode_locally, transcode_on_ray

    if uses_ray(options):
        return partial(transcode_on_ray, workers=workers, address=options.address)
    return partial(transcode_locally, workers=workers)


def _estimate(plan: PreparationPlan, options: argparse.Namespace, workers: int) -> None:
    import datetime
    import shutil
    from functools import partial

    from crosspair.corpora.prepare import estimate_cost, transcode_locally
    from crosspair.progress import progress

    print(
        f"{len(plan.manifest)} pairs, {len(plan.requests)} videos: "
        f"{len(plan.done)} are prepared, {len(plan.missing)} are to do"
    )
    if not plan.missing:
        return
    size = min(options.sample, len(plan.missing))
    with progress("trying out", size, "videos") as bar:
        found = estimate_cost(
            plan, partial(transcode_locally, workers=workers), options.sample, options.seed,
            lambda done, broken: bar.advance(done, f"{broken} broken"),
        )  # fmt: skip
    place = next(each for each in [plan.out, *plan.out.absolute().parents] if each.is_dir())
    work, wall = (datetime.timedelta(seconds=round(s)) for s in (found.work, found.work / workers))
    print(
        f"from {found.sampled} of them ({found.broken} broken): about {wall} with {workers} "
        f"processes ({work} of one), {found.size / 1e6:.1f} MB of disk "
        f"({shutil.disk_usage(place).free / 1e6:.0f} MB are free)"
    )


def add_titles(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "titles",
        help="clean a manifest's titles, and keep their verbs and nouns",
        description="Fill title_clean (emoji, symbols, addresses and words that are not English "
        "go) and title_tree (its verbs and nouns, by a dependency parse) from title.",
    )
    verb.add_argument("manifest", metavar="MANIFEST", help="the manifest, or its folder")
    verb.add_argument(
        "--out", type=Path, metavar="FILE",
        help="write another manifest (default: replace this one, in one step)",
    )  # fmt: skip
    verb.add_argument(
        "--lemmas", action="store_true", help="base forms in trees: play instead of playing"
    )
    verb.add_argument(
        "--empty", choices=("keep", "drop", "raw"), default="keep",
        help="pairs of whose title nothing is left: keep them without (default), drop them, or "
        "keep them with the raw title; an empty tree becomes the clean title by raw",
    )  # fmt: skip
    verb.add_argument(
        "--keep-clean", action="store_true",
        help="leave clean titles that are there already as they are, and only parse them",
    )  # fmt: skip
    verb.add_argument(
        "--report", type=Path, metavar="DIR",
        help="folder for report.html, titles.csv and titles.png: what went and why",
    )  # fmt: skip
    add_workers(verb)
    verb.set_defaults(verb=_titles)


def _titles(options: argparse.Namespace) -> None:
    from crosspair.corpora.manifest import Manifest
    from crosspair.corpora.titles.stage import prepare_titles
    from crosspair.progress import delayed_progress

    manifest = Manifest.read(options.manifest)
    with delayed_progress("titles", "titles") as progress:
        filled, report = prepare_titles(
            manifest, lemmas=options.lemmas, empty=options.empty, keep_clean=options.keep_clean,
            workers=options.workers, progress=progress,
        )  # fmt: skip
    if options.report:
        from crosspair.reporting.titles import write_title_report

        write_title_report(options.report, report)
    out = options.out or manifest.path
    if out.suffix != ".parquet":
        out = out / "manifest.parquet"
    written = filled.rebased(out).write(out)
    print(
        f"{written.path}: {len(written)} pairs; {len(report.clean_empty)} had no English title, "
        f"{len(report.tree_empty)} more neither verb nor noun; of {report.raw_words:,} words "
        f"{report.clean_words:,} are clean, {report.tree_words:,} verbs and nouns"
    )


def add_words(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "words",
        help="how many words titles share with their class names",
        description="Table 6 and Figure 2 of the paper for any manifest that has labels: titles "
        "with at least one word of their class's name, with all of it, and the share of words "
        "that are relevant, for each kind of title that the manifest holds.",
    )
    verb.add_argument("manifest", metavar="MANIFEST", help="the manifest, or its folder")
    verb.add_argument(
        "--exact", action="store_true",
        help="compare words as they are written (default: by base forms, playing as plays)",
    )  # fmt: skip
    verb.add_argument(
        "--accuracy", type=Path, metavar="FILE",
        help="accuracy of each class, to draw beside the words: results of crosspair evaluate, a "
        "csv with the columns class and accuracy, or a JSON object (0 to 1)",
    )  # fmt: skip
    verb.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for words.md, words.csv and words.png"
    )
    verb.set_defaults(verb=_words)


def _words(options: argparse.Namespace) -> None:
    from crosspair.corpora.manifest import Manifest
    from crosspair.corpora.word_overlap import read_accuracy, word_overlap
    from crosspair.progress import delayed_progress
    from crosspair.reporting.titles import print_words, write_words

    manifest = Manifest.read(options.manifest)
    with delayed_progress("words", "pairs") as progress:
        overlaps = word_overlap(manifest, exact=options.exact, progress=progress)
    labels = overlaps[0].ranked()
    accuracy = read_accuracy(options.accuracy, labels) if options.accuracy else {}
    print_words(overlaps)
    if options.out:
        write_words(options.out, overlaps, accuracy)
        print(f"{options.out / 'words.md'}: table and classes; words.csv, words.png beside it")
