"""Figures of an ablation: how every cell learnt, and what a numeric axis does."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crosspair.reporting.ablation_cells import DONE, Ablation, Cell
from crosspair.reporting.ablation_tables import AblationTable, TableRow, headlines
from crosspair.reporting.curves import Curve, smoothed
from crosspair.reporting.figures import INK, SERIES, STYLES, name_ends, shortened, styled, svg
from crosspair.reporting.history import series
from crosspair.reporting.summary import Column

_PANEL = (3.3, 2.1)  # in; at 72 points an inch as wide as a card of the page's narrowest column
_CHART = (5.0, 3.1)
_NAME = 28  # letters
_FEWEST = 3  # values of an axis that make a chart

Line = tuple[Sequence[float], Sequence[float]]  # thousands of clips, values
Lines = dict[str, list[tuple[Line, bool]]]  # by row: each seed's line, and whether its cell is done


def validation_panels(ablation: Ablation) -> list[Curve]:
    """Retrieval on the validation pairs against clips seen, a panel a row."""
    lines = _lines(ablation, _validation)
    means = {name: _mean(own) for name, own in lines.items()}
    top = max((y for own in lines.values() for (_, ys), _ in own for y in ys), default=0.0)
    return [
        _panel("Validation", name, own, others=list(means.values()), ylabel="R@10, %", top=top)
        for name, own in lines.items()
    ]


def loss_panels(ablation: Ablation) -> list[Curve]:
    """The training loss against clips seen, a panel a row, each with its own scale."""
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
    for table, column in headlines(tables):
        entries = {row.name: row.entries.get(column) for row in table.rows}
        lines: dict[str, list[tuple[float, float, float]]] = {}
        for line, own in places.items():
            means = [(x, e.mean) for x, name in sorted(own) if (e := entries[name]) is not None]
            if means:
                lines[line] = [(x, 100 * m.value, 100 * (m.deviation or 0)) for x, m in means]
        caption = f"{column.detail}. Mean and standard deviation over seeds."
        chance = entries.get("chance")
        level = None if chance is None else 100 * chance.mean.value
        caption += "" if level is None else " Dotted: chance."
        charts.append(Curve(column.title, _chart(column.title, dial, lines, level), caption))
    return charts


def dot_charts(tables: Sequence[AblationTable]) -> list[Curve]:
    """For each protocol a chart of rows: every seed a dot, with their mean and deviation."""
    return [
        Curve(
            column.title,
            _dots(column.title, [row for row in table.rows if column in row.entries], column),
            f"{column.detail}. Dots: seeds; bars: their mean and standard deviation.",
        )
        for table, column in headlines(tables)
    ]


def _dots(title: str, rows: Sequence[TableRow], column: Column) -> str:
    with styled():
        size = (_CHART[0], 0.7 + 0.27 * len(rows))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            entry, colour = row.entries[column], SERIES[0] if row.of == "trained" else INK
            mean = entry.mean
            values = [100 * value for value in entry.values.values()]
            axes.plot(values, [place] * len(values), "o", color=colour, markersize=4, alpha=0.55)
            axes.errorbar(
                100 * mean.value, place, xerr=100 * (mean.deviation or 0), fmt="|", color=colour,
                markersize=11, markeredgewidth=2, capsize=3, linewidth=1.2,
            )  # fmt: skip
        axes.set_yticks(
            range(len(rows)), [shortened(row.name, _NAME) for row in rows], parse_math=False
        )
        axes.invert_yaxis()
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("%")
        axes.margins(y=0.08)
        return svg(figure, f"{title} by row")


def _chart(
    title: str,
    dial: str,
    lines: Mapping[str, Sequence[tuple[float, float, float]]],
    chance: float | None,
) -> str:
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
            ends.append((points[-1][1], shortened(name, _NAME), colour))
        if chance is not None:
            axes.axhline(chance, color=INK, linestyle=":", linewidth=1)
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
    lines: Sequence[tuple[Line, bool]],
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
        for (x, y), done in lines:
            style = "-" if done else (0, (1, 1))
            axes.plot(x, y, color=SERIES[0], linewidth=0.8, alpha=0.8, linestyle=style)
        mean = _mean(lines)
        axes.plot(*mean, color=SERIES[0], linewidth=2.2, marker="o" if len(mean[0]) == 1 else "")
        _finish(axes, ylabel, top)
        lost = sum(not done for _, done in lines)
        seeds = f"{len(lines)} seeds" if len(lines) > 1 else "1 seed"
        told = f"{seeds}, {lost} of them not done (dotted)" if lost else seeds
        return Curve(row, svg(figure, f"{kind} of {row}"), told)


def _finish(axes: Axes, ylabel: str, top: float | None) -> None:
    axes.margins(x=0)
    if top is not None:
        axes.set_ylim(0, 1.05 * top or 1)
    axes.set_xlabel("thousand clips seen", fontsize="small")
    axes.set_title(ylabel, loc="left", fontsize="small")
    axes.tick_params(labelsize="small")


def _lines(ablation: Ablation, read: Callable[[Cell], Line]) -> Lines:
    """Of every row that has begun; what failed in the middle is drawn as far as it came."""
    lines = {
        name: [(line, c.status == DONE) for c in cells if (line := read(c))[0]]
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


def _mean(lines: Sequence[tuple[Line, bool]]) -> Line:
    """Of cells that are done, where all of them have a value."""
    found = [dict(zip(x, y, strict=True)) for (x, y), done in lines if done]
    shared = [x for x in found[0] if all(x in each for each in found)] if found else []
    return shared, [statistics.fmean(each[x] for each in found) for x in shared]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
