"""Report of an ablation: HTML page with charts, tables in Markdown, all results as Parquet, means as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from crosspair.files import atomic_write, write_atomically
from crosspair.markdown import escape_markdown
from crosspair.reporting.ablation_results import (
    DONE,
    MEAN_FIELDS,
    RESULTS_TABLE,
    STEPS,
    Ablation,
    Line,
    headline_columns,
    read_ablation,
    write_results_table,
)
from crosspair.reporting.ablation_tables import (
    ablation_tables,
    claims_tables,
    describe_findings,
    describe_uncertainty,
    tuning_tables,
)
from crosspair.reporting.figures import (
    CHART,
    INK,
    SERIES,
    STYLES,
    Curve,
    label_line_ends,
    label_rows,
    svg_figure,
    truncate,
)
from crosspair.reporting.tables import ReportTable, TableCell, format_csv, pluralize, render_page

_PANEL = (3.3, 2.1)  # in
_NAME_LENGTH = 28  # characters
_MIN_VALUES = 3  # of an axis with a chart
_LOGARITHMIC = 8  # ratio of an axis' largest and smallest value

SeedLines = list[tuple[pd.Series, bool]]  # by thousands of clips seen, and whether the cell is done


def write_ablation_report(folder: Path) -> Path:
    """Write ``report.html`` and ``report.md``, ``results.parquet`` and ``report.csv``.

    ``results.parquet`` has the plan and all results of all cells, see
    `crosspair.reporting.ablation_results.collect_results`, enough to write the report again. ``report.csv`` has the
    means over seeds and the differences to the baseline, unrounded.

    Args:
        folder: of ``crosspair ablate``; its cells may be done, failed or missing.

    Returns:
        The path of the page.

    Raises:
        RunError: the folder has no ablation or is damaged, or a file cannot be written.
    """
    ablation = read_ablation(folder)
    page = render_page(
        "ablation.html", title=ablation.plan["title"], number=ablation.plan.get("table", ""),
        tables=_result_tables(ablation), cells=[*tuning_tables(ablation), _cells_table(ablation, folder)],
        findings=describe_findings(ablation), uncertainty=describe_uncertainty(ablation),
        charts=axis_charts(ablation) or dot_charts(ablation), validation=validation_panels(ablation),
    )  # fmt: skip
    with atomic_write(folder / RESULTS_TABLE) as partial_file:
        write_results_table(ablation, partial_file)
    write_atomically(folder / "report.md", ablation_markdown(ablation, folder))
    write_atomically(folder / "report.csv", format_csv(ablation.means[MEAN_FIELDS]))
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


def ablation_markdown(ablation: Ablation, folder: Path) -> str:
    """Format findings, tables and cells in Markdown; links to files of cells are relative to ``folder``."""
    extent, *findings = map(escape_markdown, describe_findings(ablation))
    tables = [*_result_tables(ablation), *tuning_tables(ablation), _cells_table(ablation, folder)]
    blocks = [
        f"# {escape_markdown(ablation.plan['title'])}", extent, "\n".join(f"- {finding}" for finding in findings),
        escape_markdown(describe_uncertainty(ablation)), *(table.markdown() for table in tables),
    ]  # fmt: skip
    return "\n\n".join(filter(None, blocks)) + "\n"


def _result_tables(ablation: Ablation) -> list[ReportTable]:
    return [*claims_tables(ablation), *ablation_tables(ablation)]


def _cells_table(ablation: Ablation, folder: Path) -> ReportTable:
    """Build the table of cells: status, durations, and a link to the run's page, or else to its results or log."""
    head = ["row", "seed", "status", "pretrain, s", "evaluate, s", "fine-tune, s", "clips", "clips/s"]
    rows = []
    for cell in ablation.cells.to_dict("records"):
        files = (f"{cell['cell']}/{name}" for name in ("report.html", "results.json", "log.txt"))
        link = next((file for file in files if (folder / file).is_file()), "")
        done, seconds = cell["status"] == DONE, cell["pretrain_s"]
        numbers = [
            *(cell[f"{step}_s"] for step in STEPS),
            cell["clips"],
            cell["clips"] / seconds if seconds and done else None,
        ]
        rows.append([
            TableCell(cell["row"], cell["error"] or "", link, style="partial"), TableCell(str(cell["seed"])),
            TableCell(cell["status"], style="" if done else "incomplete"),
            *(TableCell("–" if number is None else f"{number:,.0f}") for number in numbers),
        ])  # fmt: skip
    order = {name: place for place, name in enumerate(ablation.rows)}
    rows.sort(key=lambda row: order[row[0].text])
    return ReportTable("cells", "Cells", list(map(TableCell, head)), rows)


def validation_panels(ablation: Ablation) -> list[Curve]:
    """Draw text-to-video R@10 on the validation pairs over the clips seen, a panel per row of the plan."""
    curves = ablation.curves
    curves = curves[(curves.protocol == "validation") & (curves.metric == "text_to_video_R@10")]
    rows: dict[str, SeedLines] = {name: [] for name in ablation.rows if name in set(curves.row)}
    for (name, _), points in curves.groupby(["row", "seed"], sort=False):
        line = pd.Series(100 * points.value.to_numpy(float), points.clips_seen.to_numpy(float) / 1000)
        rows[name].append((line, points.status.iloc[0] == DONE))
    means = [_mean_line(lines) for lines in rows.values()]
    top = 1.05 * max((line.max() for lines in rows.values() for line, _ in lines), default=0.0) or 1.0
    panels = []
    for (name, lines), mean in zip(rows.items(), means, strict=True):
        draw = partial(_draw_panel, lines=lines, mean=mean, others=means, top=top)
        incomplete = sum(not done for _, done in lines)
        caption = pluralize(len(lines), "seed")
        caption += f", {incomplete} of them not done (dotted)" if incomplete else ""
        panels.append(Curve(name, svg_figure(f"Validation of {name}", draw, _PANEL), caption))
    return panels


def _mean_line(lines: SeedLines) -> pd.Series:
    """Average the lines of completed cells at the points that they have in common."""
    complete = [line for line, done in lines if done] or [pd.Series(dtype=float)]
    return pd.concat(complete, axis=1, join="inner").mean(axis=1)


def _draw_panel(axes: Axes, lines: SeedLines, mean: pd.Series, others: Sequence[pd.Series], top: float) -> None:
    """Draw a row's seeds thin (dotted if not done), their mean thick, and the means of all rows in grey."""
    for line in others:
        axes.plot(line, color=INK, linewidth=0.7, alpha=0.4)
    for line, done in lines:
        axes.plot(line, color=SERIES[0], linewidth=0.8, alpha=0.8, linestyle="-" if done else (0, (1, 1)))
    axes.plot(mean, color=SERIES[0], linewidth=2.2, marker="o" if len(mean) == 1 else "")
    axes.margins(x=0)
    axes.set_ylim(0, top)
    axes.set_xlabel("thousand clips seen", fontsize="small")
    axes.set_title("R@10, %", loc="left", fontsize="small")
    axes.tick_params(labelsize="small")


def axis_charts(ablation: Ablation) -> list[Curve]:
    """Draw accuracy over the plan's first numeric axis, a chart per protocol, a line per value of other axes.

    Returns:
        No chart if no axis has three numeric values, or if there are more than six lines.
    """
    names = ablation.cells.drop_duplicates("row").set_index("row").filter(like="axis.")
    rows = names.rename(columns=lambda name: name.removeprefix("axis."))
    numbers = rows.apply(pd.to_numeric, errors="coerce")
    is_numeric = numbers.notna().all() & (rows.nunique() >= _MIN_VALUES)
    if not is_numeric.any():
        return []
    axis = is_numeric.idxmax()
    others = rows.drop(columns=axis).apply(" / ".join, axis=1, result_type="reduce").astype(str)
    others = others if rows.shape[1] > 1 else pd.Series("", rows.index)
    if others.nunique() > len(SERIES):
        return []
    charts = []
    for column in headline_columns(ablation):
        means = pd.DataFrame(ablation.column_means(column)).set_index("row")
        points = means.assign(x=numbers[axis], line=others).dropna(subset="x").sort_values("x")
        lines = {name: points[points.line == name] for name in others.unique() if name in set(points.line)}
        chance = means.value.get("chance")
        figure = svg_figure(f"{column.title} by {axis}", partial(_draw_axis, axis=axis, lines=lines, chance=chance))
        caption = f"{column.detail}. Mean and standard deviation over seeds."
        charts.append(Curve(column.title, figure, caption + " Dotted: chance." * (chance is not None)))
    return charts


def _draw_axis(axes: Axes, axis: str, lines: dict[str, pd.DataFrame], chance: float | None) -> None:
    ticks = sorted({x for points in lines.values() for x in points.x})
    logarithmic = ticks[0] > 0 and ticks[-1] / ticks[0] >= _LOGARITHMIC
    ends = []
    for number, (name, points) in enumerate(lines.items()):
        # Shift the lines horizontally, so that their error bars do not hide one another.
        shift = (number - (len(lines) - 1) / 2) * 0.012
        values = 100 * points.value.astype(float)
        axes.errorbar(
            points.x * (1 + 4 * shift) if logarithmic else points.x + shift * (ticks[-1] - ticks[0]), values,
            100 * points.deviation.astype(float).fillna(0), color=SERIES[number], linestyle=STYLES[number],
            linewidth=1.6, marker="o", markersize=3.5, capsize=2.5,
        )  # fmt: skip
        ends.append((values.iloc[-1], truncate(name, _NAME_LENGTH), SERIES[number]))
    if chance is not None:
        axes.axhline(100 * chance, color=INK, linestyle=":", linewidth=1)
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(axis)
    axes.set_ylim(bottom=0)
    axes.set_title("%", loc="left", fontsize="medium")
    label_line_ends(axes, ends if len(ends) > 1 else [])


def dot_charts(ablation: Ablation) -> list[Curve]:
    """Draw the values of all seeds with mean and deviation by row, a chart per protocol."""
    charts = []
    for column in headline_columns(ablation):
        means, values = ablation.column_means(column), ablation.values[ablation.values.column == column]
        draw = partial(_draw_dots, means=means, values=values)
        figure = svg_figure(f"{column.title} by row", draw, (CHART[0], 0.7 + 0.27 * len(means)))
        caption = f"{column.detail}. Dots: seeds; bars: mean and standard deviation."
        charts.append(Curve(column.title, figure, caption))
    return charts


def _draw_dots(axes: Axes, means: Sequence[Line], values: pd.DataFrame) -> None:
    for y, line in enumerate(means):
        dots, colour = 100 * values.value[values.row == line["row"]], SERIES[0] if line["of"] == "trained" else INK
        axes.plot(dots, [y] * len(dots), "o", color=colour, markersize=4, alpha=0.55)
        axes.errorbar(
            100 * line["value"], y, xerr=100 * (line["deviation"] or 0), fmt="|", color=colour,
            markersize=11, markeredgewidth=2, capsize=3, linewidth=1.2,
        )  # fmt: skip
    label_rows(axes, [truncate(line["row"], _NAME_LENGTH) for line in means])
    axes.set_xlabel("%")
    axes.margins(y=0.08)
