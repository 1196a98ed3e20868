"""Figures that take on the colours of the page they stand in, light or dark.

Matplotlib writes fixed colours into an SVG. Here each colour is drawn as a stand-in that is then
replaced by a CSS variable of the page, with the light theme's colour as its fallback.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font

from crosspair.evaluation.results import Result
from crosspair.files import write_atomically
from crosspair.reporting.tables import format_csv

# Told apart with any colour vision (Okabe and Ito, 2008). Line styles differ too.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#5a6470")
STYLES = ("-", "--", "-.", (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (3, 3)))
INK = "#444c56"
FAINT = "#d0d7de"
VARIABLES = {
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)},
    INK: "--ink",
    FAINT: "--faint",
}
CHART = (5.0, 3.1)  # in; at 72 points an inch as wide as a phone, so that text keeps its size there
_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, sharp, and in the page's font
    "font.size": 10.5,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "ytick.left": False,
}


@dataclass(frozen=True)
class Series:
    """One line of a figure.

    Attributes:
        name: written at the line's end.
        x, y: epochs, ascending, and values.
        level: a value to draw as a thin dotted line for comparison, as that of guessing.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    level: float | None = None


def draw_lines(
    axes: Axes,
    lines: Sequence[Series],
    ylabel: str,
    *,
    percent: bool = False,
    stage2: float | None = None,
) -> None:
    """Draw series over epochs, each named at its end.

    Args:
        axes: what to draw on.
        lines: up to six.
        ylabel: what the values are, with their unit; written above the axis.
        percent: whether values are fractions to be shown in %, from 0.
        stage2: the epoch at which stage II begins, to be marked.
    """
    factor = 100.0 if percent else 1.0
    for line, colour, style in zip(lines, SERIES, STYLES, strict=False):
        values = [factor * y for y in line.y]
        dot = "o" if len(values) < 3 else ""
        axes.plot(
            line.x, values, color=colour, linestyle=style, linewidth=1.8, marker=dot, markersize=3
        )
        if line.level is not None:
            axes.axhline(factor * line.level, color=colour, linestyle=":", linewidth=1)
    axes.margins(x=0)
    if percent:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_title(ylabel, loc="left", fontsize="medium", pad=20 if stage2 is not None else 6)
    if stage2 is not None:
        axes.axvline(stage2, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            "stage II", (stage2, 1), (0, 3), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="center", fontsize="small",
        )  # fmt: skip
    ends = zip(lines, SERIES, strict=False)
    name_ends(axes, [(factor * line.y[-1], line.name, colour) for line, colour in ends if line.y])


def svg_figure(name: str, draw: Callable[[Axes], None], size: tuple[float, float] = CHART) -> str:
    """A figure as one SVG element without a header, in the page's colours and with its own ids.

    Args:
        name: unique within the page; also the description read to those who cannot see.
        draw: draws on the figure's only axes.
        size: in inches, of which a page makes 72 points at its narrowest.
    """
    file = io.StringIO()
    with styled(), mpl.rc_context({"svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    slug = re.sub(r"\W+", "-", name).lower()
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{slug}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable}, {colour})")
    text = re.sub(r'(?<= )(width|height)="[^"]*"', "", text, count=2)  # of the <svg> itself
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1).strip()


def png_figure(draw: Callable[[Axes], None], size: tuple[float, float], dpi: int = 200) -> bytes:
    """A figure as a PNG on white; see `svg_figure`."""
    with styled():
        figure = Figure(figsize=size, dpi=dpi, facecolor="white", layout="constrained")
        draw(figure.subplots())
        return png(figure)


def name_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write names to the right of the axes, apart from one another.

    Args:
        axes: with its limits as they will be.
        ends: where each line ends, its name and its colour.
    """
    low, high = axes.get_ylim()
    room = (high - low) * 0.085  # a line of text
    place = -float("inf")
    for value, name, colour in sorted(ends):
        place = max(value, place + room)
        axes.annotate(
            name, (1, place), (5, 0), xycoords=("axes fraction", "data"), parse_math=False,
            textcoords="offset points", va="center", color=colour, annotation_clip=False,
        )  # fmt: skip


def name_rows(axes: Axes, names: Sequence[str], places: Sequence[float] | None = None) -> None:
    """Write names beside rows, from top to bottom, at 0, 1, … if no places are given."""
    axes.set_yticks(range(len(names)) if places is None else places, names, parse_math=False)
    axes.invert_yaxis()
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")


def styled() -> AbstractContextManager[None]:
    """The look of all figures, for as long as the context lasts."""
    return mpl.rc_context(_STYLE)


def shortened(text: str, most: int) -> str:
    """So many letters at most, so that a name leaves room for what it names.

    >>> shortened("a long name", 6)
    'a lon…'
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def drawable(text: str) -> str:
    """The text with "[?]" for letters that Matplotlib's own font lacks, as emoji.

    >>> drawable("a dog 🐕 runs")
    'a dog [?] runs'
    """
    known = FT2Font(findfont("DejaVu Sans")).get_charmap()
    return "".join(char if ord(char) in known else "[?]" for char in text)


def png(figure: Figure) -> bytes:
    """A figure as a PNG, at its own size and resolution."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


_NAMED = 60  # classes whose names can be read in a picture
_DPI = 150


def write_details(folder: Path, results: Sequence[Result]) -> list[Path]:
    """Write what a trained model's accuracies are made of.

    For each, three files named after protocol and feature: ``….classes.csv``, with the columns
    class, accuracy and videos, as ``crosspair words --accuracy`` reads it; ``….confusion.csv``,
    with the columns class, predicted and videos; and ``….confusion.png``.

    Args:
        folder: to write to.
        results: those without details by class are passed over.

    Raises:
        RunError: the files cannot be written.
    """
    files = []
    for result in results:
        if "confusion" not in result.details:
            continue
        name = "-".join(f"{result.protocol} {result.feature}".replace("%", "percent").split())
        confusion: dict[str, dict[str, int]] = result.details["confusion"]
        per_class = [
            (label, f"{accuracy:.6f}", sum(confusion[label].values()))
            for label, accuracy in result.details["per_class"].items()
        ]
        pairs = [(of, given, n) for of, row in confusion.items() for given, n in row.items()]
        for suffix, content in (
            ("classes.csv", format_csv(("class", "accuracy", "videos"), per_class)),
            ("confusion.csv", format_csv(("class", "predicted", "videos"), pairs)),
            ("confusion.png", confusion_figure(confusion, f"{result.protocol}, {result.feature}")),
        ):
            files.append(folder / f"{name}.{suffix}")
            write_atomically(files[-1], content)
    return files


def confusion_figure(confusion: dict[str, dict[str, int]], title: str) -> bytes:
    """Draw each class's share of predictions, from white (none) to blue (all).

    Args:
        confusion: class to predicted classes, each with how many videos were given it.
        title: above the picture, a PNG on white.
    """
    classes = sorted({*confusion, *(given for row in confusion.values() for given in row)})
    shares = [
        [row.get(given, 0) / max(1, sum(row.values())) for given in classes]
        for row in (confusion.get(of, {}) for of in classes)
    ]
    names = classes if len(classes) <= _NAMED else []
    side = max(4.0, 0.22 * len(classes)) + 1.5 if names else 9.0  # in

    def draw(axes: Axes) -> None:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.grid(visible=False)
        axes.set(xlabel="predicted", ylabel="true")
        axes.set_title(f"{title}: share of each class's videos", loc="left", color=INK)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize="small", parse_math=False)
        axes.set_yticks(range(len(names)), names, fontsize="small", parse_math=False)

    return png_figure(draw, (side, side), _DPI)
