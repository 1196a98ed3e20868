"""Pages: HTML files of one look that hold everything they show and ask the network for nothing."""

from __future__ import annotations

import base64
import io
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from crosspair.reporting.sheets import Tile, verdict
from crosspair.reporting.table import shown, shown_interval, shown_ratio


def render_page(template: str, **values: Any) -> str:
    """Fill a template of the folder ``templates``.

    Args:
        template: its name, as "run.html.j2".
        values: by the names that it has for them; text stays text.

    Returns:
        The file's content. Halves of surrogate pairs, which UTF-8 cannot hold, become "?".
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("crosspair.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        animation_uri=animation_uri,
        drawn=Markup,
        interval=shown_interval,
        ratio=shown_ratio,
        shown=shown,
        still_uri=still_uri,
        verdict=verdict,
    )
    return environment.get_template(template).render(values).encode(errors="replace").decode()


def animation_uri(tile: Tile) -> str:
    """A tile's moving picture as a data URI."""
    return _webp_uri(tile.animation())


def still_uri(tile: Tile) -> str:
    """A tile's middle frame as a data URI, for print and for those who asked for no motion."""
    file = io.BytesIO()
    Image.fromarray(tile.frames[len(tile.frames) // 2]).save(file, "WEBP", quality=70)
    return _webp_uri(file.getvalue())


def _webp_uri(content: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"
