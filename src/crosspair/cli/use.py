"""``crosspair embed`` and ``crosspair classify``: a trained model put to use."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspair.cli.verbs import Verbs, add_precision, check_place, whole_number
from crosspair.errors import CrosspairError, VideoError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crosspair.api import Model
    from crosspair.corpora import Manifest
    from crosspair.library.timeline import Stretch
    from crosspair.library.windows import Windows

LONG = 30.0  # s; a longer video is classified window by window
TOP = 5


def add_embed(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "embed",
        help="features of any videos, into one Parquet file",
        epilog="A row a video, or a window: video, start, end, visual, embedding, error. For a "
        'manifest to evaluate on, there is "crosspair features", which goes on where it was '
        "stopped.",
    )
    _add_videos(verb)
    verb.add_argument("--out", type=Path, required=True, metavar="FILE.parquet")
    verb.add_argument(
        "--clips", type=whole_number(1), default=10,
        help="a video, where no window is given (default: 10)",
    )  # fmt: skip
    add_windows(verb, "a row for each so many seconds (default: one for the whole video)")
    add_engine(verb)
    verb.set_defaults(verb=_embed)


def add_classify(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "classify",
        help="the nearest of some class names for any video, without training",
        epilog=f"Videos longer than {LONG:g} s get a timeline of windows of 4 s every 2 s.",
    )
    _add_videos(verb)
    classes = verb.add_mutually_exclusive_group(required=True)
    classes.add_argument("--classes", metavar='"A, B, C"', help="names, separated by commas")
    classes.add_argument("--classes-file", type=Path, metavar="F", help="names, one a line")
    verb.add_argument(
        "--templates", type=Path, metavar="FILE",
        help="texts for class names, one a line, with {} for the name; averaged",
    )  # fmt: skip
    add_windows(verb, "a timeline of windows of so many seconds for every video")
    verb.add_argument(
        "--top", type=whole_number(1), default=TOP, metavar="N",
        help=f"classes to show (default: {TOP})",
    )  # fmt: skip
    verb.add_argument("--json", action="store_true", help="all scores, for programs")
    add_engine(verb)
    verb.set_defaults(verb=_classify)


def add_windows(verb: argparse.ArgumentParser, help_: str) -> None:
    """The options of `windows_of`."""
    verb.add_argument("--window", type=float, metavar="S", help=help_)
    verb.add_argument(
        "--stride", type=float, metavar="S",
        help="seconds between windows' beginnings (default: half a window)",
    )  # fmt: skip


def windows_of(options: argparse.Namespace) -> Windows | None:
    """What was asked for, or None."""
    from crosspair.library.windows import Windows

    if options.window is None:
        if options.stride is not None:
            raise CrosspairError("--stride is of windows; give --window, too")
        return None
    stride = options.window / 2 if options.stride is None else options.stride
    return Windows(options.window, stride)


def add_engine(verb: argparse.ArgumentParser) -> None:
    """Where a model computes: the options of `engine_choices`."""
    verb.add_argument("--device", default="auto", help="as cuda:1 (default: auto)")
    add_precision(verb)
    verb.add_argument(
        "--workers", type=whole_number(0), help="decoding processes (default: one a core)"
    )
    verb.add_argument(
        "--batch-size", type=whole_number(1), default=32,
        help="clips at a time, at most (default: 32)",
    )  # fmt: skip


def engine_choices(options: argparse.Namespace) -> dict[str, Any]:
    """What `crosspair.library.engine` takes besides the model."""
    names = ("device", "precision", "workers", "batch_size")
    return {name: getattr(options, name) for name in names}


def _add_videos(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "videos", nargs="+", metavar="VIDEO", help="files, folders, URLs or manifests (.parquet)"
    )
    verb.add_argument("--model", required=True, metavar="DIR", help="a model folder or hub name")


def _embed(options: argparse.Namespace) -> None:
    from crosspair.api import load
    from crosspair.library.embeddings import write_embeddings

    check_place(options.out, example="features.parquet")
    windows = windows_of(options)
    model = load(options.model, **engine_choices(options))
    about = {
        "model": model.engine.model.hash,
        "clips": None if windows else options.clips,
        "window": windows and windows.length,
        "stride": windows and windows.stride,
    }
    encoded = model.encode(options.videos, clips=options.clips, windows=windows)
    rows, failures = write_embeddings(options.out, encoded, about)
    failed = f"; {len(failures)} videos could not be read (column error)" if failures else ""
    print(f"{options.out}: {rows} rows{failed}")


def _classify(options: argparse.Namespace) -> None:
    from crosspair.api import load
    from crosspair.evaluation.zeroshot import read_templates
    from crosspair.library.videos import probed, videos_of

    classes = _classes(options)
    templates = read_templates(options.templates) if options.templates else ("{}",)
    windows = windows_of(options)
    model = load(options.model, **engine_choices(options))
    manifest = probed(videos_of(options.videos))
    told = [
        {"video": name, "error": error}
        for name, error in zip(manifest.column("pair_id"), manifest.column("error"), strict=True)
        if error
    ]
    for part, cut in _by_length(manifest, windows):
        told += _classified(model, part, classes=classes, templates=templates, windows=cut)
    if all("classes" not in each for each in told):
        raise VideoError(f"none of the {len(manifest)} videos can be read: {told[0]['error']}")
    if options.json:
        print(json.dumps(told, ensure_ascii=False, indent=2))
    else:
        _print(told, options.top)


def _classes(options: argparse.Namespace) -> list[str]:
    if options.classes_file:
        from crosspair.corpora.table import read_lines

        given = [row["line"] for row in read_lines(options.classes_file, "class file")]
    else:
        given = [name.strip() for name in options.classes.split(",")]
    classes = list(dict.fromkeys(filter(None, given)))
    if not classes:
        raise CrosspairError("there are no classes; give at least one name")
    return classes


def _by_length(
    manifest: Manifest, windows: Windows | None
) -> Iterator[tuple[Manifest, Windows | None]]:
    """Readable videos that are short, and those of which a timeline is to be told."""
    from crosspair.library.windows import Windows

    short, long = list[int](), list[int]()
    for row, says in enumerate(manifest.table.to_pylist()):
        if not says["error"]:
            end = says["duration"] if says["end"] is None else says["end"]
            cut = windows is not None or end - (says["start"] or 0.0) > LONG
            (long if cut else short).append(row)
    if short:
        yield manifest.take(short), None
    if long:
        yield manifest.take(long), windows or Windows()


def _classified(model: Model, manifest: Manifest, **choices: Any) -> list[dict[str, Any]]:
    """What is told of each video; none needs to be readable."""
    try:
        answer = model.classify(manifest, **choices)
    except VideoError as error:
        if len(manifest) == 1:
            reason = str(error).removeprefix("none of the 1 videos can be read: ")
            return [{"video": manifest.column("pair_id")[0], "error": reason}]
        # One by one, as each has its own reason, and what ended the decoding of all may be one.
        alone = (manifest.take([row]) for row in range(len(manifest)))
        return [told for each in alone for told in _classified(model, each, **choices)]
    failures = [{"video": name, "error": error} for name, error in answer.failures]
    return failures + [_told(*each) for each in answer.videos()]


def _told(name: str, ranked: list[tuple[str, float]], stretches: list[Stretch]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "video": name,
        "classes": [{"class": label, "score": round(score, 4)} for label, score in ranked],
    }
    if stretches:
        told["timeline"] = [
            {"start": each.start, "end": each.end, "class": each.label,
             "score": round(each.score, 4)}
            for each in stretches
        ]  # fmt: skip
    return told


def _print(told: Sequence[dict[str, Any]], top: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from crosspair.library.timeline import clock

    console = Console()
    for each in told:
        # On a line of its own: paths are long.
        console.print(Text(each["video"], style="bold"), soft_wrap=True)
        if "error" in each:
            console.print(Text(f"  cannot be read: {each['error']}", style="red"), soft_wrap=True)
            continue
        table = Table(box=None, show_header=False, padding=(0, 2))
        for of_class in each["classes"][:top]:
            table.add_row(f"{of_class['score']:.2f}", Text(of_class["class"]))
        for stretch in each.get("timeline", ()):
            time = f"{clock(stretch['start'])}–{clock(stretch['end'])}"
            table.add_row(f"{stretch['score']:.2f}", Text(stretch["class"]), time)
        console.print(table)
