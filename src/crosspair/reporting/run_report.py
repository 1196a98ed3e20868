"""Report of a training run: history, learning curves, contact sheets, page and overview figure."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from crosspair.config import Clip
from crosspair.errors import RunError, VideoError
from crosspair.evaluation.results import Result
from crosspair.files import read_jsonl, write_atomically
from crosspair.provenance import Provenance
from crosspair.reporting.figures import (
    FAINT,
    SERIES,
    Curve,
    draw_lines,
    encode_png,
    figure_style,
    replace_missing_glyphs,
    svg_figure,
)
from crosspair.reporting.tables import ReportTable, TableCell, compare_with_baselines, format_comparison, render_page
from crosspair.video.decode import REFERENCE_FPS, clip_times, read_frames

Line = dict[str, Any]
_POINTS = 400  # maximum number of points of a line
_POSTERIOR_CAPTION = (
    "Probability that a video and a title are a pair, as defined by the objective (nce: h of "
    "Equation 5; softmax: the class probability). True pairs should rise, noise stay near zero."
)
_FRAMES, _STRIDE = 16, 4  # frames of a clip, and their distance in 1/30 s, as in training
_GREY = (128, 132, 138)
_SEAM = 2  # pixels between the frames of a strip
_WIDTH, _CHARTS, _QUERY = 8.0, 2.7, 0.98  # in: figure width, height of the charts and of a query
_DPI = 200  # text of 10 points stays readable at half the size
_BARS, _STRIPS = 6, 3  # maximum number of measurements, and of clips per query


@dataclass(frozen=True)
class History:
    """Lines of ``metrics.jsonl`` by kind, in the order of steps."""

    train: Sequence[Line] = ()  # means since the previous line: loss, posteriors, speed, …
    validation: Sequence[Line] = ()  # retrieval on the validation pairs
    events: Sequence[Line] = ()  # changes of the training, e.g. the start of stage II

    @property
    def stage2_epoch(self) -> float | None:
        """Epoch at which stage II (training of the language model) begins; None without it."""
        epochs = [line["epoch"] for line in self.events if line.get("event") == "stage II begins"]
        return float(epochs[0]) if epochs else None

    @property
    def validation_pairs(self) -> int | None:
        """Number of validation pairs; None if unknown."""
        return self.validation[-1].get("pairs") if self.validation else None


def read_history(run: str | os.PathLike[str]) -> History:
    """Read the history of a run.

    Incomplete lines of a killed run are skipped. If a step occurs several times because the run
    was resumed, its last line is used.

    Args:
        run: the run folder or its ``metrics.jsonl``.

    Raises:
        RunError: the file does not exist or cannot be read.
    """
    path = Path(run)
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise RunError(f"{path} does not exist. Check that the training has started.")
    latest = {
        (line["kind"], line["step"], line.get("event")): line
        for line in read_jsonl(path)
        if isinstance(line, dict) and {"kind", "step", "epoch"} <= line.keys()
    }
    lines = sorted(latest.values(), key=lambda line: float(line["step"]))
    kinds = ("train", "validation", "event")
    return History(*([line for line in lines if line["kind"] == kind] for kind in kinds))


def learning_curves(history: History) -> list[Curve]:
    """Draw validation recall both ways, loss and posteriors over epochs, a figure each if it has values."""
    pairs = history.validation_pairs
    recall = "Fraction of queries whose match is in the top 1, 5 and 10"
    recall += f" among {pairs:,} validation pairs. Dotted: chance." if pairs else "."
    loss = [smooth_series("", history.train, "loss")]
    posteriors = [
        smooth_series("true pairs", history.train, "posterior_positive"),
        smooth_series("noise", history.train, "posterior_noise"),
    ]
    retrieval = [
        (f"Retrieval, {way}", *retrieval_series(history, way.replace(" → ", "_to_")), "recall, %", recall)
        for way in ("text → video", "video → text")
    ]
    averaged = "Training loss, averaged over neighbouring log lines."
    curves = []
    for title, lines, levels, ylabel, caption in [
        *retrieval,
        ("Loss", loss, [], "loss, both directions", averaged),
        ("Posterior of being a pair", posteriors, [], "posterior, %", _POSTERIOR_CAPTION),
    ]:
        if lines and all(map(len, lines)):
            draw = partial(
                draw_lines, lines=lines, levels=levels, ylabel=ylabel, percent="%" in ylabel,
                stage2=history.stage2_epoch,
            )  # fmt: skip
            curves.append(Curve(title, svg_figure(title, draw), caption))
    return curves


def retrieval_series(history: History, direction: str) -> tuple[list[pd.Series], list[float]]:
    """Return R@1, R@5 and R@10 over epochs, and their values by chance if known.

    Args:
        history: of the training.
        direction: "text_to_video" or "video_to_text".
    """
    pairs = history.validation_pairs
    lines = {k: finite_values(history.validation, f"{direction}_R@{k}") for k in (1, 5, 10)}
    lines = {k: line.rename(f"R@{k}") for k, line in lines.items() if len(line)}
    return list(lines.values()), [min(1.0, k / pairs) for k in lines] if pairs else []


def smooth_series(name: str, lines: Sequence[Line], key: str) -> pd.Series:
    """Average a quantity by epoch over windows of 1/50 of the history, thinned to fewer than 800 points."""
    values = finite_values(lines, key).rename(name)
    smooth = values.rolling(2 * (len(values) // 100) + 1, center=True, min_periods=1).mean()
    points = np.arange(len(values))
    return smooth[(points % max(1, len(values) // _POINTS) == 0) | (points == len(values) - 1)]


def finite_values(lines: Sequence[Line], key: str) -> pd.Series:
    """Return a quantity by epoch; lines without a finite value are skipped."""
    epochs = [float(line["epoch"]) for line in lines]
    values = pd.Series([line.get(key) for line in lines], index=epochs, dtype=float)
    return values[np.isfinite(values)]


@dataclass(frozen=True)
class RetrievedClip:
    """A clip retrieved by a query."""

    clip: Clip
    caption: str  # the clip's own text
    score: float  # cosine similarity of query and clip, -1 to 1
    correct: bool | None = None  # whether it is a correct result; None if unknown
    rank: int = 0  # from 1; 0 for the rank among the clips shown


@dataclass(frozen=True)
class SheetTile:
    """A retrieved clip with its pixels: 16 frames of its middle, 4/30 s apart.

    An unreadable video has one grey frame.
    """

    retrieved: RetrievedClip
    frames: np.ndarray  # (T, H, W, 3) uint8
    error: str = ""  # why the video is unreadable

    def strip(self, count: int = 4) -> Image.Image:
        """Return an image of ``count`` evenly spaced frames side by side, with white seams."""
        indices = np.linspace(0, len(self.frames) - 1, count).round().astype(int)
        padded = np.pad(self.frames[indices], ((0, 0), (0, 0), (0, _SEAM), (0, 0)), constant_values=255)
        return Image.fromarray(np.concatenate(list(padded), axis=1)[:, :-_SEAM])

    def animation(self) -> bytes:
        """Encode the frames as a looping WebP animation at normal speed."""
        return _encode_webp(self.frames)

    def still(self) -> bytes:
        """Encode the middle frame as WebP, for print and for readers who prefer no motion."""
        return _encode_webp(self.frames[[len(self.frames) // 2]])


@dataclass(frozen=True)
class ContactSheet:
    """A query and its retrieved clips, best first, with an optional note."""

    query: str
    tiles: tuple[SheetTile, ...]
    note: str = ""


def load_contact_sheet(query: str, retrieved: Sequence[RetrievedClip], *, short_side: int = 112) -> ContactSheet:
    """Decode the clips retrieved by a query.

    Args:
        query: the text query.
        retrieved: clips, best first.
        short_side: of the frames, in pixels.
    """
    return ContactSheet(query, tuple(_load_tile(each, short_side) for each in retrieved))


def _load_tile(retrieved: RetrievedClip, short_side: int) -> SheetTile:
    """Decode and scale 16 frames of a clip's middle; if it is unreadable, one grey frame and the error."""

    def scale(width: int, height: int) -> tuple[int, int]:
        factor = short_side / min(width, height)
        longest = 2 * short_side  # limits the size of very wide videos
        return min(longest, round(width * factor)), min(longest, round(height * factor))

    def times(length: float) -> Any:
        return clip_times(0.5, length, _FRAMES, _STRIDE)

    try:
        return SheetTile(retrieved, read_frames(retrieved.clip, times, scale))
    except VideoError as error:
        blank = np.full((1, short_side, short_side * 4 // 3, 3), _GREY, dtype=np.uint8)
        return SheetTile(retrieved, blank, str(error))


def _encode_webp(frames: np.ndarray) -> bytes:
    first, *others = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    first.save(
        file, "WEBP", quality=70, save_all=bool(others), append_images=others, loop=0,
        duration=round(1000 * _STRIDE / REFERENCE_FPS),
    )  # fmt: skip
    return file.getvalue()


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
    """Write the HTML report of a run.

    Args:
        path: of the HTML file.
        title: plain text, as all other texts.
        summary: paragraph below the title.
        results: of the table, see `crosspair.reporting.tables.compare_with_baselines`.
        provenance: of the results.
        curves: figures, in order.
        sheets: queries with their retrieved clips.
        facts: names and values of other figures, e.g. the number of pairs.
        recipe: the recipe as YAML.

    Raises:
        RunError: the file cannot be written, or two results belong to the same cell.
    """
    page = render_page(
        "run.html", title=title, summary=summary, table=_results_table(results),
        provenance=provenance, curves=curves, sheets=sheets, facts=facts, recipe=recipe,
    )  # fmt: skip
    write_atomically(Path(path), page)


def _results_table(results: Sequence[Result]) -> ReportTable:
    """Build the table of results beside chance and random weights, with the ratios of trained to both."""
    head = [
        TableCell("protocol"), TableCell("chance"), TableCell("random", "weights"), TableCell("trained"),
        TableCell("×", "chance"), TableCell("×", "random"),
    ]  # fmt: skip
    rows = []
    for row in compare_with_baselines(results).itertuples():
        chance, random, trained, interval, *ratios = format_comparison(row)
        split = row.split if row.count is None else f"{row.count:,} of {row.split}"
        detail = "; ".join(filter(None, (row.feature, split, row.settings, row.over)))
        numbers = [TableCell(chance), TableCell(random), TableCell(trained, interval, style="main")]
        rows.append([TableCell(row.column.title, detail), *numbers, *map(TableCell, ratios)])
    return ReportTable("results", "Results", head, rows)


def overview_figure(results: Sequence[Result], history: History, sheets: Sequence[ContactSheet] = ()) -> bytes:
    """Draw the overview of a run for a README.

    Left: retrieval on validation pairs over epochs. Right: the first six accuracies of the trained
    network, random weights and chance. Below: for each query, frames of its first three clips.

    Args:
        results: see `crosspair.reporting.tables.compare_with_baselines`; ranks are skipped.
        history: of the training.
        sheets: two or three queries.

    Returns:
        A PNG, 1600 pixels wide, on white.
    """
    frame = compare_with_baselines(results)
    frame = frame[[not column.is_rank for column in frame.column]][:_BARS]
    heights = [_CHARTS, *[_QUERY] * len(sheets)]
    lines, levels = retrieval_series(history, "text_to_video")
    with figure_style():
        figure = Figure(figsize=(_WIDTH, sum(heights)), dpi=_DPI, facecolor="white")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
        charts, *queries = parts[:, 0]
        draw_lines(
            charts.add_axes((0.055, 0.19, 0.36, 0.62)), lines,
            "text → video recall, % (dotted: chance)", levels=levels, percent=True,
            stage2=history.stage2_epoch,
        )  # fmt: skip
        _draw_bars(charts.add_axes((0.69, 0.19, 0.27, 0.62)), frame)
        for subfigure, sheet in zip(queries, sheets, strict=True):
            _draw_query(subfigure, sheet)
        return encode_png(figure)


def _draw_bars(axes: Axes, frame: pd.DataFrame) -> None:
    subjects = {"trained": SERIES[0], "random": "#8fa3b3", "chance": FAINT}
    for offset, (subject, colour) in enumerate(subjects.items()):
        values = 100 * frame[subject].astype(float)
        name = "random weights" if subject == "random" else subject
        heights = np.arange(len(frame)) + 0.27 * (offset - 1)
        bars = axes.barh(heights, values.fillna(0), height=0.25, color=colour, label=name)
        if subject == "trained":
            labels = ["" if np.isnan(value) else f"{value:.0f}" for value in values]
            axes.bar_label(bars, labels, padding=3, color=colour, fontsize="small")
    # The feature is named only where the same quantity has several.
    ambiguous = frame.duplicated(["protocol", "metric"], keep=False) & (frame.feature != "")
    titles = frame.protocol.str.removeprefix("retrieval ") + ", " + frame.metric
    titles = titles.where(~ambiguous, titles + " (" + frame.feature + ")")
    axes.set_yticks(range(len(frame)), titles, fontsize="small")
    axes.invert_yaxis()
    axes.grid(visible=False)
    splits = " and ".join(frame.split.unique())
    axes.set_title(f"{splits} split, %", loc="left", fontsize="medium", pad=20)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.4, -0.07), ncols=3, frameon=False, fontsize="small",
        handlelength=0.9, handletextpad=0.4, columnspacing=1.0,
    )  # fmt: skip
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])


def _draw_query(figure: SubFigure, sheet: ContactSheet) -> None:
    figure.text(0.02, 0.93, f"“{replace_missing_glyphs(sheet.query)}”", va="top", parse_math=False)
    width, gap = 0.309, 0.0165
    for index, tile in enumerate(sheet.tiles[:_STRIPS]):
        strip = tile.strip()
        height = min(0.66, width * _WIDTH / _QUERY * strip.height / strip.width)
        axes = figure.add_axes((0.02 + index * (width + gap), 0.68 - height, width, height))
        axes.imshow(strip, aspect="auto", interpolation="lanczos")
        axes.set_axis_off()
        if tile.retrieved.correct is not None:
            sign, colour = ("✓", SERIES[2]) if tile.retrieved.correct else ("✗", SERIES[1])
            axes.annotate(
                sign, (1, 1), (-8, -8), xycoords="axes fraction", textcoords="offset points",
                ha="center", va="center", fontsize="small", color=colour,
                bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "none"},
            )  # fmt: skip
