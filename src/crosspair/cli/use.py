"""Commands that use a trained model: embed, classify, index, search, serve, and doctor."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspair.cli.options import Subparsers, add_batch_size, add_precision, check_output_path, int_at_least
from crosspair.errors import CrosspairError, VideoError

if TYPE_CHECKING:
    from crosspair.api import Model, TimelineSegment
    from crosspair.corpora.manifest import Manifest
    from crosspair.doctor import Check
    from crosspair.evaluation.windows import Windows
    from crosspair.library.search import SearchHit

logger = logging.getLogger(__name__)

LONG_VIDEO = 30.0  # s; longer videos are classified window by window
TOP = 5


def add_embed(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "embed",
        help="write features of videos to a Parquet file",
        epilog="One row per video or window: video, start, end, visual, embedding, error. To "
        'encode a manifest for evaluation, use "crosspair features", which can resume.',
    )
    _add_videos(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.parquet")
    parser.add_argument(
        "--clips", type=int_at_least(1), default=10,
        help="clips per video, without --window (default: 10)",
    )  # fmt: skip
    _add_windows(parser, "length of a window in s; one row per window (default: one per video)")
    _add_engine(parser)
    parser.set_defaults(command=_embed)


def add_classify(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "classify",
        help="zero-shot classification of videos among given class names",
        epilog=f"Videos longer than {LONG_VIDEO:g} s get a timeline of 4 s windows every 2 s.",
    )
    _add_videos(parser)
    classes = parser.add_mutually_exclusive_group(required=True)
    classes.add_argument("--classes", metavar='"A, B, C"', help="names, separated by commas")
    classes.add_argument("--classes-file", type=Path, metavar="F", help="names, one per line")
    parser.add_argument(
        "--templates", type=Path, metavar="FILE",
        help="prompts for class names, one per line, with {} for the name; averaged",
    )  # fmt: skip
    _add_windows(parser, "length of a window in s; prints a timeline for every video")
    parser.add_argument(
        "--top", type=int_at_least(1), default=TOP, metavar="N",
        help=f"number of classes to print (default: {TOP})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print all scores as JSON")
    _add_engine(parser)
    parser.set_defaults(command=_classify)


def add_index(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "index",
        help="create a searchable library of videos, or update it",
        epilog="Only new and changed files are encoded; videos deleted from the folders are "
        "removed. If interrupted, run the same command again to resume. The library contains a "
        "copy of its model, so --model and --window are needed only once.",
    )
    parser.add_argument("videos", nargs="+", metavar="DIR", help="folders, files, URLs or manifests (.parquet)")
    parser.add_argument("--library", type=Path, required=True, metavar="L", help="library folder")
    parser.add_argument("--model", metavar="M", help="a model folder or Hub name")
    parser.add_argument("--titles", type=Path, metavar="FILE", help="csv or tsv: video_id or path, title")
    _add_windows(parser, "length of a window in s (default: 4)")
    parser.add_argument(
        "--forget", action="store_true",
        help="remove these videos from the library instead, even if the files do not exist",
    )  # fmt: skip
    _add_engine(parser)
    parser.set_defaults(command=_index)


def add_search(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "search", help="search moments in a library by text or by video",
        epilog="Windows that overlap a better window of the same video are suppressed.",
    )  # fmt: skip
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("text", nargs="?", metavar="TEXT")
    query.add_argument("--video", metavar="FILE", help="search for similar videos instead")
    parser.add_argument("--library", type=Path, required=True, metavar="L", help="library folder")
    parser.add_argument(
        "--limit", type=int_at_least(1), default=10, metavar="N",
        help="number of results (default: 10)",
    )  # fmt: skip
    parser.add_argument(
        "--where", default="", metavar="SQL",
        help="condition on path, title, start, \"end\" or size: title LIKE '%%guitar%%'",
    )  # fmt: skip
    parser.add_argument("--folder", metavar="DIR", help="search only videos in this folder")
    parser.add_argument("--exact", action="store_true", help="compare with every window, without the vector index")
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    parser.add_argument("--sheet", type=Path, metavar="F.png", help="also draw an image with frames of each result")
    _add_engine(parser)
    parser.set_defaults(command=_search)


def add_serve(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve a web page to search a library, play results, and classify a video",
        epilog="Only videos of the library are served. Uploads are deleted after processing. Press Ctrl-C to stop.",
    )
    parser.add_argument("--library", type=Path, required=True, metavar="L", help="library folder")
    parser.add_argument(
        "--host", default="127.0.0.1",
        help="address to listen on; 0.0.0.0 allows access from other machines (default: 127.0.0.1)",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=7860, help="0: any free port (default: 7860)")
    parser.add_argument(
        "--max-upload", type=int_at_least(1), default=200, metavar="MB",
        help="maximum size of an upload (default: 200)",
    )  # fmt: skip
    _add_engine(parser)
    parser.set_defaults(command=_serve)


def add_doctor(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check this machine and the installation, and print how to fix problems",
        epilog="Exit status: 1 if a check fails that does not concern an optional extra.",
    )
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    parser.set_defaults(command=_doctor)


def _add_videos(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="files, folders, URLs or manifests (.parquet)")
    parser.add_argument("--model", required=True, metavar="DIR", help="a model folder or Hub name")


def _add_windows(parser: argparse.ArgumentParser, help_: str) -> None:
    parser.add_argument("--window", type=float, metavar="S", help=help_)
    parser.add_argument(
        "--stride", type=float, metavar="S",
        help="seconds between the starts of windows (default: half a window)",
    )  # fmt: skip


def _parse_windows(options: argparse.Namespace) -> Windows | None:
    """Return the windows of --window and --stride (default: half a window); None without --window."""
    from crosspair.evaluation.windows import Windows

    if options.window is None:
        if options.stride is not None:
            raise CrosspairError("--stride requires --window")
        return None
    stride = options.window / 2 if options.stride is None else options.stride
    return Windows(options.window, stride)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="for example cuda:1 (default: auto)")
    add_precision(parser)
    parser.add_argument("--workers", type=int_at_least(0), help="decoding processes (default: number of cores)")
    add_batch_size(parser)


def _engine_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `crosspair.load` and `load_engine`."""
    names = ("device", "precision", "workers", "batch_size")
    return {name: getattr(options, name) for name in names}


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _embed(options: argparse.Namespace) -> None:
    from crosspair.api import load, write_embeddings

    check_output_path(options.out, example="features.parquet")
    windows = _parse_windows(options)
    model = load(options.model, **_engine_options(options))
    metadata = {
        "model": model.engine.model.hash,
        "clips": None if windows else options.clips,
        "window": windows and windows.length,
        "stride": windows and windows.stride,
    }
    encoded = model.encode(options.videos, clips=options.clips, windows=windows)
    rows, failures = write_embeddings(options.out, encoded, metadata)
    failed = f"; {len(failures)} videos could not be read (column error)" if failures else ""
    print(f"{options.out}: {rows} rows{failed}")


def _classify(options: argparse.Namespace) -> None:
    from crosspair.api import load
    from crosspair.corpora.inputs import collect_videos, probe_missing
    from crosspair.evaluation.zeroshot import read_templates

    classes = _read_classes(options)
    templates = read_templates(options.templates) if options.templates else ("{}",)
    windows = _parse_windows(options)
    model = load(options.model, **_engine_options(options))
    manifest = probe_missing(collect_videos(options.videos))
    results = [
        {"video": name, "error": error}
        for name, error in zip(manifest.column("pair_id"), manifest.column("error"), strict=True)
        if error
    ]
    for videos, cut in _split_by_length(manifest, windows):
        results += _classify_videos(model, videos, classes=classes, templates=templates, windows=cut)
    if all("classes" not in result for result in results):
        raise VideoError(f"0 of {len(manifest)} videos can be read; first error: {results[0]['error']}")
    if options.json:
        _print_json(results)
    else:
        _print_classes(results, options.top)


def _read_classes(options: argparse.Namespace) -> list[str]:
    if options.classes_file:
        from crosspair.corpora.tables import read_lines

        names = list(read_lines(options.classes_file, "class file").values())
    else:
        names = [name.strip() for name in options.classes.split(",")]
    classes = list(dict.fromkeys(filter(None, names)))
    if not classes:
        raise CrosspairError(f"{options.classes_file or '--classes'} contains no class name")
    return classes


def _split_by_length(manifest: Manifest, windows: Windows | None) -> Iterator[tuple[Manifest, Windows | None]]:
    """Yield the readable videos up to 30 s with None, and the longer ones (all, if ``windows``) with windows."""
    from crosspair.evaluation.windows import Windows

    short, long = list[int](), list[int]()
    for index, row in enumerate(manifest.table.to_pylist()):
        if not row["error"]:
            end = row["duration"] if row["end"] is None else row["end"]
            cut = windows is not None or end - (row["start"] or 0.0) > LONG_VIDEO
            (long if cut else short).append(index)
    if short:
        yield manifest.take(short), None
    if long:
        yield manifest.take(long), windows or Windows()


def _classify_videos(model: Model, videos: Manifest, **options: Any) -> list[dict[str, Any]]:
    """Return the classes or the error of each video, as JSON values."""
    try:
        classified = model.classify(videos, **options)
    except VideoError as error:
        if len(videos) == 1:
            # The message may begin with a count of videos; the part from the path on is kept.
            message, path = str(error), videos.clips()[0].path
            reason = message[max(0, message.find(path)) :]
            return [{"video": videos.column("pair_id")[0], "error": reason}]
        # One by one: each has its own reason, and one of them may have stopped the decoding of all.
        singles = (videos.take([row]) for row in range(len(videos)))
        return [result for single in singles for result in _classify_videos(model, single, **options)]
    failures = [{"video": name, "error": error} for name, error in classified.failures]
    return failures + [_classes_to_json(*video) for video in classified.videos()]


def _classes_to_json(name: str, ranked: list[tuple[str, float]], timeline: list[TimelineSegment]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "video": name,
        "classes": [{"class": label, "score": round(score, 4)} for label, score in ranked],
    }
    if timeline:
        result["timeline"] = [
            {
                "start": segment.start, "end": segment.end, "class": segment.label,
                "score": round(segment.score, 4),
            }
            for segment in timeline
        ]  # fmt: skip
    return result


def _print_classes(results: Sequence[dict[str, Any]], top: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from crosspair.library.search import format_time

    console = Console()
    for result in results:
        # Outside the table, which would break long paths.
        console.print(Text(result["video"], style="bold"), soft_wrap=True)
        if "error" in result:
            console.print(Text(f"  error: {result['error']}", style="red"), soft_wrap=True)
            continue
        table = Table(box=None, show_header=False, padding=(0, 2))
        for ranked in result["classes"][:top]:
            table.add_row(f"{ranked['score']:.2f}", Text(ranked["class"]))
        for segment in result.get("timeline", ()):
            time = f"{format_time(segment['start'])}–{format_time(segment['end'])}"
            table.add_row(f"{segment['score']:.2f}", Text(segment["class"]), time)
        console.print(table)


def _index(options: argparse.Namespace) -> None:
    from crosspair.evaluation.encode import load_engine
    from crosspair.library.index import index_videos, remove_videos
    from crosspair.library.store import BROKEN_FILE, MODEL_FOLDER, is_library
    from crosspair.progress import delayed_progress

    library = options.library
    if options.forget:
        print(f"{library}: {remove_videos(library, options.videos)} videos removed")
        return
    windows = _parse_windows(options)
    if options.model is None and not is_library(library):
        raise CrosspairError(f"{library} is not a library yet; add --model M to create it")
    engine = load_engine(options.model or library / MODEL_FOLDER, **_engine_options(options))
    with delayed_progress("indexing", "videos") as progress:
        summary = index_videos(
            library, engine, options.videos,
            windows=windows, titles=options.titles, progress=progress,
        )  # fmt: skip
    print(
        f"{library}: {summary.added} videos added, {summary.changed} changed, {summary.removed} "
        f"removed, {summary.unchanged} unchanged; {summary.windows} windows written"
    )
    if summary.broken:
        print(f"{library / BROKEN_FILE}: {len(summary.broken)} unreadable videos, with reasons")


def _search(options: argparse.Namespace) -> None:
    from crosspair.evaluation.encode import load_engine
    from crosspair.library.search import Searcher
    from crosspair.library.store import Library

    if options.video == "":
        raise CrosspairError("--video '' is empty; give the path of a video")
    library = Library(options.library)
    searcher = Searcher(library, load_engine(library.model_folder, **_engine_options(options)))
    settings: dict[str, Any] = {name: getattr(options, name) for name in ("limit", "where", "folder", "exact")}
    search, query = (searcher.video, options.video) if options.video else (searcher.text, options.text)
    hits = search(query, **settings)
    if options.sheet:
        from crosspair.files import write_atomically
        from crosspair.library.search import contact_sheet

        write_atomically(options.sheet, contact_sheet(hits))
    if options.json:
        _print_json([
            {
                "path": hit.path, "start": hit.start, "end": hit.end,
                "score": round(hit.score, 4), "title": hit.title,
            }
            for hit in hits
        ])  # fmt: skip
        return
    _print_hits(hits)
    if options.sheet:
        print(f"{options.sheet}: frames of each result")


def _print_hits(hits: Sequence[SearchHit]) -> None:
    from rich.console import Console
    from rich.text import Text

    from crosspair.library.search import format_time

    if not hits:
        print("nothing found")
    console = Console()
    for hit in hits:
        time = f"{format_time(hit.start)}–{format_time(hit.end)}"
        # Not a table, which would break long paths.
        line = Text(f"{hit.score:5.2f}  {time:13}  {hit.path}")
        line.append(f"  {hit.title}" if hit.title else "", style="dim")
        console.print(line, soft_wrap=True)


def _serve(options: argparse.Namespace) -> None:
    from crosspair.evaluation.encode import load_engine
    from crosspair.library.store import Library
    from crosspair.serve.app import serve
    from crosspair.serve.guard import is_loopback

    library = Library(options.library)
    if not is_loopback(options.host):
        logger.warning(
            "no password is required: everyone who can reach %s can see all videos of this library", options.host
        )
    serve(
        library, load_engine(library.model_folder, **_engine_options(options)),
        host=options.host, port=options.port, max_upload=options.max_upload,
        ready=lambda address: print(f"{address}  (press Ctrl-C to stop)", flush=True),
    )  # fmt: skip


def _doctor(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from crosspair.doctor import run_checks

    checks = run_checks(Path())
    if options.json:
        _print_json([asdict(check) for check in checks])
    else:
        _print_checks(checks)
    sys.exit(0 if all(check.ok or check.optional for check in checks) else 1)


def _print_checks(checks: Sequence[Check]) -> None:
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
