"""One picture of a whole run: how it learnt, what it gained, what it finds."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from crosspair.evaluation.results import Result
from crosspair.reporting.curves import retrieval_series
from crosspair.reporting.figures import FAINT, SERIES, draw_lines, drawable, png, styled
from crosspair.reporting.history import History
from crosspair.reporting.sheets import Sheet
from crosspair.reporting.table import Row, comparison

_INCHES = 8.0
_DPI = 200  # so that text of 10 points is still read where the picture is shown at half its size
_CHARTS = 2.7  # in, height of the upper half
_QUERY = 0.98  # in, height of one query
_BARS = 6  # as many measurements as can be read
_STRIPS = 3


def overview_figure(
    results: Sequence[Result],
    history: History,
    sheets: Sequence[Sheet] = (),
) -> bytes:
    """Draw the picture for a README.

    Left: retrieval on validation pairs over epochs. Right: fractions of the trained network, of
    random weights and of chance, the first six of the results. Beneath: a row for each query with
    frames of the first three clips that it finds.

    Args:
        results: see `crosspair.reporting.table.comparison`; ranks are left out.
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


def _charts(figure: SubFigure, rows: Sequence[Row], history: History) -> None:
    draw_lines(
        figure.add_axes((0.055, 0.19, 0.36, 0.62)),
        retrieval_series(history.validation, "text_to_video"),
        "text → video, % found (dotted: chance)",
        percent=True,
        stage2=history.stage2_epoch,
    )
    _bars(figure.add_axes((0.69, 0.19, 0.27, 0.62)), rows)


def _bars(axes: Axes, rows: Sequence[Row]) -> None:
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


def _query(figure: SubFigure, sheet: Sheet) -> None:
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


def _row_name(row: Row, rows: Sequence[Row]) -> str:
    """As "kNN, top-1 (visual)", with the feature only where it tells two rows apart."""
    name = f"{row.protocol.removeprefix('retrieval ')}, {row.metric}"
    alike = [each for each in rows if (each.protocol, each.metric) == (row.protocol, row.metric)]
    return f"{name} ({row.feature})" if row.feature and len(alike) > 1 else name
