"""Figures in the colours of the page (Matplotlib's become CSS variables), and files of per-class accuracies."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font

from crosspair.evaluation.results import Result
from crosspair.files import check_output, write_atomically
from crosspair.reporting.tables import format_csv

# Distinguishable with any colour vision (Okabe and Ito, 2008). Line styles differ too.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#5a6470")
STYLES = ("-", "--", "-.", (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (3, 3)))
INK = "#444c56"
FAINT = "#d0d7de"
VARIABLES = {
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)},
    INK: "--ink",
    FAINT: "--faint",
}
CHART = (5.0, 3.1)  # in; the page's narrowest column is as wide at 72 points per inch
_STYLE = {
    "svg.fonttype": "none",  # text is kept as text: small, sharp, and in the page's font
    "font.size": 10.5, "font.family": "sans-serif",
    "axes.spines.top": False, "axes.spines.right": False, "ytick.left": False,
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.linewidth": 0.6,
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), FAINT),
    **dict.fromkeys(("axes.labelcolor", "text.color", "xtick.labelcolor", "ytick.labelcolor"), INK),
}  # fmt: skip
_LABELLED = 60  # maximum number of classes with readable labels


@dataclass(frozen=True)
class Curve:
    """A figure of a report: heading, SVG element and caption."""

    title: str
    svg: str
    caption: str


def draw_lines(
    axes: Axes, lines: Sequence[pd.Series], ylabel: str, *,
    levels: Sequence[float] = (), percent: bool = False, stage2: float | None = None,
) -> None:  # fmt: skip
    """Draw lines over epochs, each labelled at its end.

    Args:
        axes: to draw on.
        lines: up to six named series, indexed by epoch.
        ylabel: quantity and unit, written above the axis.
        levels: values for comparison, e.g. chance, drawn as thin dotted lines.
        percent: whether values are fractions to be shown in %, from 0.
        stage2: epoch at which stage II begins, marked by a vertical line.
    """
    factor = 100.0 if percent else 1.0
    for line, colour, style in zip(lines, SERIES, STYLES, strict=False):
        dot = "o" if len(line) < 3 else ""
        axes.plot(factor * line, color=colour, linestyle=style, linewidth=1.8, marker=dot, markersize=3)
    for level, colour in zip(levels, SERIES, strict=False):
        axes.axhline(factor * level, color=colour, linestyle=":", linewidth=1)
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
    label_line_ends(axes, [(factor * line.iloc[-1], line.name, colour) for line, colour in ends])


def svg_figure(name: str, draw: Callable[[Axes], None], size: tuple[float, float] = CHART) -> str:
    """Draw a figure as an inline SVG element in the page's colours.

    Args:
        name: unique within the page; accessible description and prefix of ids.
        draw: draws on the figure's only axes.
        size: in inches of 72 points.
    """
    file = io.StringIO()
    with figure_style(), mpl.rc_context({"svg.hashsalt": name}):
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
    text = re.sub(r'(?<= )(width|height)="[^"]*"', "", text, count=2)  # of the <svg> element
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1).strip()


def png_figure(draw: Callable[[Axes], None], size: tuple[float, float], dpi: int = 200) -> bytes:
    """Draw a figure as a PNG on white; see `svg_figure`."""
    with figure_style():
        figure = Figure(figsize=size, dpi=dpi, facecolor="white", layout="constrained")
        draw(figure.subplots())
        return encode_png(figure)


def label_line_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write labels, given with the last value and colour of each line, to the right of the axes without overlap."""
    low, high = axes.get_ylim()
    line_height = (high - low) * 0.085
    y = -float("inf")
    for value, name, colour in sorted(ends):
        y = max(value, y + line_height)
        axes.annotate(
            name, (1, y), (5, 0), xycoords=("axes fraction", "data"), parse_math=False,
            textcoords="offset points", va="center", color=colour, annotation_clip=False,
        )  # fmt: skip


def label_rows(axes: Axes, names: Sequence[str], positions: Sequence[float] | None = None) -> None:
    """Label rows from top to bottom, by default at positions 0, 1, …"""
    axes.set_yticks(range(len(names)) if positions is None else positions, names, parse_math=False)
    axes.invert_yaxis()
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")


def figure_style() -> AbstractContextManager[None]:
    """Return a context with the Matplotlib style of all figures."""
    return mpl.rc_context(_STYLE)


def truncate(text: str, length: int) -> str:
    """Shorten a text to a number of characters.

    >>> truncate("a long name", 6)
    'a lon…'
    """
    return text if len(text) <= length else text[: length - 1] + "…"


def replace_missing_glyphs(text: str) -> str:
    """Replace characters that Matplotlib's default font lacks, e.g. emoji, by "[?]"."""
    glyphs = FT2Font(findfont("DejaVu Sans")).get_charmap()
    return "".join(char if ord(char) in glyphs else "[?]" for char in text)


def encode_png(figure: Figure) -> bytes:
    """Encode a figure as PNG, at its own size and resolution."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def check_details(folder: Path) -> None:
    """Raise RunError if a folder has files with names of `write_details` that it did not write."""
    for name in {path.name.rsplit(".", 2)[0] for path in folder.glob("*.c*.[cp][sn][vg]")}:
        others = (f"{name}.confusion.csv", f"{name}.confusion.png")
        check_output(folder / f"{name}.classes.csv", "accuracies of classes", *others)


def write_details(folder: Path, results: Sequence[Result]) -> list[Path]:
    """Write per-class accuracies and confusion matrices, and return the paths of the files.

    Each result with such details gets three files named after protocol and feature:
    ``….classes.csv`` (class, accuracy, videos), ``….confusion.csv`` (class, predicted, videos) and
    ``….confusion.png``.

    Raises:
        RunError: a file cannot be written.
    """
    files = []
    for result in (each for each in results if "confusion" in each.details):
        name = "-".join(f"{result.protocol} {result.feature}".replace("%", "percent").split())
        confusion: dict[str, dict[str, int]] = result.details["confusion"]
        counts = [(c, p, count) for c, row in confusion.items() for p, count in row.items()]
        frame = pd.DataFrame(counts, columns=["class", "predicted", "videos"])
        classes = pd.DataFrame(result.details["per_class"].items(), columns=["class", "accuracy"])
        classes["accuracy"] = classes.accuracy.map("{:.6f}".format)
        classes["videos"] = classes["class"].map(frame.groupby("class").videos.sum())
        contents: dict[str, str | bytes] = {
            "classes.csv": format_csv(classes),
            "confusion.csv": format_csv(frame),
            "confusion.png": confusion_figure(confusion, f"{result.protocol}, {result.feature}"),
        }
        for suffix, content in contents.items():
            files.append(folder / f"{name}.{suffix}")
            write_atomically(files[-1], content)
    return files


def confusion_figure(confusion: dict[str, dict[str, int]], title: str) -> bytes:
    """Draw a confusion matrix (counts by class and predicted class), normalised by class, as a PNG."""
    classes = sorted({*confusion, *(label for row in confusion.values() for label in row)})
    counts = pd.DataFrame.from_dict(confusion, orient="index")
    counts = counts.reindex(index=classes, columns=classes).fillna(0)
    fractions = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    names = classes if len(classes) <= _LABELLED else []
    side = max(4.0, 0.22 * len(classes)) + 1.5 if names else 9.0  # in

    def draw(axes: Axes) -> None:
        axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.grid(visible=False)
        axes.set(xlabel="predicted", ylabel="true")
        axes.set_title(f"{title}: fraction of the videos of each class", loc="left", color=INK)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize="small", parse_math=False)
        axes.set_yticks(range(len(names)), names, fontsize="small", parse_math=False)

    return png_figure(draw, (side, side), dpi=150)
