"""Commands that make and process manifests: corpus, check, prepare, titles, words."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspair.cli.options import Subparsers, add_cluster, add_seed, add_workers, check_output_path, uses_ray
from crosspair.errors import CrosspairError

if TYPE_CHECKING:
    from crosspair.corpora.check import CheckedManifest
    from crosspair.corpora.manifest import Manifest
    from crosspair.corpora.prepare import PreparationPlan, TranscodeBackend
    from crosspair.corpora.transcode import TranscodeSettings


def add_corpus(commands: Subparsers) -> None:
    """Add the command ``corpus`` with a subcommand for each kind of corpus."""
    parser = commands.add_parser(
        "corpus", help="make a manifest: rendered videos, a folder, or one of the paper's corpora"
    )
    corpora = parser.add_subparsers(required=True, metavar="CORPUS")
    for add in (_add_rendered, _add_folder, _add_kinetics, _add_instagram, _add_ucf_and_hmdb):
        add(corpora)


def _add_rendered(corpora: Subparsers) -> None:
    parser = corpora.add_parser("rendered", help="render video files with noisy titles")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for videos and manifest")
    parser.add_argument("--pairs", type=int, default=1200, help="default: 1200")
    add_seed(parser, "videos and titles")
    parser.add_argument(
        "--noise", type=float, default=0.3,
        help="title noise from 0 (clean titles) to 1 (all titles wrong); default: 0.3",
    )  # fmt: skip
    add_workers(parser)
    parser.set_defaults(command=_corpus_rendered)


def _add_folder(corpora: Subparsers) -> None:
    parser = _add_reader(corpora, "folder", "a folder of videos and a title file")
    parser.add_argument(
        "--titles", type=Path, required=True, metavar="FILE",
        help="csv or tsv: video_id or path, title, and optionally label, split, start, end",
    )  # fmt: skip
    _add_title_columns(parser)
    parser.add_argument("--label-by-folder", action="store_true", help="label each video with its folder's name")
    parser.add_argument(
        "--split-list", action="append", default=[], metavar="SPLIT=FILE",
        help="text file that lists the videos of train, val or test; may be repeated",
    )  # fmt: skip
    parser.add_argument("--skip-broken", action="store_true", help="mark unreadable videos instead of failing")


def _add_kinetics(corpora: Subparsers) -> None:
    parser = _add_reader(corpora, "kinetics", "Kinetics-400, or with titles Kinetics-210k")
    parser.add_argument(
        "--csv", type=Path, nargs="+", action="extend", required=True, metavar="FILE",
        help="official lists: label, youtube_id, time_start, time_end, split",
    )  # fmt: skip
    _add_titles_file(parser, "pairs without a title are skipped")


def _add_instagram(corpora: Subparsers) -> None:
    parser = _add_reader(corpora, "instagram", "Instagram-300k: web videos with captions")
    parser.add_argument(
        "--captions", type=Path, required=True, metavar="FILE",
        help='json: {id: {"subset": ..., "caption": ...}}',
    )  # fmt: skip
    parser.add_argument("--template", default="trimmed_resize_{id}.mp4", help="file names; default: %(default)s")


def _add_ucf_and_hmdb(corpora: Subparsers) -> None:
    for name, lists, group in (
        ("ucf101", "classInd.txt, trainlist0N.txt and testlist0N.txt", "whole groups"),
        ("hmdb51", "CLASS_test_splitN.txt", "whole source films"),
    ):
        parser = _add_reader(corpora, name, f"{name.upper()}; --val holds out {group}")
        parser.add_argument("--lists", type=Path, required=True, metavar="DIR", help=f"folder with {lists}")
        parser.add_argument(
            "--split", choices=("1", "2", "3", "all"), default="1",
            help="all: write split1.parquet to split3.parquet to the folder --out (default: 1)",
        )  # fmt: skip
        _add_titles_file(parser, "without it, titles are empty")


def _add_reader(corpora: Subparsers, name: str, summary: str) -> argparse.ArgumentParser:
    """Add the parser of a corpus on disk with the options that all of them have."""
    parser = corpora.add_parser(name, help=summary)
    parser.set_defaults(command=_corpus_on_disk, corpus=name)
    parser.add_argument("folder", type=Path, metavar="DIR", help="searched recursively for videos")
    parser.add_argument("--out", type=Path, required=True, help="the manifest, or its folder")
    parser.add_argument(
        "--class-names", type=Path, metavar="FILE",
        help="csv or tsv without header: official class name, readable class name",
    )  # fmt: skip
    parser.add_argument("--val", type=float, default=0.0, help="fraction of train to hold out as val (default: 0)")
    add_seed(parser, "the videos to hold out")
    return parser


def _add_titles_file(parser: argparse.ArgumentParser, note: str) -> None:
    parser.add_argument(
        "--titles", type=Path, metavar="FILE",
        help="csv or tsv: video_id, title; or the authors' tsv without header: "
        f"id, processed title, original title; {note}",
    )  # fmt: skip
    _add_title_columns(parser)


def _add_title_columns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--title-columns", default="", metavar="COLUMN=NAME,...",
        help="column names of the title file, for example video_id=id,title=caption",
    )  # fmt: skip


def _corpus_rendered(options: argparse.Namespace) -> None:
    from crosspair.corpora.rendered.render import render_corpus
    from crosspair.progress import delayed_progress

    with delayed_progress("rendering", "videos") as progress:
        manifest = render_corpus(
            options.out, options.pairs, options.seed, options.noise, options.workers,
            progress=progress,
        )  # fmt: skip
    _print_manifests([manifest])


def _corpus_on_disk(options: argparse.Namespace) -> None:
    from crosspair.corpora.readers import folder_corpus, instagram_corpus, kinetics_corpus
    from crosspair.corpora.ucf_hmdb import SPLITS, hmdb51_corpus, ucf101_corpus
    from crosspair.progress import delayed_progress

    folder, out, corpus = options.folder, options.out, options.corpus
    with delayed_progress("probing", "videos") as progress:
        common: dict[str, Any] = {
            "class_names": options.class_names, "val_fraction": options.val, "seed": options.seed,
            "progress": progress,
        }  # fmt: skip
        if "title_columns" in options:
            common["title_columns"] = _parse_title_columns(options)
        if corpus == "folder":
            lists = _parse_pairs(options.split_list, "--split-list", "SPLIT=FILE")
            manifests = [
                folder_corpus(
                    folder, options.titles, out, label_by_folder=options.label_by_folder,
                    split_lists={split: Path(file) for split, file in lists.items()},
                    skip_broken=options.skip_broken, **common,
                )
            ]  # fmt: skip
        elif corpus == "kinetics":
            manifests = [kinetics_corpus(folder, options.csv, out, titles=options.titles, **common)]
        elif corpus == "instagram":
            template = options.template
            manifests = [instagram_corpus(folder, options.captions, out, template=template, **common)]
        else:
            read = ucf101_corpus if corpus == "ucf101" else hmdb51_corpus
            splits = SPLITS if options.split == "all" else (int(options.split),)
            titles = options.titles
            manifests = read(folder, options.lists, out, splits=splits, titles=titles, **common)
    _print_manifests(manifests)


def _parse_title_columns(options: argparse.Namespace) -> Mapping[str, str]:
    if options.title_columns and options.titles is None:
        raise CrosspairError("--title-columns requires --titles FILE")
    columns = filter(None, options.title_columns.split(","))
    return _parse_pairs(columns, "--title-columns", "COLUMN=NAME")


def _parse_pairs(texts: Iterable[str], option: str, form: str) -> Mapping[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise CrosspairError(f"{option} {text!r} must have the form {form}")
        if key.strip() in pairs:
            raise CrosspairError(f"{option} sets {key.strip()} more than once")
        pairs[key.strip()] = value.strip()
    return pairs


def _print_manifests(manifests: Iterable[Manifest]) -> None:
    from crosspair.corpora.build import skipped_list_path
    from crosspair.corpora.manifest import SPLITS

    for manifest in manifests:
        counts = ", ".join(f"{len(manifest.split(name))} {name}" for name in SPLITS)
        print(f"{manifest.path}: {len(manifest)} pairs ({counts})")
        if skipped_list_path(manifest.path).exists():
            print(f"{skipped_list_path(manifest.path)}: skipped pairs, with reasons")


def add_check(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "check",
        help="check every video of a manifest and mark those that cannot be used",
        epilog="Exit status: 0 if every video is usable, 1 if not, 2 for invalid input.",
    )
    parser.add_argument("manifest", metavar="MANIFEST")
    parser.add_argument(
        "--decode", action="store_true",
        help="also decode every frame; an interrupted check resumes when it is run again",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="MANIFEST2", help="default: replace MANIFEST")
    parser.add_argument(
        "--list", type=Path, metavar="FILE.csv",
        help="write all problems to a list: pair_id, path, kind, message",
    )  # fmt: skip
    add_workers(parser)
    parser.add_argument(
        "--timeout", type=_positive_seconds, metavar="S",
        help="seconds per file (default: 20; with --decode 60 plus the length of the video)",
    )  # fmt: skip
    parser.set_defaults(command=_check)


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
            print("interrupted; run the same command again to resume", file=sys.stderr)
        raise
    if options.list:
        checked.write_list(options.list)
    _print_checked(checked, options.list)
    sys.exit(1 if checked.broken else 0)


def _print_checked(checked: CheckedManifest, listed: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("kind", box=None, header_style="bold", pad_edge=False)
    table.add_column("videos", justify="right")
    table.add_column("pairs", justify="right")
    table.add_column("in training")
    for kind, (videos, pairs) in checked.count_statuses().items():
        use = "[red]skipped[/red]" if kind.broken else "used"
        table.add_row(kind.value, f"{videos:,}", f"{pairs:,}", use)
    Console().print(table)
    total = len(checked.manifest)
    print(f"{checked.manifest.path}: {total - checked.broken} of {total} pairs can be used")
    if listed:
        print(f"{listed}: all problems")
    elif any(result.reason for result in checked.results):
        print("Use --list FILE.csv to list all problems.")


def _positive_seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return number


def add_prepare(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "prepare",
        help="trim and scale the videos of a corpus to small files that load fast",
        description="Write the clip of every row to a trimmed, scaled H.264 file with frequent key "
        "frames, and a manifest of these files. If run again, only missing files are written. "
        "Exit status: 0 if all files are written, 1 if some sources are broken (see the column "
        "error), 2 on failure.",
    )
    parser.add_argument("manifest", metavar="MANIFEST")
    parser.add_argument("--out", type=Path, required=True, help="folder for manifest and videos")
    parser.add_argument(
        "--short-side", type=int, default=128, metavar="PX",
        help="short side of the frames; smaller videos are not enlarged (default: 128, for crops "
        "of 112; use 256 for crops of 224)",
    )  # fmt: skip
    parser.add_argument("--gop", type=int, default=16, help="key frame interval (default: 16)")
    parser.add_argument(
        "--fps", default="own", metavar="own|N",
        help="own: keep the frame rate of each video (default); N: convert to N",
    )  # fmt: skip
    parser.add_argument("--middle", type=float, metavar="S", help="keep only the middle S seconds of longer videos")
    parser.add_argument("--crf", type=float, default=20, help="x264 quality (default: 20)")
    add_workers(parser)
    parser.add_argument("--dry-run", action="store_true", help="only estimate time and disk space")
    parser.add_argument("--sample", type=int, default=20, help="for --dry-run (default: 20 videos)")
    add_seed(parser, "that sample")
    add_cluster(parser)
    parser.set_defaults(command=_prepare)


def _prepare(options: argparse.Namespace) -> None:
    settings = _transcode_settings(options)

    from crosspair.corpora.manifest import Manifest
    from crosspair.corpora.prepare import plan_preparation, prepare_corpus
    from crosspair.progress import progress
    from crosspair.workers import cpu_count

    workers = options.workers or cpu_count()
    plan = plan_preparation(Manifest.read(options.manifest), options.out, settings)
    if options.dry_run:
        _print_estimate(plan, options, workers)
        return
    backend = _transcode_backend(options, workers)
    with progress("preparing", len(plan.requests), "videos") as bar:
        manifest = prepare_corpus(plan, backend, lambda done, broken: bar.advance(done, f"{broken} broken"))
    assert manifest is not None  # None only for shards
    broken = sum(error is not None for error in manifest.column("error"))
    print(
        f"{manifest.path}: {len(manifest)} pairs, {broken} broken; "
        f"{len(plan.requests)} videos, {len(plan.done)} prepared earlier"
    )
    if broken:
        sys.exit(1)


def _transcode_settings(options: argparse.Namespace) -> TranscodeSettings:
    from crosspair.corpora.transcode import TranscodeSettings

    try:
        fps = None if options.fps == "own" else float(options.fps)
    except ValueError as error:
        raise CrosspairError(f"--fps {options.fps!r} must be own or a number") from error
    return TranscodeSettings(options.short_side, options.gop, fps, options.middle, options.crf)


def _transcode_backend(options: argparse.Namespace, workers: int) -> TranscodeBackend:
    from functools import partial

    from crosspair.corpora.prepare import transcode_locally, transcode_on_ray

    if uses_ray(options):
        return partial(transcode_on_ray, workers=workers, address=options.address)
    return partial(transcode_locally, workers=workers)


def _print_estimate(plan: PreparationPlan, options: argparse.Namespace, workers: int) -> None:
    """Transcode a sample of the missing videos, and print the estimated time and disk space of all of them."""
    import datetime
    import shutil
    from functools import partial

    from crosspair.corpora.prepare import estimate_cost, transcode_locally
    from crosspair.progress import progress

    print(
        f"{len(plan.manifest)} pairs, {len(plan.requests)} videos: "
        f"{len(plan.done)} prepared, {len(plan.missing)} missing"
    )
    if not plan.missing:
        return
    size = min(options.sample, len(plan.missing))
    with progress("measuring", size, "videos") as bar:
        estimate = estimate_cost(
            plan, partial(transcode_locally, workers=workers), options.sample, options.seed,
            lambda done, broken: bar.advance(done, f"{broken} broken"),
        )  # fmt: skip
    folder = next(each for each in [plan.out, *plan.out.absolute().parents] if each.is_dir())
    total = datetime.timedelta(seconds=round(estimate.work))
    elapsed = datetime.timedelta(seconds=round(estimate.work / workers))
    print(
        f"estimate from {estimate.sampled} videos ({estimate.broken} broken): {elapsed} with "
        f"{workers} processes ({total} with one), {estimate.size / 1e6:.1f} MB of disk space "
        f"({shutil.disk_usage(folder).free / 1e6:.0f} MB free)"
    )


def add_titles(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "titles",
        help="clean the titles of a manifest and extract their verbs and nouns",
        description="Fill the columns title_clean (the title without emoji, symbols, URLs and "
        "non-English words) and title_tree (its verbs and nouns, found by a dependency parser).",
    )
    parser.add_argument("manifest", metavar="MANIFEST", help="the manifest, or its folder")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: replace MANIFEST")
    parser.add_argument("--lemmas", action="store_true", help="base forms in title_tree: play instead of playing")
    parser.add_argument(
        "--empty", choices=("keep", "drop", "raw"), default="keep",
        help="pairs whose clean title is empty: keep them without it (default), drop them, or use "
        "the raw title; with raw, an empty title_tree becomes the clean title",
    )  # fmt: skip
    parser.add_argument("--keep-clean", action="store_true", help="keep existing clean titles and only parse them")
    parser.add_argument(
        "--report", type=Path, metavar="DIR",
        help="folder for report.html, titles.csv and titles.png: removed words and reasons",
    )  # fmt: skip
    add_workers(parser)
    parser.set_defaults(command=_titles)


def _titles(options: argparse.Namespace) -> None:
    from crosspair.corpora.manifest import Manifest
    from crosspair.corpora.titles import prepare_titles
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
        f"{written.path}: {len(written)} pairs; {len(report.clean_empty)} without an English title,"
        f" {len(report.tree_empty)} more without a verb or noun; {report.raw_words:,} words in raw "
        f"titles, {report.clean_words:,} in clean titles, {report.tree_words:,} verbs and nouns"
    )


def add_words(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "words",
        help="measure the word overlap between titles and class names",
        description="Compute Table 6 and Figure 2 of the paper for a manifest with labels: the "
        "titles that contain at least one word or all words of their class name, and the fraction "
        "of relevant words, for each kind of title in the manifest.",
    )
    parser.add_argument("manifest", metavar="MANIFEST", help="the manifest, or its folder")
    parser.add_argument(
        "--exact", action="store_true",
        help="compare exact words (default: base forms, so that playing matches plays)",
    )  # fmt: skip
    parser.add_argument(
        "--accuracy", type=Path, metavar="FILE",
        help="also plot the accuracy of each class: results of crosspair evaluate, a csv with the "
        "columns class and accuracy, or a JSON object (values from 0 to 1)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for words.md, words.csv and words.png")
    parser.set_defaults(command=_words)


def _words(options: argparse.Namespace) -> None:
    from crosspair.corpora.manifest import Manifest
    from crosspair.corpora.word_overlap import read_accuracy, word_overlap
    from crosspair.progress import delayed_progress
    from crosspair.reporting.titles import print_word_overlap, write_words

    manifest = Manifest.read(options.manifest)
    with delayed_progress("words", "pairs") as progress:
        overlaps = word_overlap(manifest, exact=options.exact, progress=progress)
    labels = overlaps[0].ranked()
    accuracy = read_accuracy(options.accuracy, labels) if options.accuracy else {}
    print_word_overlap(overlaps)
    if options.out:
        write_words(options.out, overlaps, accuracy)
        print(f"{options.out}: words.md, words.csv, words.png")
