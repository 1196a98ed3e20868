"""Report of an ablation: HTML page, the same tables in Markdown, and all values as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from scipy import stats

from crosspair.files import write_atomically
from crosspair.markdown import plain
from crosspair.reporting.ablation_figures import (
    axis_charts,
    dot_charts,
    loss_panels,
    retrieval_examples,
    validation_panels,
)
from crosspair.reporting.ablation_tables import (
    CSV_FIELDS,
    DONE,
    Ablation,
    Line,
    ablation_frame,
    ablation_tables,
    column_means,
    format_mean,
    headline_columns,
    is_significant,
    read_ablation,
)
from crosspair.reporting.tables import (
    Cell,
    Column,
    ReportTable,
    format_csv,
    format_signed,
    pluralize,
    render_page,
)
from crosspair.reporting.titles import REASON_CLASSES

_FEW_SEEDS = 5


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
    frame = ablation_frame(ablation)
    tables = ablation_tables(ablation, frame)
    cells = _cells_table(ablation)
    findings = describe_findings(ablation, frame)
    uncertainty = describe_uncertainty(ablation, frame)
    page = render_page(
        "ablation.html", ablation=ablation, tables=tables, findings=findings,
        uncertainty=uncertainty, cells=cells, kinds=REASON_CLASSES,
        charts=axis_charts(ablation, frame) or dot_charts(frame),
        validation=validation_panels(ablation), losses=loss_panels(ablation),
        examples=retrieval_examples(ablation),
    )  # fmt: skip
    blocks = [
        f"# {plain(ablation.title)}", plain(findings[0]),
        "\n".join(f"- {plain(finding)}" for finding in findings[1:]), plain(uncertainty),
        *(table.markdown() for table in [*tables, cells]),
    ]  # fmt: skip
    write_atomically(folder / "report.md", "\n\n".join(filter(None, blocks)) + "\n")
    write_atomically(folder / "report.csv", format_csv(frame[CSV_FIELDS]))
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


def describe_findings(ablation: Ablation, frame: pd.DataFrame) -> list[str]:
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
    columns = headline_columns(frame)
    return [extent, *(_describe_column(ablation, frame, column) for column in columns)]


def describe_uncertainty(ablation: Ablation, frame: pd.DataFrame) -> str:
    """Explain the intervals and how many are expected to exclude zero by chance."""
    if ablation.seeds == 1:
        return "There is one seed, so the variation between seeds is unknown."
    compared = frame[frame.low.notna()].to_dict("records")
    if not compared:
        return "No row has two seeds in common with the baseline, so there are no intervals."
    text = (
        "Below each mean: difference to the baseline over the same seeds ± standard error, with "
        "the 95 % confidence interval (Student's t-distribution)."
    )
    if ablation.seeds <= _FEW_SEEDS:
        text += (
            f" With {ablation.seeds} seeds, an interval extends "
            f"{stats.t.ppf(0.975, ablation.seeds - 1):.1f} standard errors to each side, and the "
            "standard errors are rough estimates."
        )
    return (
        f"{text} Significant (bold) means that the interval excludes zero: "
        f"{sum(map(is_significant, compared))} of {len(compared)} differences. About "
        f"{len(compared) / 20:.0f} would be significant by chance if all rows were equal."
    )


def _describe_column(ablation: Ablation, frame: pd.DataFrame, column: Column) -> str:
    means = column_means(frame, column)
    seeds = frame[(frame.column == column) & (frame.status == DONE) & (frame.of == "trained")].seed
    trained = [line for line in means if line["of"] == "trained"]
    complete = [line for line in trained if line["seeds"] == seeds.nunique()]
    ranked = sorted(complete, key=lambda line: float(line["value"]), reverse=True)
    finetuned = column.protocol.endswith("views")
    text = f"{column.protocol} {column.metric}".removesuffix(" top-1")
    text = f"Fine-tuned, {text}" if finetuned else text
    if not ranked:
        text += ": no row has results for all seeds."
    else:
        partial = "" if complete == trained else f" ({len(complete)} rows with all seeds)"
        text += f"{partial}: {_describe_best(ablation, ranked)}."
    for line in means:
        if line["of"] == "random weights":
            name = "Trained from scratch" if finetuned else "Random weights"
            text += f" {name}: {format_mean(line)}."
    return text


def _describe_best(ablation: Ablation, ranked: Sequence[Line]) -> str:
    """Describe the best row and its difference to the baseline, or that of the second best."""
    best, *others = ranked
    tied = [f"“{line['row']}”" for line in ranked if line["value"] == best["value"]]
    if len(tied) > 1:
        return f"{', '.join(tied)} are tied at {format_mean(best)}"
    text = f"best is “{best['row']}” with {format_mean(best)}"
    if not others:
        return f"{text}, the only such row"
    compared = best
    if best["row"] == ablation.baseline:
        compared = others[0]
        text += f"; second is “{compared['row']}” with {format_mean(compared)}"
    if compared["difference"] is None:
        return f"{text}, which has no seed in common with the baseline"
    text += f", {format_signed(100 * compared['difference'])} points vs. the baseline"
    if compared["low"] is None:
        reason = "one seed" if compared["error"] is None else "the same for every seed"
        return f"{text} ({reason}, no interval)"
    low, high = (format_signed(100 * compared[end]) for end in ("low", "high"))
    verdict = "significant" if is_significant(compared) else "not significant"
    return f"{text} (95 % interval {low} to {high}, {verdict})"


def _cells_table(ablation: Ablation) -> ReportTable:
    head = [
        "row", "seed", "status", "pretrain, s", "evaluate, s", "fine-tune, s", "clips", "clips/s",
    ]  # fmt: skip
    rows = []
    for cell in (cell for cells in ablation.rows.values() for cell in cells):
        file = cell.path / ("results.json" if cell.results else "log.txt")
        link = file.relative_to(ablation.folder).as_posix() if file.is_file() else ""
        numbers = [cell.seconds.get(step) for step in ("pretrain", "evaluate", "finetune")]
        numbers += [cell.clips, cell.speed]
        style = "" if cell.status == DONE else "incomplete"
        rows.append([
            Cell(cell.name, cell.error, link, style="partial"),
            Cell(str(cell.seed)), Cell(cell.status, style=style),
            *(Cell("–" if number is None else f"{number:,.0f}") for number in numbers),
        ])  # fmt: skip
    remark = (
        "Duration of each step, and clips per second of the whole pre-training. plan.yaml in the "
        "same folder defines the rows; report.csv contains all values."
    )
    return ReportTable("cells", "Cells", list(map(Cell, head)), rows, remark=remark)
