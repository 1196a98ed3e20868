"""Pages: HTML files of one look that hold everything they show and ask the network for nothing.

What stands in a page may stand in Markdown too: its template has the same name.
"""

from __future__ import annotations

import base64
from typing import Any

import jinja2
from markupsafe import Markup

from crosspair.markdown import plain
from crosspair.reporting.tabular import shown, shown_interval, shown_ratio


def render(template: str, **values: Any) -> str:
    """Fill a template of the folder ``templates``.

    Args:
        template: its name without ".j2", as "run.html" or "summary.md".
        values: by the names that it has for them; in HTML text stays text.

    Returns:
        The file's content.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("crosspair.reporting"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        drawn=Markup,
        interval=shown_interval,
        plain=plain,
        ratio=shown_ratio,
        shown=shown,
        webp=lambda content: f"data:image/webp;base64,{base64.b64encode(content).decode()}",
    )
    return environment.get_template(f"{template}.j2").render(values)
