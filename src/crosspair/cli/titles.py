"""``crosspair titles`` and ``crosspair words``: text made ready, and what it has in common with
class names."""

from __future__ import annotations

import argparse
from pathlib import Path

from crosspair.cli.verbs import Verbs, add_workers


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
    from crosspair.corpora import Manifest
    from crosspair.corpora.titles import prepare_titles
    from crosspair.progress import late_progress

    manifest = Manifest.read(options.manifest)
    with late_progress("titles", "titles") as progress:
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
    written = filled.moved(out).write(out)
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
    from crosspair.corpora import Manifest
    from crosspair.corpora.words import read_accuracy, word_overlap
    from crosspair.progress import late_progress
    from crosspair.reporting.words import print_words, write_words

    manifest = Manifest.read(options.manifest)
    with late_progress("words", "pairs") as progress:
        overlaps = word_overlap(manifest, exact=options.exact, progress=progress)
    labels = overlaps[0].ranked()
    accuracy = read_accuracy(options.accuracy, labels) if options.accuracy else {}
    print_words(overlaps)
    if options.out:
        write_words(options.out, overlaps, accuracy)
        print(f"{options.out / 'words.md'}: table and classes; words.csv, words.png beside it")
