"""The report: one HTML file that holds everything it shows and asks the network for nothing."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup
from PIL import Image

from crosspair.atomic import write_atomically
from crosspair.evaluation.origin import Provenance
from crosspair.evaluation.results import Result
from crosspair.reporting.curves import Curve
from crosspair.reporting.sheets import Sheet, Tile, verdict
from crosspair.reporting.table import comparison, shown, shown_ratio


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    summary: str,
    results: Sequence[Result],
    provenance: Provenance,
    curves: Sequence[Curve] = (),
    sheets: Sequence[Sheet] = (),
    facts: Sequence[tuple[str, str]] = (),
    recipe: str = "",
) -> None:
    """Write a report in one step.

    Args:
        path: the HTML file.
        title: plain text, as is every text here.
        summary: a paragraph under the title.
        results: what the table is made of, see `crosspair.reporting.table.comparison`.
        provenance: where the results come from.
        curves: figures in the order to show them.
        sheets: queries with the clips that they found.
        facts: names and values of what else is to be known: pairs, seconds spent.
        recipe: the recipe's YAML.

    Raises:
        RunError: the file cannot be written, or two results claim the same cell of the table.
    """
    template = _environment().from_string(
        resources.files("crosspair.reporting").joinpath("report.html.j2").read_text("utf-8")
    )
    page = template.render(
        title=title,
        summary=summary,
        rows=comparison(results),
        provenance=provenance,
        curves=curves,
        sheets=sheets,
        facts=facts,
        recipe=recipe,
    )
    write_atomically(Path(path), page)


def animation_uri(tile: Tile) -> str:
    """A tile's moving picture as a data URI."""
    return _data_uri("image/webp", tile.animation())


def still_uri(tile: Tile) -> str:
    """A tile's middle frame as a data URI, for print and for those who asked for no motion."""
    file = io.BytesIO()
    Image.fromarray(tile.frames[len(tile.frames) // 2]).save(file, "WEBP", quality=70)
    return _data_uri("image/webp", file.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        animation_uri=animation_uri,
        drawn=lambda curve: Markup(curve.svg),
        ratio=shown_ratio,
        shown=shown,
        still_uri=still_uri,
        verdict=verdict,
    )
    return environment
