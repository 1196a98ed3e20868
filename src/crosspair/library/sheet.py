"""A contact sheet: a row of frames for each moment that a query found."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from crosspair.clip import Clip
from crosspair.library.search import Moment
from crosspair.library.timeline import clock
from crosspair.reporting.sheets import Found, load_sheet

FRAMES, SHORT_SIDE = 5, 112  # a row, and in pixels
MARGIN, GAP = 118, 6  # pixels beside the frames, and between rows


def contact_sheet(query: str, moments: Sequence[Moment]) -> bytes:
    """Draw what was found, as PNG: score and time stand beside each row.

    Args:
        query: what was asked for.
        moments: best first; a video that cannot be read by now is grey.
    """
    found = [Found(Clip(each.path, each.start, each.end), "", each.score) for each in moments]
    sheet = load_sheet(query, found, short_side=SHORT_SIDE)
    strips = [tile.strip(FRAMES) for tile in sheet.tiles]
    width = MARGIN + max((strip.width for strip in strips), default=0)
    height = sum(strip.height + GAP for strip in strips)
    picture = Image.new("RGB", (width, max(1, height)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=16)
    top = 0
    for moment, strip in zip(moments, strips, strict=True):
        picture.paste(strip, (MARGIN, top))
        words = f"{moment.score:.2f}\n{clock(moment.start)} - {clock(moment.end)}"
        draw.multiline_text((8, top + 4), words, fill="#444c56", font=font, spacing=6)
        top += strip.height + GAP
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
