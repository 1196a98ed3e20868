"""Tables of committed results, made while the pages are built: no number is typed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from crosspair.evaluation import read_results
from crosspair.reporting.table import markdown_table

PLACE = re.compile(r"^<!-- results: (\S+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Put a table in the place of each ``<!-- results: FILE -->``, FILE relative to docs/."""
    folder = Path(config["docs_dir"])
    return PLACE.sub(lambda place: _table(folder / place[1]), markdown)


def _table(file: Path) -> str:
    results, _ = read_results(file)
    return markdown_table([each for each in results if "official split" not in each.settings])
