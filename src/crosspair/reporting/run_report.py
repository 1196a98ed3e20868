"""What happened in a training: the lines of a run's ``metrics.jsonl``."""

from __future__ import annotations

import base64
import io
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from crosspair.config import Clip
from crosspair.errors import RunError, VideoError
from crosspair.evaluation.results import Result
from crosspair.files import read_jsonl, write_atomically
from crosspair.markdown import escape_markdown
from crosspair.provenance import Provenance
from crosspair.reporting.figures import (
    FAINT,
    SERIES,
    Series,
    draw_lines,
    drawable,
    png,
    styled,
    svg_figure,
)
from crosspair.reporting.tables import (
    ComparisonRow,
    comparison,
    format_interval,
    format_ratio,
    format_value,
)
from crosspair.video.decode import REFERENCE_FPS, clip_times, read_frames

Line = dict[str, Any]
_STAGE_2 = "stage II begins"
_KINDS = ("train", "validation", "event")


@dataclass(frozen=True)
class History:
    """Lines by kind, in the order of steps.

    Attributes:
        train: means over the last steps: loss, posteriors, learning rate, speed.
        validation: retrieval on the validation pairs.
        events: what changed the course of the training.
    """

    train: Sequence[Line] = ()
    validation: Sequence[Line] = ()
    events: Sequence[Line] = ()

    @property
    def stage2_epoch(self) -> float | None:
        """Where the language model began to be trained; ``None`` if it never did, or always."""
        begun = [line["epoch"] for line in self.events if line.get("event") == _STAGE_2]
        return float(begun[0]) if begun else None


def read_history(run: str | os.PathLike[str]) -> History:
    """Read the history of a run.

    Lines that a kill cut short are left out. A run that was killed and resumed may repeat steps;
    the last line of each step counts.

    Args:
        run: the run's folder, or its ``metrics.jsonl``.

    Raises:
        RunError: there is no such file, or it cannot be read.
    """
    path = Path(run)
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise RunError(f"{path} does not exist; has the training begun?")
    last = {
        (line["kind"], line["step"], line.get("event")): line
        for line in read_jsonl(path)
        if isinstance(line, dict) and {"kind", "step", "epoch"} <= line.keys()
    }
    lines = sorted(last.values(), key=lambda line: float(line["step"]))
    return History(*([line for line in lines if line["kind"] == kind] for kind in _KINDS))


def series(lines: Sequence[Line], name: str) -> tuple[list[float], list[float]]:
    """Epochs and values of one quantity, from the lines that have it as a finite number.

    >>> series([{"epoch": 0.5, "loss": 9.0}, {"epoch": 1.0}], "loss")
    ([0.5], [9.0])
    """
    found = [(line["epoch"], line.get(name)) for line in lines]
    finite = [(float(x), float(y)) for x, y in found if isinstance(y, int | float) and isfinite(y)]
    return [x for x, _ in finite], [y for _, y in finite]


RANKS = (1, 5, 10)
_POINTS = 400  # of a line; more cannot be seen
_LOSS = "Mean over neighbouring log lines of the training loss."
_POSTERIOR = (
    "How surely a video and a title are taken for a pair, as the recipe's objective has it (nce: h "
    "of Equation 5; softmax: the probability). True pairs should rise, noise stay near zero."
)


@dataclass(frozen=True)
class Curve:
    """One figure of a report: an SVG element, its heading, and what it shows."""

    title: str
    svg: str
    caption: str


def learning_curves(history: History) -> list[Curve]:
    """The figures that a history has numbers for, the most telling first."""
    train, stage2 = history.train, history.stage2_epoch
    pairs = _pairs(history.validation)
    among = f" among {pairs:,} validation pairs. Dotted: what guessing finds." if pairs else "."
    found = f"How often the right one is within the first 1, 5 and 10{among}"
    to_video, to_text = (
        retrieval_series(history.validation, direction)
        for direction in ("text_to_video", "video_to_text")
    )
    loss = smoothed("", train, "loss")
    posteriors = [
        smoothed("true pairs", train, "posterior_positive"),
        smoothed("noise", train, "posterior_noise"),
    ]
    curves = [
        _curve("Retrieval, text → video", to_video, "found, %", found, stage2),
        _curve("Retrieval, video → text", to_text, "found, %", found, stage2),
        _curve("Loss", [loss], "loss, both directions", _LOSS, stage2),
        _curve("Posterior of being a pair", posteriors, "posterior, %", _POSTERIOR, stage2),
    ]
    return [curve for curve in curves if curve]


def retrieval_series(validation: Sequence[Line], direction: str) -> list[Series]:
    """R@1, R@5 and R@10 over epochs, each with what guessing would find.

    Args:
        validation: lines of a `History`.
        direction: "text_to_video" or "video_to_text".
    """
    pairs = _pairs(validation)
    lines = []
    for rank in RANKS:
        epochs, values = series(validation, f"{direction}_R@{rank}")
        if values:
            chance = min(1.0, rank / pairs) if pairs else None
            lines.append(Series(f"R@{rank}", epochs, values, chance))
    return lines


def smoothed(name: str, lines: Sequence[Line], key: str) -> Series:
    """Means over windows of 1/50 of the history, at no more points than can be seen."""
    epochs, values = series(lines, key)
    reach = len(values) // 100
    every = max(1, len(values) // _POINTS)
    places = sorted({*range(0, len(values), every), *([len(values) - 1] if values else [])})
    smooth = [statistics.fmean(values[max(0, i - reach) : i + reach + 1]) for i in places]
    return Series(name, [epochs[i] for i in places], smooth)


def _curve(
    title: str,
    lines: Sequence[Series],
    ylabel: str,
    caption: str,
    stage2: float | None,
) -> Curve | None:
    """A figure, in % where its values are; None where a line has no values."""
    if not lines or not all(line.y for line in lines):
        return None
    draw = partial(draw_lines, lines=lines, ylabel=ylabel, percent="%" in ylabel, stage2=stage2)
    return Curve(title, svg_figure(title, draw), caption)


def _pairs(validation: Sequence[Line]) -> int | None:
    return validation[-1].get("pairs") if validation else None


_FRAMES, _STRIDE = 16, 4  # of a clip; 30ths of a second between them, as the network sees them
_GREY = (128, 132, 138)
_SEAM = 2  # pixels between the frames of a strip


@dataclass(frozen=True)
class RetrievedClip:
    """A clip that a query found.

    Attributes:
        caption: the text that belongs to it.
        score: cosine of query and clip, -1 to 1.
        right: whether it is what was asked for; ``None`` if nobody knows.
        place: its rank, from 1; 0 if it is that among the clips shown.
    """

    clip: Clip
    caption: str
    score: float
    right: bool | None = None
    place: int = 0


@dataclass(frozen=True)
class SheetTile:
    """A found clip with its pixels.

    Attributes:
        frames: (T, H, W, 3) uint8, 16 of the clip's middle, 4/30 s apart; one grey frame if the
            video is broken.
        error: what is wrong with the video, or empty.
    """

    found: RetrievedClip
    frames: np.ndarray
    error: str = ""

    def strip(self, count: int = 4) -> Image.Image:
        """``count`` frames, spread from the first to the last, side by side."""
        places = np.linspace(0, len(self.frames) - 1, count).round().astype(int)
        _, height, width, _ = self.frames.shape
        strip = Image.new("RGB", (count * (width + _SEAM) - _SEAM, height), "white")
        for i, place in enumerate(places):
            strip.paste(Image.fromarray(self.frames[place]), (i * (width + _SEAM), 0))
        return strip

    def animation(self) -> bytes:
        """The frames at the speed of life, for ever, as an animated WebP."""
        return _webp(self.frames)

    def still(self) -> bytes:
        """The middle frame as a WebP, for print and for those who asked for no motion."""
        return _webp(self.frames[[len(self.frames) // 2]])


@dataclass(frozen=True)
class ContactSheet:
    """A query and the tiles it found, best first; a note is what else is known of them."""

    query: str
    tiles: tuple[SheetTile, ...]
    note: str = ""


def load_contact_sheet(
    query: str, found: Sequence[RetrievedClip], *, short_side: int = 112
) -> ContactSheet:
    """Decode what a query found.

    Args:
        query: the text that was asked for.
        found: best first.
        short_side: of the frames, in pixels.
    """
    return ContactSheet(query, tuple(_tile(each, short_side) for each in found))


def _webp(frames: np.ndarray) -> bytes:
    first, *others = [Image.fromarray(frame) for frame in frames]
    moving = {"append_images": others, "loop": 0, "duration": round(1000 * _STRIDE / REFERENCE_FPS)}
    file = io.BytesIO()
    first.save(file, "WEBP", quality=70, save_all=bool(others), **moving)
    return file.getvalue()


def _tile(found: RetrievedClip, short_side: int) -> SheetTile:
    def scaled(width: int, height: int) -> tuple[int, int]:
        factor = short_side / min(width, height)
        longest = 2 * short_side  # a banner-shaped video must not burst the page
        return min(longest, round(width * factor)), min(longest, round(height * factor))

    try:
        pixels = read_frames(
            found.clip, lambda length: clip_times(0.5, length, _FRAMES, _STRIDE), scaled
        )
    except VideoError as error:
        blank = np.full((1, short_side, short_side * 4 // 3, 3), _GREY, dtype=np.uint8)
        return SheetTile(found, blank, str(error))
    return SheetTile(found, pixels)


def render_page(template: str, **values: Any) -> str:
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
        interval=format_interval,
        plain=escape_markdown,
        ratio=format_ratio,
        format_value=format_value,
        webp=lambda content: f"data:image/webp;base64,{base64.b64encode(content).decode()}",
    )
    return environment.get_template(f"{template}.j2").render(values)


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    summary: str,
    results: Sequence[Result],
    provenance: Provenance,
    curves: Sequence[Curve] = (),
    sheets: Sequence[ContactSheet] = (),
    facts: Sequence[tuple[str, str]] = (),
    recipe: str = "",
) -> None:
    """Write a report in one step.

    Args:
        path: the HTML file.
        title: escape_markdown text, as is every text here.
        summary: a paragraph under the title.
        results: what the table is made of, see `crosspair.reporting.tables.comparison`.
        provenance: where the results come from.
        curves: figures in the order to show them.
        sheets: queries with the clips that they found.
        facts: names and values of what else is to be known: pairs, seconds spent.
        recipe: the recipe's YAML.

    Raises:
        RunError: the file cannot be written, or two results claim the same cell of the table.
    """
    page = render_page(
        "run.html", title=title, summary=summary, rows=comparison(results),
        provenance=provenance, curves=curves, sheets=sheets, facts=facts, recipe=recipe,
    )  # fmt: skip
    write_atomically(Path(path), page)


_INCHES = 8.0
_DPI = 200  # so that text of 10 points is still read where the picture is shown at half its size
_CHARTS = 2.7  # in, height of the upper half
_QUERY = 0.98  # in, height of one query
_BARS = 6  # as many measurements as can be read
_STRIPS = 3


def overview_figure(
    results: Sequence[Result],
    history: History,
    sheets: Sequence[ContactSheet] = (),
) -> bytes:
    """Draw the picture for a README.

    Left: retrieval on validation pairs over epochs. Right: fractions of the trained network, of
    random weights and of chance, the first six of the results. Beneath: a row for each query with
    frames of the first three clips that it finds.

    Args:
        results: see `crosspair.reporting.tables.comparison`; ranks are left out.
        history: of the training.
        sheets: two or three.

    Returns:
        A PNG, 1600 pixels wide, on white, as it must do on light and dark pages alike.
    """
    rows = [row for row in comparison(results) if not row.smaller_is_better][:_BARS]
    heights = [_CHARTS, *[_QUERY] * len(sheets)]
    with styled():
        figure = Figure(figsize=(_INCHES, sum(heights)), dpi=_DPI, facecolor="white")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        _charts(parts[0], rows, history)
        for part, sheet in zip(parts[1:], sheets, strict=True):
            _query(part, sheet)
        return png(figure)


def _charts(figure: SubFigure, rows: Sequence[ComparisonRow], history: History) -> None:
    draw_lines(
        figure.add_axes((0.055, 0.19, 0.36, 0.62)),
        retrieval_series(history.validation, "text_to_video"),
        "text → video, % found (dotted: chance)",
        percent=True,
        stage2=history.stage2_epoch,
    )
    _bars(figure.add_axes((0.69, 0.19, 0.27, 0.62)), rows)


def _bars(axes: Axes, rows: Sequence[ComparisonRow]) -> None:
    thick = 0.27
    for place, (name, colour, values) in enumerate((
        ("trained", SERIES[0], [row.trained for row in rows]),
        ("random weights", "#8fa3b3", [row.random for row in rows]),
        ("chance", FAINT, [row.chance for row in rows]),
    )):  # fmt: skip
        heights = [row + (place - 1) * thick for row in range(len(rows))]
        lengths = [100 * (value or 0.0) for value in values]
        bars = axes.barh(heights, lengths, height=thick * 0.92, color=colour, label=name)
        if name == "trained":
            told = ["" if value is None else f"{100 * value:.0f}" for value in values]
            axes.bar_label(bars, told, padding=3, color=colour, fontsize="small")
    splits = " and ".join(dict.fromkeys(row.split for row in rows))
    axes.set_yticks(range(len(rows)), [_row_name(row, rows) for row in rows], fontsize="small")
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_title(f"on the {splits} split, %", loc="left", fontsize="medium", pad=20)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.4, -0.07), ncols=3, frameon=False, fontsize="small",
        handlelength=0.9, handletextpad=0.4, columnspacing=1.0,
    )  # fmt: skip
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])


def _query(figure: SubFigure, sheet: ContactSheet) -> None:
    figure.text(0.02, 0.93, f"“{drawable(sheet.query)}”", va="top", parse_math=False)
    width, gap = 0.309, 0.0165
    for place, tile in enumerate(sheet.tiles[:_STRIPS]):
        strip = tile.strip()
        height = min(0.66, width * _INCHES / _QUERY * strip.height / strip.width)
        left = 0.02 + place * (width + gap)
        axes = figure.add_axes((left, 0.68 - height, width, height))
        axes.imshow(strip, aspect="auto", interpolation="lanczos")
        axes.set_axis_off()
        if tile.found.right is not None:
            axes.annotate(
                "✓" if tile.found.right else "✗", (1, 1), (-8, -8), xycoords="axes fraction",
                textcoords="offset points", ha="center", va="center", fontsize="small",
                color=SERIES[2] if tile.found.right else SERIES[1],
                bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "none"},
            )  # fmt: skip


def _row_name(row: ComparisonRow, rows: Sequence[ComparisonRow]) -> str:
    """As "kNN, top-1 (visual)", with the feature only where it tells two rows apart."""
    name = f"{row.protocol.removeprefix('retrieval ')}, {row.metric}"
    alike = [each for each in rows if (each.protocol, each.metric) == (row.protocol, row.metric)]
    return f"{name} ({row.feature})" if row.feature and len(alike) > 1 else name
