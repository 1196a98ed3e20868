"""Report of an ablation: HTML page, the same tables in Markdown, and all values as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crosspair.files import write_atomically
from crosspair.markdown import escape_markdown, markdown_rows
from crosspair.reporting.ablation_figures import (
    axis_charts,
    dot_charts,
    loss_panels,
    retrieval_examples,
    validation_panels,
)
from crosspair.reporting.ablation_tables import (
    DONE,
    Ablation,
    AblationTable,
    CellResult,
    TableRow,
    ablation_tables,
    format_difference,
    format_mean,
    headline_columns,
    read_ablation,
    t_quantile,
)
from crosspair.reporting.run_report import render_page
from crosspair.reporting.tables import COLUMN_FIELDS, Column, format_csv, format_signed, pluralize
from crosspair.reporting.titles import REASON_CLASSES

_CSV_FIELDS = (
    "row", "of", *COLUMN_FIELDS, "seed", "value", "deviation", "seeds", "difference", "error",
    "low", "high", "status",
)  # fmt: skip
_FEW_SEEDS = 5

CellLine = tuple[CellResult, str, dict[str, str]]  # a cell, the link to its file, its columns


def write_ablation_report(folder: Path) -> Path:
    """Write ``report.html``, ``report.md`` and ``report.csv``.

    The CSV file has a line for each unrounded value, a line for each mean over seeds (with an empty
    seed) with its difference to the baseline, and a line for each cell that is not done.

    Args:
        folder: of ``crosspair ablate``; its cells may be done, failed or missing.

    Returns:
        The path of the page.

    Raises:
        RunError: ``ablation.json`` does not exist or is damaged, or a file cannot be written.
    """
    ablation = read_ablation(folder)
    tables = ablation_tables(ablation)
    findings = describe_findings(ablation, tables)
    uncertainty = describe_uncertainty(ablation, tables)
    cells = _cell_lines(ablation)
    page = render_page(
        "ablation.html", ablation=ablation, tables=tables, findings=findings,
        uncertainty=uncertainty, mean=format_mean, difference=format_difference, cells=cells,
        kinds=REASON_CLASSES, examples=retrieval_examples(ablation),
        charts=axis_charts(ablation, tables) or dot_charts(tables),
        validation=validation_panels(ablation), losses=loss_panels(ablation),
    )  # fmt: skip
    blocks = [
        f"# {escape_markdown(ablation.title)}", escape_markdown(findings[0]),
        "\n".join(f"- {escape_markdown(finding)}" for finding in findings[1:]), escape_markdown(uncertainty),
        *(block for table in tables for block in (f"## {table.title}", _markdown_table(table))),
        "## Cells", _markdown_cells(cells),
    ]  # fmt: skip
    write_atomically(folder / "report.md", "\n\n".join(filter(None, blocks)) + "\n")
    write_atomically(folder / "report.csv", _csv(ablation, tables))
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


def describe_findings(ablation: Ablation, tables: Sequence[AblationTable]) -> list[str]:
    """Describe the extent of the ablation, then the best row of each protocol."""
    done = ablation.count(DONE)
    extent = (
        f"{len(ablation.rows)} rows with {pluralize(ablation.seeds, 'seed')} each. Baseline: "
        f"“{ablation.baseline}”."
    )
    if done < len(ablation.cells):
        extent += (
            f" {done} of {len(ablation.cells)} cells are done, {ablation.count('failed')} failed, "
            f"{ablation.count('missing')} missing."
        )
    return [extent, *(_describe_column(ablation, *each) for each in headline_columns(tables))]


def describe_uncertainty(ablation: Ablation, tables: Sequence[AblationTable]) -> str:
    """Explain the intervals and how many are expected to exclude zero by chance."""
    if ablation.seeds == 1:
        return "There is one seed, so the variation between seeds is unknown."
    entries = [e for table in tables for row in table.rows for e in row.entries.values()]
    compared = [e.difference for e in entries if e.difference and e.difference.interval]
    if not compared:
        return "No row has two seeds in common with the baseline, so there are no intervals."
    text = (
        "Below each mean: difference to the baseline over the same seeds ± standard error, with "
        "the 95 % confidence interval (Student's t-distribution)."
    )
    if ablation.seeds <= _FEW_SEEDS:
        text += (
            f" With {ablation.seeds} seeds, an interval extends "
            f"{t_quantile(ablation.seeds - 1):.1f} standard errors to each side, and the standard "
            "errors are rough estimates."
        )
    significant = sum(difference.significant for difference in compared)
    return (
        f"{text} Significant (bold) means that the interval excludes zero: {significant} of "
        f"{len(compared)} differences. About {len(compared) / 20:.0f} would be significant by "
        "chance if all rows were equal."
    )


def _describe_column(ablation: Ablation, table: AblationTable, column: Column) -> str:
    rows = [row for row in table.rows if column in row.entries]
    trained = [row for row in rows if row.subject == "trained"]
    seeds = {seed for row in trained for seed in row.entries[column].values}
    complete = [row for row in trained if seeds == set(row.entries[column].values)]
    ranked = sorted(complete, key=lambda row: row.entries[column].mean.value, reverse=True)
    finetuned = column.protocol.endswith("views")
    text = f"{column.protocol} {column.metric}".removesuffix(" top-1")
    text = f"Fine-tuned, {text}" if finetuned else text
    if not ranked:
        text += ": no row has results for all seeds."
    else:
        partial = "" if complete == trained else f" ({len(complete)} rows with all seeds)"
        text += f"{partial}: {_describe_best(ablation, ranked, column)}."
    for row in rows:
        if row.subject == "random weights":
            name = "Trained from scratch" if finetuned else "Random weights"
            text += f" {name}: {format_mean(row.entries[column], column)}."
    return text


def _describe_best(ablation: Ablation, ranked: Sequence[TableRow], column: Column) -> str:
    """Describe the best row and its difference to the baseline, or that of the second best."""
    best, *others = ranked
    mean = best.entries[column].mean.value
    tied = [row.name for row in ranked if row.entries[column].mean.value == mean]
    if len(tied) > 1:
        names = ", ".join(f"“{name}”" for name in tied)
        return f"{names} are tied at {format_mean(best.entries[column], column)}"
    text = f"best is {_named_mean(best, column)}"
    if not others:
        return f"{text}, the only such row"
    is_baseline = best.name == ablation.baseline
    difference = (others[0] if is_baseline else best).entries[column].difference
    if difference is None:
        return f"{text}, which has no seed in common with the baseline"
    text += f"; second is {_named_mean(others[0], column)}" if is_baseline else ""
    text += f", {format_signed(100 * difference.value)} points vs. the baseline"
    if difference.interval is None:
        reason = "one seed" if difference.count == 1 else "the same for every seed"
        return f"{text} ({reason}, no interval)"
    low, high = (format_signed(100 * end) for end in difference.interval)
    verdict = "significant" if difference.significant else "not significant"
    return f"{text} (95 % interval {low} to {high}, {verdict})"


def _named_mean(row: TableRow, column: Column) -> str:
    return f"“{row.name}” with {format_mean(row.entries[column], column)}"


def _cell_lines(ablation: Ablation) -> list[CellLine]:
    lines = []
    for cell in (cell for cells in ablation.rows.values() for cell in cells):
        file = cell.path / ("results.json" if cell.results else "log.txt")
        link = file.relative_to(ablation.folder).as_posix() if file.is_file() else ""
        numbers = {
            "pretrain, s": cell.seconds.get("pretrain"),
            "evaluate, s": cell.seconds.get("evaluate"),
            "fine-tune, s": cell.seconds.get("finetune"),
            "clips": cell.clips,
            "clips/s": cell.speed,
        }
        rounded = {head: "–" if n is None else f"{n:,.0f}" for head, n in numbers.items()}
        lines.append((cell, link, {"seed": str(cell.seed), "status": cell.status, **rounded}))
    return lines


def _markdown_table(table: AblationTable) -> str:
    head = ["row", *(f"{column.title}<br>{column.detail}" for column in table.columns)]
    head += ["published, not measured here"] if table.is_published else []
    rows = []
    for row in table.rows:
        cells = [f"{escape_markdown(row.name)}<br>{row.detail}"]
        for column in table.columns:
            entry = row.entries.get(column)
            cell = format_mean(entry, column) if entry else row.placeholder
            if entry and entry.difference:
                bold = "**" if entry.difference.significant else ""
                cell += f"<br>{bold}{format_difference(entry.difference, column)}{bold}"
            cells.append(cell)
        if table.is_published:
            cells.append(f"*{escape_markdown(row.published)}*" if row.published else "")
        rows.append(cells)
    return markdown_rows(head, rows)


def _markdown_cells(lines: Sequence[CellLine]) -> str:
    rows = [
        [
            f"[{escape_markdown(cell.name)}]({link})" if link else escape_markdown(cell.name),
            *columns.values(),
            escape_markdown(cell.error),
        ]
        for cell, link, columns in lines
    ]
    return markdown_rows(["row", *lines[0][2], "error"], rows)


def _csv(ablation: Ablation, tables: Sequence[AblationTable]) -> str:
    lines: list[dict[str, object]] = []
    for row in (row for table in tables for row in table.rows):
        for column, entry in row.entries.items():
            line: dict[str, object] = dict(zip(COLUMN_FIELDS, column.fields, strict=True))
            line |= {"row": row.name, "of": row.subject}
            lines += [
                {**line, "seed": seed, "value": value, "status": "done"}
                for seed, value in entry.values.items()
            ]
            mean, difference = entry.mean, entry.difference
            line |= {"value": mean.value, "deviation": mean.deviation, "seeds": mean.count}
            if difference:
                line |= {"difference": difference.value, "error": difference.error}
                line |= zip(("low", "high"), difference.interval or ("", ""), strict=True)
            lines.append({**line, "status": "mean"})
    lines += [
        {"row": cell.name, "of": "trained", "seed": cell.seed, "status": cell.status}
        for cell in ablation.cells
        if not cell.results
    ]
    return format_csv(_CSV_FIELDS, ([line.get(key, "") for key in _CSV_FIELDS] for line in lines))
