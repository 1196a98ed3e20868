"""``crosspair serve``: a library in the browser."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from crosspair.cli.use import add_engine, engine_choices
from crosspair.cli.verbs import Verbs, whole_number

logger = logging.getLogger(__name__)


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
        "--max-upload", type=whole_number(1), default=200, metavar="MB",
        help="largest file (default: 200)",
    )  # fmt: skip
    add_engine(verb)
    verb.set_defaults(verb=_serve)


def _serve(options: argparse.Namespace) -> None:
    from crosspair.library import Library, engine
    from crosspair.serve import serve
    from crosspair.serve.guard import is_loopback

    library = Library(options.library)
    if not is_loopback(options.host):
        logger.warning(
            "whoever reaches %s can see all videos of this library: there is no password",
            options.host,
        )
    serve(
        library, engine(library.model_folder, **engine_choices(options)),
        host=options.host, port=options.port, max_upload=options.max_upload,
        ready=lambda address: print(f"{address}  (Ctrl-C ends it)", flush=True),
    )  # fmt: skip
