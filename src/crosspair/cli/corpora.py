"""Verbs that make and process manifests: corpus, check, prepare, titles."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from crosspair.cli.results import print_checked, print_line, print_manifests, print_preparation
from crosspair.errors import CrosspairError, ManifestError

if TYPE_CHECKING:
    from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

    from crosspair.cli.parser import CorpusArguments, TitledArguments


def run_corpus_rendered(
    out: Path, *, pairs: int = 1200, noise: float = 0.3, seed: NonNegativeInt = 0, workers: PositiveInt | None = None
) -> None:
    """Render video files with noisy titles.

    Args:
        out: folder for videos and manifest
        pairs: number of videos
        noise: title noise from 0 (clean titles) to 1 (all titles wrong)
        seed: random seed of videos and titles
    """
    from crosspair.corpora.rendered.render import render_corpus
    from crosspair.progress import delayed_progress

    with delayed_progress("rendering", "videos") as progress:
        manifest = render_corpus(out, pairs, seed, noise, workers, progress=progress)
    print_manifests([manifest])


def run_corpus_folder(
    dir: Path,
    *,
    titles: Path,
    out: Path,
    label_by_folder: bool = False,
    split_list: list[str] = [],  # noqa: B006
    skip_broken: bool = False,
    captions: Literal["error", "first", "join"] = "error",
    **options: Unpack[CorpusArguments],
) -> None:
    """Read a folder of videos and a title file.

    Args:
        titles: csv, tsv, JSON Lines or Parquet: video_id or path, title, and optionally label,
            split, start, end
        out: the manifest, or its folder
        label_by_folder: label each video with its folder's name
        split_list: SPLIT=FILE: text file that lists the videos of train, val or test; may be
            repeated
        skip_broken: mark unreadable videos instead of failing
        captions: several titles of one video are an error, or the first one is used, or all are
            joined
    """
    from crosspair.cli.parser import parse_pairs
    from crosspair.corpora.readers import folder_corpus

    lists = {split: Path(file) for split, file in parse_pairs(split_list, "--split-list").items()}
    reader = partial(
        folder_corpus, label_by_folder=label_by_folder, split_lists=lists, skip_broken=skip_broken, captions=captions
    )
    _read_corpus(reader, dir, titles, out, options)


def run_corpus_kinetics(dir: Path, *, csv: list[Path], out: Path, **options: Unpack[TitledArguments]) -> None:
    """Read Kinetics-400, or with titles Kinetics-210k.

    Args:
        csv: official lists: label, youtube_id, time_start, time_end, split
        out: the manifest, or its folder
    """
    from crosspair.corpora.readers import kinetics_corpus

    _read_corpus(kinetics_corpus, dir, csv, out, options)


def run_corpus_instagram(
    dir: Path, *, captions: Path, out: Path, template: str = "trimmed_resize_{id}.mp4", val: float = 0.0
) -> None:
    """Read Instagram-300k: web videos with captions.

    Args:
        captions: json: {id: {"subset": ..., "caption": ...}}
        out: the manifest, or its folder
        template: file names of the videos
    """
    from crosspair.corpora.readers import instagram_corpus

    _read_corpus(partial(instagram_corpus, template=template), dir, captions, out, {"val": val})


def run_corpus_ucf101(
    dir: Path, *, lists: Path, out: Path, splits: str = "1", **options: Unpack[TitledArguments]
) -> None:
    """Read UCF101, one manifest for each official split.

    Args:
        lists: folder with classInd.txt, trainlist0N.txt and testlist0N.txt
        out: the manifest, or its folder; for several splits, the folder of split1.parquet, ...
    """
    from crosspair.cli.parser import parse_splits
    from crosspair.corpora.ucf_hmdb import ucf101_corpus

    _read_corpus(partial(ucf101_corpus, splits=parse_splits(splits)), dir, lists, out, options)


def run_corpus_hmdb51(
    dir: Path, *, lists: Path, out: Path, splits: str = "1", **options: Unpack[TitledArguments]
) -> None:
    """Read HMDB51, one manifest for each official split.

    Args:
        lists: folder with CLASS_test_splitN.txt
        out: the manifest, or its folder; for several splits, the folder of split1.parquet, ...
    """
    from crosspair.cli.parser import parse_splits
    from crosspair.corpora.ucf_hmdb import hmdb51_corpus

    _read_corpus(partial(hmdb51_corpus, splits=parse_splits(splits)), dir, lists, out, options)


def run_corpus_msrvtt(
    dir: Path,
    *,
    json: list[Path],
    out: Path,
    split: Literal["full", "1k-A", "1k-A-7k"] = "full",
    test_pairs: Path | None = None,
    val: float = 0.0,
) -> None:
    """Read MSR-VTT: 20 captions per video.

    Args:
        json: train_val_videodatainfo.json and test_videodatainfo.json
        out: the manifest, or its folder
        split: the official splits, or the 1,000 test pairs of 1k-A and 9,000 or 7,010 videos to
            train
        test_pairs: MSRVTT_JSFUSION_test.csv, for 1k-A and 1k-A-7k
    """
    from crosspair.corpora.readers import msrvtt_corpus

    _read_corpus(partial(msrvtt_corpus, split=split, test_pairs=test_pairs), dir, json, out, {"val": val})


def run_corpus_msvd(dir: Path, *, captions: Path, lists: Path, out: Path) -> None:
    """Read MSVD: about 41 captions per video.

    Args:
        captions: AllVideoDescriptions.txt
        lists: folder with train_list.txt, val_list.txt and test_list.txt
        out: the manifest, or its folder
    """
    from crosspair.corpora.readers import msvd_corpus

    _read_corpus(partial(msvd_corpus, lists=lists), dir, captions, out, {})


def run_corpus_vatex(dir: Path, *, json: list[Path], out: Path, language: Literal["en", "ch"] = "en") -> None:
    """Read VATEX: 10 captions per video in each language.

    Args:
        json: vatex_training_v1.0.json, vatex_validation_v1.0.json, ...; their names are the splits
        out: the manifest, or its folder
        language: of the captions: en (English) or ch (Chinese)
    """
    from crosspair.corpora.readers import vatex_corpus

    _read_corpus(partial(vatex_corpus, language=language), dir, json, out, {})


def _read_corpus(reader: Callable[..., Any], dir: Path, lists: Any, out: Path, options: Mapping[str, Any]) -> None:
    """Call a reader of `crosspair.corpora`, and print the manifests that it writes."""
    from crosspair.cli.parser import parse_pairs
    from crosspair.corpora.manifest import Manifest
    from crosspair.progress import delayed_progress

    settings = {("val_fraction" if name == "val" else name): value for name, value in options.items()}
    if columns := settings.pop("title_columns", ""):
        settings["title_columns"] = parse_pairs(columns.split(","), "--title-columns")
    with delayed_progress("probing", "videos") as progress:
        manifests = reader(dir, lists, out, progress=progress, **settings)
    print_manifests([manifests] if isinstance(manifests, Manifest) else manifests)


def run_check(
    manifest: str,
    *,
    decode: bool = False,
    out: Path | None = None,
    list: Path | None = None,
    workers: PositiveInt | None = None,
    timeout: PositiveFloat | None = None,
) -> None:
    """Check every video of a manifest and mark those that cannot be used.

    Exit status: 0 if every video is usable, 1 if not, 2 for invalid input.

    Args:
        decode: also decode every frame; an interrupted check resumes when it is run again
        out: the manifest to write (default: replace MANIFEST)
        list: csv file to write all problems to: pair_id, path, kind, message
        timeout: seconds per file (default: 20; with --decode 60 plus the length of the video)
    """
    from crosspair.corpora.check import check
    from crosspair.corpora.manifest import Manifest
    from crosspair.files import check_output
    from crosspair.progress import progress

    if list:
        check_output(list, "a list of problems")
        if out and os.path.realpath(out) == os.path.realpath(list):
            raise ManifestError(f"{out} is --out and --list; choose another file for one of them")
    loaded = Manifest.read(manifest)
    videos = len({clip.path for clip in loaded.clips()})
    try:
        with progress("decoding" if decode else "checking", videos, "videos") as bar:
            checked = check(loaded, out, decode=decode, workers=workers, seconds=timeout, progress=bar.advance)
    except KeyboardInterrupt:
        if decode:
            print("interrupted; run the same command again to resume", file=sys.stderr)
        raise
    if list:
        checked.write_list(list)
    print_checked(checked, list)
    sys.exit(1 if checked.broken else 0)


def run_prepare(
    manifest: str,
    *,
    out: Path,
    short_side: int = 128,
    gop: int = 16,
    fps: str = "own",
    middle: float | None = None,
    crf: float = 20,
    workers: PositiveInt | None = None,
    shard: str = "",
    dry_run: bool = False,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
) -> None:
    """Trim and scale the videos of a corpus to small files that load fast.

    Write the clip of every row to a trimmed, scaled H.264 file with frequent key frames, and a
    manifest of these files. If run again, only missing files are written. Exit status: 0 if all
    files are written, 1 if some sources are broken (see the column error), 2 on failure.

    Args:
        out: folder for manifest and videos
        short_side: short side of the frames in pixels; smaller videos are not enlarged. Use 128 for
            crops of 112, 256 for crops of 224
        gop: key frame interval
        fps: own: keep the frame rate of each video; a number: convert to it
        middle: keep only the middle X seconds of longer videos
        crf: x264 quality
        shard: I/N: make only the I-th (from 1) of N disjoint parts; the shards can run at once, on
            machines with a shared file system
        dry_run: only estimate time and disk space from 20 videos
    """
    from crosspair.cli.parser import check_engine
    from crosspair.corpora.manifest import Manifest
    from crosspair.corpora.prepare import plan_preparation, prepare_corpus, transcode_locally, transcode_on_ray
    from crosspair.corpora.transcode import TranscodeSettings
    from crosspair.progress import progress
    from crosspair.workers import cpu_count

    check_engine(engine, address)
    try:
        rate = None if fps == "own" else float(fps)
    except ValueError as error:
        raise CrosspairError(f"--fps {fps!r} must be own or a number") from error
    settings = TranscodeSettings(short_side, gop, rate, middle, crf)
    workers = workers or cpu_count()
    plan = plan_preparation(Manifest.read(manifest), out, settings, _parse_shard(shard))
    if dry_run:
        print_preparation(plan, workers)
        return
    backend = partial(transcode_locally, workers=workers)
    if engine == "ray":
        backend = partial(transcode_on_ray, workers=workers, address=address)
    with progress("preparing", len(plan.selected), "videos") as bar:
        prepared = prepare_corpus(plan, backend, lambda done, broken: bar.advance(done, f"{broken} broken"))
    if prepared is None:
        print_line(f"{out}: shard {shard} is complete; the last shard writes the manifest")
        return
    broken = sum(error is not None for error in prepared.column("error"))
    print_line(
        f"{prepared.path}: {len(prepared)} pairs, {broken} broken; "
        f"{len(plan.requests)} videos, {len(plan.done)} prepared earlier"
    )
    if broken:
        sys.exit(1)


def _parse_shard(text: str) -> tuple[int, int] | None:
    number, _, count = text.partition("/")
    if text and not (number.isdecimal() and count.isdecimal()):
        raise CrosspairError(f"--shard {text!r} must have the form I/N, for example 1/4")
    return (int(number), int(count)) if text else None


def run_titles_clean(
    manifest: str,
    *,
    out: Path | None = None,
    lemmas: bool = False,
    empty: Literal["keep", "drop", "raw"] = "keep",
    keep_clean: bool = False,
    report: Path | None = None,
    workers: PositiveInt | None = None,
) -> None:
    """Clean the titles of a manifest and extract their verbs and nouns.

    Fill the columns title_clean (the title without emoji, symbols, URLs and non-English words) and
    title_tree (its verbs and nouns, found by a dependency parser).

    Args:
        out: the manifest to write (default: replace MANIFEST)
        lemmas: base forms in title_tree: play instead of playing
        empty: pairs whose clean title is empty: keep them without it, drop them, or use the raw
            title; with raw, an empty title_tree becomes the clean title
        keep_clean: keep existing clean titles and only parse them
        report: folder for report.html and titles.csv: removed words and reasons
    """
    from crosspair.corpora.manifest import Manifest
    from crosspair.corpora.titles import prepare_titles
    from crosspair.files import check_output
    from crosspair.progress import delayed_progress

    loaded = Manifest.read(manifest)
    out = out or loaded.path
    if out.suffix != ".parquet":
        out = out / "manifest.parquet"
    check_output(out, "a manifest")
    if report:
        check_output(report / "titles.csv", "a list of clean titles", "report.html")
    with delayed_progress("titles", "titles") as progress:
        filled, found = prepare_titles(
            loaded, lemmas=lemmas, empty=empty, keep_clean=keep_clean, workers=workers, progress=progress
        )
    if report:
        from crosspair.reporting.titles import write_title_report

        write_title_report(report, found)
    written = filled.rebased(out).write(out)
    print_line(
        f"{written.path}: {len(written)} pairs; {len(found.clean_empty)} without an English title,"
        f" {len(found.tree_empty)} more without a verb or noun; {found.raw_words:,} words in raw "
        f"titles, {found.clean_words:,} in clean titles, {found.tree_words:,} verbs and nouns"
    )


def run_titles_words(
    manifest: str, *, exact: bool = False, accuracy: Path | None = None, out: Path | None = None
) -> None:
    """Measure the word overlap between titles and class names.

    Compute Table 6 and Figure 2 of the paper for a manifest with labels: the titles that contain at
    least one word or all words of their class name, and the fraction of relevant words, for each
    kind of title in the manifest.

    Args:
        exact: compare exact words instead of base forms, of which playing matches plays
        accuracy: also plot the accuracy of each class: results of crosspair evaluate, a csv with
            the columns class and accuracy, or a JSON object (values from 0 to 1)
        out: folder for words.md, words.csv and words.png
    """
    from crosspair.corpora.manifest import Manifest
    from crosspair.corpora.word_overlap import read_accuracy, word_overlap
    from crosspair.files import check_output
    from crosspair.progress import delayed_progress
    from crosspair.reporting.titles import print_word_overlap, write_words

    loaded = Manifest.read(manifest)
    if out:
        check_output(out / "words.csv", "a list of word overlaps", "words.md", "words.png")
    with delayed_progress("words", "pairs") as progress:
        overlaps = word_overlap(loaded, exact=exact, progress=progress)
    labels = overlaps[0].ranked()
    accuracies = read_accuracy(accuracy, labels) if accuracy else {}
    print_word_overlap(overlaps)
    if out:
        write_words(out, overlaps, accuracies)
        print_line(f"{out}: words.md, words.csv, words.png")
