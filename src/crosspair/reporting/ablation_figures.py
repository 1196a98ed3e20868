"""Figures of an ablation: how every cell learnt, and what a numeric axis does."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crosspair.reporting.ablation_cells import Ablation, Cell
from crosspair.reporting.ablation_tables import AblationTable, headlines
from crosspair.reporting.curves import Curve, smoothed
from crosspair.reporting.figures import INK, SERIES, STYLES, name_ends, styled, svg
from crosspair.reporting.history import series

_PANEL = (3.3, 2.1)  # in; at 72 points an inch as wide as a card of the page's narrowest column
_CHART = (5.0, 3.1)
_FEWEST = 3  # values of an axis that make a chart

Line = tuple[Sequence[float], Sequence[float]]  # thousands of clips, values


def validation_panels(ablation: Ablation) -> list[Curve]:
    """Retrieval on the validation pairs against clips seen, a panel a row."""
    lines = _lines(ablation, _validation)
    means = {name: _mean(own) for name, own in lines.items()}
    top = max((y for own in lines.values() for _, ys in own for y in ys), default=0.0)
    return [
        _panel("Validation", name, own, others=list(means.values()), ylabel="R@10, %", top=top)
        for name, own in lines.items()
    ]


def loss_panels(ablation: Ablation) -> list[Curve]:
    """The training loss against clips seen, a panel a row: those of two objectives do not compare."""
    lines = _lines(ablation, _loss)
    return [_panel("Loss", name, own, ylabel="loss") for name, own in lines.items()]


def dial_charts(ablation: Ablation, tables: Sequence[AblationTable]) -> list[Curve]:
    """For a numeric axis a chart a protocol: a line for each of the other axes' values.

    Returns:
        None where no axis has three numeric values, or more lines than can be told apart.
    """
    values = {
        axis: list(dict.fromkeys(c.row[axis] for c in ablation.cells)) for axis in ablation.axes
    }
    dials = [a for a, own in values.items() if len(own) >= _FEWEST and all(map(_is_number, own))]
    if not dials:
        return []
    dial = dials[0]
    places: dict[str, list[tuple[float, str]]] = {}
    for name, cells in ablation.rows.items():
        row = cells[0].row
        line = " / ".join(value for axis, value in row.items() if axis != dial)
        places.setdefault(line, []).append((float(row[dial]), name))
    if len(places) > len(SERIES):
        return []
    charts = []
    for column in headlines(tables):
        (table,) = [each for each in tables if column in each.columns]
        entries = {row.name: row.entries.get(column) for row in table.rows}
        lines: dict[str, list[tuple[float, float, float]]] = {}
        for line, own in places.items():
            means = [(x, e.mean) for x, name in sorted(own) if (e := entries[name]) is not None]
            if means:
                lines[line] = [(x, 100 * m.value, 100 * (m.deviation or 0)) for x, m in means]
        caption = f"{column.detail}. Mean and standard deviation over seeds."
        charts.append(Curve(column.title, _chart(column.title, dial, lines), caption))
    return charts


def _chart(title: str, dial: str, lines: Mapping[str, Sequence[tuple[float, float, float]]]) -> str:
    with styled():
        figure = Figure(figsize=_CHART, layout="constrained")
        axes = figure.subplots()
        marks = sorted({x for line in lines.values() for x, _, _ in line})
        wide = marks[0] > 0 and marks[-1] / marks[0] >= 8
        ends = []
        for number, (name, points) in enumerate(lines.items()):
            # Bars of several lines at one place would hide one another.
            aside = (number - (len(lines) - 1) / 2) * 0.012
            span = marks[-1] - marks[0]
            x = [m * (1 + 4 * aside) if wide else m + aside * span for m, _, _ in points]
            colour = SERIES[number]
            axes.errorbar(
                x, [y for _, y, _ in points], [s for _, _, s in points], color=colour,
                linestyle=STYLES[number], linewidth=1.6, marker="o", markersize=3.5, capsize=2.5,
            )  # fmt: skip
            ends.append((points[-1][1], name, colour))
        if wide:
            axes.set_xscale("log")
        axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
        axes.minorticks_off()
        axes.set_xlabel(dial)
        axes.set_ylim(bottom=0)
        axes.set_title("%", loc="left", fontsize="medium")
        name_ends(axes, ends if len(ends) > 1 else [])
        return svg(figure, f"{title} by {dial}")


def _panel(
    kind: str,
    row: str,
    lines: Sequence[Line],
    *,
    ylabel: str,
    others: Sequence[Line] = (),
    top: float | None = None,
) -> Curve:
    with styled():
        figure = Figure(figsize=_PANEL, layout="constrained")
        axes = figure.subplots()
        for x, y in others:
            axes.plot(x, y, color=INK, linewidth=0.7, alpha=0.4)
        for x, y in lines:
            axes.plot(x, y, color=SERIES[0], linewidth=0.7, alpha=0.8)
        axes.plot(*_mean(lines), color=SERIES[0], linewidth=2.2)
        _finish(axes, ylabel, top)
        seeds = f"{len(lines)} seeds" if len(lines) > 1 else "1 seed"
        return Curve(row, svg(figure, f"{kind} of {row}"), seeds)


def _finish(axes: Axes, ylabel: str, top: float | None) -> None:
    axes.margins(x=0)
    if top is not None:
        axes.set_ylim(0, 1.05 * top or 1)
    axes.set_xlabel("thousand clips seen", fontsize="small")
    axes.set_title(ylabel, loc="left", fontsize="small")
    axes.tick_params(labelsize="small")


def _lines(ablation: Ablation, read: Callable[[Cell], Line]) -> dict[str, list[Line]]:
    """Of every row that has begun; what failed in the middle is drawn as far as it came."""
    lines = {
        name: [line for cell in cells if (line := read(cell))[0]]
        for name, cells in ablation.rows.items()
    }
    return {name: own for name, own in lines.items() if own}


def _validation(cell: Cell) -> Line:
    epochs, values = series(cell.history.validation, "text_to_video_R@10")
    return _clips(cell, epochs), [100 * value for value in values]


def _loss(cell: Cell) -> Line:
    line = smoothed("", cell.history.train, "loss")
    return _clips(cell, line.x), line.y


def _clips(cell: Cell, epochs: Sequence[float]) -> list[float]:
    """Thousands of clips seen after so many epochs."""
    last = cell.history.train[-1] if cell.history.train else {}
    if not last.get("pairs") or not last["epoch"]:
        return []
    return [epoch * last["pairs"] / last["epoch"] / 1000 for epoch in epochs]


def _mean(lines: Sequence[Line]) -> Line:
    """Where all lines have a value."""
    found = [dict(zip(x, y, strict=True)) for x, y in lines]
    shared = [x for x in found[0] if all(x in each for each in found)]
    return shared, [statistics.fmean(each[x] for each in found) for x in shared]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
