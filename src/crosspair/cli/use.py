"""``crosspair embed`` and ``crosspair classify``: a trained model put to use."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspair.cli.options import Verbs, add_precision, check_output_path, int_at_least
from crosspair.errors import CrosspairError, VideoError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crosspair.api import Model
    from crosspair.corpora.manifest import Manifest
    from crosspair.doctor import Check
    from crosspair.evaluation.windows import Windows
    from crosspair.library.index import IndexSummary
    from crosspair.library.search import SearchHit, TimelineSegment


logger = logging.getLogger(__name__)

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
        "--clips", type=int_at_least(1), default=10,
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
        "--top", type=int_at_least(1), default=TOP, metavar="N",
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
    from crosspair.evaluation.windows import Windows

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
        "--workers", type=int_at_least(0), help="decoding processes (default: one a core)"
    )
    verb.add_argument(
        "--batch-size", type=int_at_least(1), default=32,
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
    from crosspair.api import load, write_embeddings

    check_output_path(options.out, example="features.parquet")
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
    from crosspair.corpora.inputs import collect_videos, probe_missing
    from crosspair.evaluation.zeroshot import read_templates

    classes = _classes(options)
    templates = read_templates(options.templates) if options.templates else ("{}",)
    windows = windows_of(options)
    model = load(options.model, **engine_choices(options))
    manifest = probe_missing(collect_videos(options.videos))
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
        from crosspair.corpora.tables import read_lines

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
    from crosspair.evaluation.windows import Windows

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


def _told(
    name: str, ranked: list[tuple[str, float]], stretches: list[TimelineSegment]
) -> dict[str, Any]:
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

    from crosspair.library.search import format_time

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
            time = f"{format_time(stretch['start'])}–{format_time(stretch['end'])}"
            table.add_row(f"{stretch['score']:.2f}", Text(stretch["class"]), time)
        console.print(table)


def add_index(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "index",
        help="make a searchable library of videos, or bring one up to date",
        epilog="Only new and changed files are looked at; what was deleted from the folders goes. "
        "It may be stopped at any moment: the same command goes on. The library holds a copy of "
        "its model, and needs neither --model nor --window again.",
    )
    verb.add_argument(
        "videos", nargs="+", metavar="DIR", help="folders, files, URLs or manifests (.parquet)"
    )
    verb.add_argument("--library", type=Path, required=True, metavar="L", help="its folder")
    verb.add_argument("--model", metavar="M", help="a model folder or hub name")
    verb.add_argument(
        "--titles", type=Path, metavar="FILE", help="csv or tsv: video_id or path, title"
    )
    add_windows(verb, "seconds of a window (default: 4)")
    verb.add_argument(
        "--forget", action="store_true",
        help="take these videos out of the library instead, whether they still exist or not",
    )  # fmt: skip
    add_engine(verb)
    verb.set_defaults(verb=_index)


def add_search(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "search", help="find moments in a library, by a text or by a video",
        epilog="Overlapping moments of a video are told once, by the best of them.",
    )  # fmt: skip
    query = verb.add_mutually_exclusive_group(required=True)
    query.add_argument("text", nargs="?", metavar="TEXT")
    query.add_argument("--video", metavar="FILE", help="find what looks like it instead")
    verb.add_argument("--library", type=Path, required=True, metavar="L", help="its folder")
    verb.add_argument(
        "--limit", type=int_at_least(1), default=10, metavar="N", help="moments (default: 10)"
    )
    verb.add_argument(
        "--where", default="", metavar="SQL",
        help="a condition on path, title, start, \"end\" or size: title LIKE '%%guitar%%'",
    )  # fmt: skip
    verb.add_argument("--folder", metavar="DIR", help="only videos that lie in it")
    verb.add_argument("--exact", action="store_true", help="look at every window, index or not")
    verb.add_argument("--json", action="store_true", help="for programs")
    verb.add_argument(
        "--sheet", type=Path, metavar="F.png", help="a picture: a row of frames for each moment"
    )
    add_engine(verb)
    verb.set_defaults(verb=_search)


def _index(options: argparse.Namespace) -> None:
    from crosspair.evaluation.encode import load_engine
    from crosspair.library.index import index_videos, remove_videos
    from crosspair.library.store import MODEL_FOLDER, is_library
    from crosspair.progress import delayed_progress

    if options.forget:
        count = remove_videos(options.library, options.videos)
        print(f"{options.library}: {count} videos taken out")
        return
    windows = windows_of(options)
    model = options.model
    if model is None:
        if not is_library(options.library):
            raise CrosspairError(
                f"{options.library} is no library yet; to make one, say with which model: --model M"
            )
        model = options.library / MODEL_FOLDER
    of = load_engine(model, **engine_choices(options))
    with delayed_progress("indexing", "videos") as progress:
        done = index_videos(
            options.library, of, options.videos,
            windows=windows, titles=options.titles, progress=progress,
        )  # fmt: skip
    _tell(options.library, done)


def _tell(library: Path, done: IndexSummary) -> None:
    from crosspair.library.store import BROKEN_FILE

    print(
        f"{library}: {done.added} videos added, {done.changed} changed, {done.removed} removed, "
        f"{done.unchanged} unchanged; {done.windows} windows written"
    )
    if done.broken:
        print(f"{library / BROKEN_FILE}: {len(done.broken)} videos that cannot be read, and why")


def _search(options: argparse.Namespace) -> None:
    from crosspair.evaluation.encode import load_engine
    from crosspair.library.search import Searcher
    from crosspair.library.store import Library

    if options.video == "":
        raise CrosspairError("--video '' names no file; give the path of a video")
    library = Library(options.library)
    searcher = Searcher(library, load_engine(library.model_folder, **engine_choices(options)))
    choices: dict[str, Any] = {
        name: getattr(options, name) for name in ("limit", "where", "folder", "exact")
    }
    if options.video:
        moments = searcher.video(options.video, **choices)
    else:
        moments = searcher.text(options.text, **choices)
    if options.sheet:
        from crosspair.files import write_atomically
        from crosspair.library.search import contact_sheet

        write_atomically(options.sheet, contact_sheet(options.text or options.video, moments))
    if options.json:
        print(
            json.dumps([_told_library(moment) for moment in moments], ensure_ascii=False, indent=2)
        )
    else:
        _print_library(moments)
    if options.sheet and not options.json:
        print(f"{options.sheet}: a row of frames for each")


def _told_library(moment: SearchHit) -> dict[str, Any]:
    return {
        "path": moment.path, "start": moment.start, "end": moment.end,
        "score": round(moment.score, 4), "title": moment.title,
    }  # fmt: skip


def _print_library(moments: Sequence[SearchHit]) -> None:
    from rich.console import Console
    from rich.text import Text

    from crosspair.library.search import format_time

    if not moments:
        print("nothing found")
    console = Console()
    for moment in moments:
        time = f"{format_time(moment.start)}–{format_time(moment.end)}"
        # No table: it would break long paths into pieces.
        line = Text(f"{moment.score:5.2f}  {time:13}  {moment.path}")
        line.append(f"  {moment.title}" if moment.title else "", style="dim")
        console.print(line, soft_wrap=True)


def add_serve(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "serve",
        help="a page to search a library, play what is found, and classify a video",
        epilog="It gives away the library's videos and nothing else. Uploads are removed as soon "
        "as they were looked at. Ctrl-C ends it.",
    )
    verb.add_argument("--library", type=Path, required=True, metavar="L", help="its folder")
    verb.add_argument(
        "--host", default="127.0.0.1",
        help="address to listen at; 0.0.0.0 lets others in (default: 127.0.0.1)",
    )  # fmt: skip
    verb.add_argument("--port", type=int, default=7860, help="0: a free one (default: 7860)")
    verb.add_argument(
        "--max-upload", type=int_at_least(1), default=200, metavar="MB",
        help="largest file (default: 200)",
    )  # fmt: skip
    add_engine(verb)
    verb.set_defaults(verb=_serve)


def _serve(options: argparse.Namespace) -> None:
    from crosspair.evaluation.encode import load_engine
    from crosspair.library.store import Library
    from crosspair.serve.app import serve
    from crosspair.serve.guard import is_loopback

    library = Library(options.library)
    if not is_loopback(options.host):
        logger.warning(
            "whoever reaches %s can see all videos of this library: there is no password",
            options.host,
        )
    serve(
        library, load_engine(library.model_folder, **engine_choices(options)),
        host=options.host, port=options.port, max_upload=options.max_upload,
        ready=lambda address: print(f"{address}  (Ctrl-C ends it)", flush=True),
    )  # fmt: skip


def add_doctor(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "doctor",
        help="what this machine has, what is missing for what, and how to mend it",
        epilog="Status: 1 if something is wrong or missing that is no optional extra.",
    )
    verb.add_argument("--json", action="store_true", help="for programs")
    verb.set_defaults(verb=_doctor)


def _doctor(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from crosspair.doctor import run_checks

    checks = run_checks(Path())
    if options.json:
        print(json.dumps([asdict(check) for check in checks], ensure_ascii=False, indent=2))
    else:
        _print_doctor(checks)
    sys.exit(0 if all(check.ok or check.optional for check in checks) else 1)


def _print_doctor(checks: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for check in checks:
        mark = "[green]ok[/green]" if check.ok else "[red]--[/red]"
        table.add_row(mark, check.name, escape(check.found))
    Console().print(table)
    for check in checks:
        if not check.ok:
            print(f"{check.name}, for {check.needed_for}: {check.fix}")
