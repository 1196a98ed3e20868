"""``crosspair index`` and ``crosspair search``: a library of one's own videos."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspair.cli.use import add_engine, add_windows, engine_choices, windows_of
from crosspair.cli.verbs import Verbs, whole_number
from crosspair.errors import CrosspairError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosspair.library import Indexed, Moment


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
        "--limit", type=whole_number(1), default=10, metavar="N", help="moments (default: 10)"
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
    from crosspair.library import engine, forget, index
    from crosspair.library.store import MODEL_FOLDER, is_library
    from crosspair.progress import late_progress

    if options.forget:
        count = forget(options.library, options.videos)
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
    of = engine(model, **engine_choices(options))
    with late_progress("indexing", "videos") as progress:
        done = index(
            options.library, of, options.videos,
            windows=windows, titles=options.titles, progress=progress,
        )  # fmt: skip
    _tell(options.library, done)


def _tell(library: Path, done: Indexed) -> None:
    from crosspair.library.broken import BROKEN_FILE

    print(
        f"{library}: {done.added} videos added, {done.changed} changed, {done.removed} removed, "
        f"{done.unchanged} unchanged; {done.windows} windows written"
    )
    if done.broken:
        print(f"{library / BROKEN_FILE}: {len(done.broken)} videos that cannot be read, and why")


def _search(options: argparse.Namespace) -> None:
    from crosspair.library import Library, Searcher, engine

    if options.video == "":
        raise CrosspairError("--video '' names no file; give the path of a video")
    library = Library(options.library)
    searcher = Searcher(library, engine(library.model_folder, **engine_choices(options)))
    choices: dict[str, Any] = {
        name: getattr(options, name) for name in ("limit", "where", "folder", "exact")
    }
    if options.video:
        moments = searcher.video(options.video, **choices)
    else:
        moments = searcher.text(options.text, **choices)
    if options.sheet:
        from crosspair.atomic import write_atomically
        from crosspair.library.sheet import contact_sheet

        write_atomically(options.sheet, contact_sheet(options.text or options.video, moments))
    if options.json:
        print(json.dumps([_told(moment) for moment in moments], ensure_ascii=False, indent=2))
    else:
        _print(moments)
    if options.sheet and not options.json:
        print(f"{options.sheet}: a row of frames for each")


def _told(moment: Moment) -> dict[str, Any]:
    return {
        "path": moment.path, "start": moment.start, "end": moment.end,
        "score": round(moment.score, 4), "title": moment.title,
    }  # fmt: skip


def _print(moments: Sequence[Moment]) -> None:
    from rich.console import Console
    from rich.text import Text

    from crosspair.library.timeline import clock

    if not moments:
        print("nothing found")
    console = Console()
    for moment in moments:
        time = f"{clock(moment.start)}–{clock(moment.end)}"
        # No table: it would break long paths into pieces.
        line = Text(f"{moment.score:5.2f}  {time:13}  {moment.path}")
        line.append(f"  {moment.title}" if moment.title else "", style="dim")
        console.print(line, soft_wrap=True)
