"""Tables and findings of an ablation's report."""

from __future__ import annotations

import json
from collections.abc import Sequence

from scipy import stats

from crosspair.reporting.ablation_results import (
    DONE,
    REFERENCES,
    Ablation,
    Line,
    headline_columns,
    is_significant,
    judge_claims,
)
from crosspair.reporting.tables import (
    TABLE_TITLES,
    Column,
    ReportTable,
    TableCell,
    format_signed,
    format_value,
    pluralize,
)

RULE = (
    "A claim is tested by the difference of its rows in one protocol. It is supported if the 95 % interval of the "
    "difference is above 0. Otherwise, it is not supported if the interval is below the published difference (+2.0 "
    "points if there is none), and not testable at this size if it is not, or if no row of the claim is better than "
    "random weights. With one seed, no claim is testable."
)
_BEST = 3  # rows in a finding
_FEW_SEEDS = 5


def format_mean(line: Line) -> str:
    """Format mean and deviation, e.g. "63.2 ± 1.1 %", or "4 ± 0.5" for ranks."""
    mean, deviation, is_rank = line["value"], line["deviation"], line["column"].is_rank
    if deviation is None:
        return format_value(mean, is_rank)
    if is_rank:
        return f"{mean:.4g} ± {deviation:.2g}"
    return f"{100 * mean:.1f} ± {100 * deviation:.1f} %"


def format_difference(line: Line, column: Column) -> str:
    """Format difference, standard error and interval, e.g. "+2.1 ± 0.4 (+0.3 to +3.9)"."""
    if line.get("difference") is None:
        return ""
    scale = 1 if column.is_rank else 100
    text = format_signed(scale * line["difference"])
    if line.get("error") is not None:
        text += f" ± {scale * line['error']:.1f}"
    if line.get("low") is not None:
        low, high = (format_signed(scale * line[end]) for end in ("low", "high"))
        text += f" ({low} to {high})"
    return text


def ablation_tables(ablation: Ablation) -> list[ReportTable]:
    """Build the tables that have values; the last rows are random weights and chance."""
    columns: list[Column] = list(dict.fromkeys(ablation.means.column))
    means = {(line["row"], line["column"]): line for line in ablation.means.to_dict("records")}
    numbers = list(dict.fromkeys(column.table for column in columns))
    tables: list[ReportTable] = []
    for number in numbers:
        members = [column for column in columns if column.table == number]
        rows = []
        for name in [*ablation.rows, *REFERENCES]:
            lines = [means.get((name, column)) for column in members]
            if name in REFERENCES and not any(lines):
                continue
            rows.append(
                [_row_head(ablation, name, lines), *(_mean_cell(line) if line else TableCell("–") for line in lines)]
            )
        head = [TableCell("row"), *(TableCell(column.title, column.detail) for column in members)]
        tables.append(ReportTable(f"table{len(tables) + 1}", TABLE_TITLES[number], head, rows))
    return tables


def _row_head(ablation: Ablation, name: str, lines: Sequence[Line | None]) -> TableCell:
    """Return the first cell of a row, with the number of seeds that have results."""
    if name == "chance":
        return TableCell(name, "random guessing", style="reference")
    if name in REFERENCES:
        seeds = max(line["seeds"] for line in lines if line)
        return TableCell(name, f"{pluralize(seeds, 'seed')}; no pre-training", style="reference")
    status = ablation.cells.status[ablation.cells.row == name]
    done, seeds = int((status == DONE).sum()), pluralize(len(status), "seed")
    return TableCell(name, seeds) if done == len(status) else TableCell(name, f"{done} of {seeds}", style="partial")


def _mean_cell(line: Line) -> TableCell:
    style = "significant" if is_significant(line) else ""
    return TableCell(format_mean(line), format_difference(line, line["column"]), style=style)


def claims_tables(ablation: Ablation) -> list[ReportTable]:
    """Build the table of the plan's claims with their verdicts; none without claims."""
    columns, rows = headline_columns(ablation), []
    for claim, verdict, decisive, differences in judge_claims(ablation):
        published = claim["difference"]
        source = claim["source"] if published is None else f"{claim['source']}: {format_signed(100 * published)}"
        rows.append([
            TableCell(claim["claim"], source), TableCell(verdict, decisive.protocol if decisive else ""),
            *(TableCell(format_difference(differences[column], column) or "–") for column in columns),
        ])  # fmt: skip
    head = [TableCell("claim"), TableCell("verdict"), *(TableCell(each.title, each.detail) for each in columns)]
    return [ReportTable("claims", "Claims", head, rows, remark=RULE)] if rows else []


def tuning_tables(ablation: Ablation) -> list[ReportTable]:
    """Build the table of the values tried for each row, with their accuracy on split val; none without tuning."""
    tried = ablation.table[ablation.table.tuning.astype(bool) & ablation.table.clips_seen.isna()]
    measured = tried[(tried["of"].isna() | (tried["of"] == "trained")) & tried.metric.isin([None, "top-1", "R@10"])]
    chosen = {(cell.row, cell.grid) for cell in ablation.cells.itertuples() if cell.status != "waiting"}
    rows = []
    for cell in measured.drop_duplicates("cell").itertuples():
        values = ", ".join(f"{key} {value}" for key, value in json.loads(cell.grid).items())
        mark = "chosen" if (cell.row, cell.grid) in chosen else ""
        score = TableCell(cell.status if cell.value is None else format_value(cell.value), mark)
        rows.append([TableCell(cell.row), TableCell(values), score])
    if not rows:
        return []
    tuning = ablation.plan["tuning"]
    overrides = (
        ", ".join(f"{key} {value}" for key, value in tuning["overrides"].items()) or "the settings of the report"
    )
    remark = (
        f"Each row was trained with all combinations of its values, with seed {tuning['seed']} and {overrides}. The "
        f"one with the highest accuracy on split val ({tuning['metric']}) is used for all seeds of the report."
    )
    head = [TableCell("row"), TableCell("values"), TableCell("accuracy on split val")]
    return [ReportTable("tuning", "Tuning", head, rows, remark=remark)]


def describe_findings(ablation: Ablation) -> list[str]:
    """Describe the extent of the ablation, then the best rows of each protocol."""
    done, cells = ablation.count(DONE), len(ablation.cells)
    extent = (
        f"{len(ablation.rows)} rows with {pluralize(ablation.seeds, 'seed')} each. Baseline: “{ablation.baseline}”."
    )
    if done < cells:
        failed = ablation.count("failed")
        extent += f" {done} of {cells} cells are done, {failed} failed, {cells - done - failed} missing."
    return [extent, *(_describe_column(ablation, column) for column in headline_columns(ablation))]


def describe_uncertainty(ablation: Ablation) -> str:
    """Explain the intervals and how many are expected to exclude zero by chance."""
    compared = ablation.means[ablation.means.low.notna()].to_dict("records")
    if not compared:
        return "No row has two seeds in common with the baseline, so there are no intervals."
    known = ablation.values.correct.notna().any()
    videos = "; of top-1 accuracies, the variance over test videos is added" if known else ""
    few = (
        f" With {ablation.seeds} seeds, an interval extends {stats.t.ppf(0.975, ablation.seeds - 1):.1f} standard "
        "errors to each side, and the standard errors are rough estimates."
    )
    return (
        "Below each mean: difference to the baseline over the same seeds ± standard error, with the 95 % confidence "
        f"interval (Student's t-distribution over seeds{videos}).{few if ablation.seeds <= _FEW_SEEDS else ''} "
        "Significant (bold) means "
        f"that the interval excludes zero: {sum(map(is_significant, compared))} of {len(compared)} differences. About "
        f"{len(compared) / 20:.0f} would be significant by chance if all rows were equal."
    )


def _describe_column(ablation: Ablation, column: Column) -> str:
    """List the best three rows of a column, of those with results for all seeds, the baseline, and random weights."""
    means, finetuned = ablation.column_means(column), column.protocol.endswith("views")
    complete = [line for line in means if line["of"] == "trained" and line["complete"]]
    ranked = sorted(complete, key=lambda line: float(line["value"]), reverse=True)
    texts = []
    for line in [*ranked[:_BEST], *(line for line in ranked[_BEST:] if line["row"] == ablation.baseline)]:
        difference = format_difference(line, column)
        name = f"“{line['row']}”" + (" (baseline)" if line["row"] == ablation.baseline else "")
        texts.append(f"{name} {format_mean(line)}" + (f", {difference}" if difference else ""))
    random = "trained from scratch" if finetuned else "random weights"
    texts += [f"{random} {format_mean(line)}" for line in means if line["of"] == "random weights"]
    protocol = f"{column.protocol} {column.metric}".removesuffix(" top-1")
    return f"{'Fine-tuned, ' if finetuned else ''}{protocol}: {'; '.join(texts) or 'no row has results for all seeds'}."
