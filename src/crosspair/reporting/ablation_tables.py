"""Results of an ablation's folder: means over seeds, differences to the baseline, findings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from crosspair.errors import RunError
from crosspair.evaluation.results import Result, read_results
from crosspair.reporting.run_report import History, read_history
from crosspair.reporting.tables import (
    COLUMN_FIELDS,
    TABLE_TITLES,
    Column,
    ReportTable,
    TableCell,
    format_signed,
    format_value,
    pluralize,
    results_frame,
    sort_columns,
)

ABLATION = "ablation.json"
DONE = "done"
CSV_FIELDS = [
    "row", "of", *COLUMN_FIELDS, "seed", "value", "deviation", "seeds", "difference", "error",
    "low", "high", "status",
]  # fmt: skip
_FEW_SEEDS = 5
_REFERENCES = ("random weights", "chance")
_ROUNDING = 1e-9  # standard errors below this are rounding errors of equal differences

Line = Mapping[str, Any]  # a row of `ablation_frame`


@dataclass(frozen=True)
class CellResult:
    """A row of the plan with one seed."""

    row: Mapping[str, str]  # name of the value by axis
    seed: int
    path: Path
    status: str  # "done", "failed" or "missing"
    error: str  # last line of the log of a failed cell
    seconds: Mapping[str, float]  # of the completed steps: "pretrain", "evaluate", "finetune"
    clips: int  # seen in pre-training
    results: Sequence[Result]  # empty unless done
    history: History  # of pre-training; empty if not started

    @property
    def name(self) -> str:
        """Name of the row, e.g. "words / frozen"."""
        return " / ".join(self.row.values())

    @property
    def speed(self) -> float | None:
        """Clips per second of the whole pre-training."""
        seconds = self.seconds.get("pretrain")
        return self.clips / seconds if seconds and self.status == DONE else None


@dataclass(frozen=True)
class Ablation:
    """An ablation's plan and cells."""

    folder: Path
    title: str
    table: str  # number of the paper's table, e.g. "1a"; empty if there is none
    baseline: str  # name of the row that the others are compared with
    published: Sequence[Line]  # name of the row, source, protocol, metric; value, difference, note
    axes: Sequence[str]
    cells: Sequence[CellResult]

    @property
    def rows(self) -> dict[str, list[CellResult]]:
        """Cells by the name of the row, the baseline first, then in the plan's order."""
        rows: dict[str, list[CellResult]] = {self.baseline: []}
        for cell in self.cells:
            rows.setdefault(cell.name, []).append(cell)
        return rows

    @property
    def seeds(self) -> int:
        """Number of seeds per row."""
        return len({cell.seed for cell in self.cells})

    def count(self, status: str) -> int:
        """Count the cells of a status."""
        return sum(cell.status == status for cell in self.cells)


def read_ablation(folder: Path) -> Ablation:
    """Read a folder written by ``crosspair ablate``.

    A cell with the status "done" whose results cannot be read counts as failed.

    Raises:
        RunError: ``ablation.json`` does not exist or is damaged.
    """
    path = folder / ABLATION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        plan = content["plan"]
        axes = list(plan["axes"])
        names = [
            " / ".join(row[axis] for axis in axes)
            for row in (plan["first"], *(each["row"] for each in plan["published"]))
        ]
        published = [{**each, "name": name} for each, name in zip(plan["published"], names[1:], strict=True)]
        cells = [_read_cell(folder, each) for each in content["cells"]]
        table = plan.get("table", "")
        ablation = Ablation(folder, plan["title"], table, names[0], published, axes, cells)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(
            f'{path} is damaged ({type(error).__name__}: {error}). Run the same "crosspair ablate" '
            "command again to rewrite it."
        ) from error
    if not ablation.rows[ablation.baseline]:
        raise RunError(f"{path}: the baseline {ablation.baseline!r} has no cell")
    return ablation


def _read_cell(folder: Path, entry: Line) -> CellResult:
    """Read a cell's results and history; "done" becomes "failed" if the results cannot be read."""
    path, status, message = folder / entry["folder"], entry["status"], entry["error"] or ""
    results: Sequence[Result] = ()
    if status == DONE:
        try:
            results, _ = read_results(path / "results.json")
        except RunError as error:
            status, message = "failed", str(error)
    history = read_history(path) if (path / "metrics.jsonl").is_file() else History()
    return CellResult(
        entry["row"], entry["seed"], path, status, message, entry["seconds"], entry["clips"],
        results, history,
    )  # fmt: skip


def ablation_frame(ablation: Ablation) -> pd.DataFrame:
    """Return all values of an ablation, and their means over seeds.

    Values of random weights and chance, which do not depend on the row, are those of the first
    row that has them.

    Returns:
        The fields of ``report.csv`` and ``column``. Rows whose ``status`` is "done" are the value
        of a seed; "mean", the mean over the seeds of a row with its sample standard deviation and
        `paired_difference` to the baseline; "failed" and "missing", a cell without values.
        Fields that do not apply are None.
    """
    frames = [results_frame(each.results, row=each.name, seed=each.seed) for each in ablation.cells]
    values = pd.concat(frames).drop_duplicates(["row", "of", "column", "seed"], keep="last")
    by_seed: dict[tuple[str, str, Column], pd.Series] = {
        key: group.set_index("seed").value.astype(float)
        for key, group in values.groupby(["row", "of", "column"], sort=False)
    }
    columns = sort_columns(values.column[values.of == "trained"])
    rows = [*((row, "trained") for row in ablation.rows), *((each, each) for each in _REFERENCES)]
    lines: list[dict[str, Any]] = []
    for table in TABLE_TITLES:
        for row, subject in rows:
            for column in (each for each in columns if each.table == table):
                sources = ablation.rows if row == subject else [row]
                found = [by_seed.get((name, subject, column)) for name in sources]
                seeds = next((each for each in found if each is not None), None)
                if seeds is None:
                    continue
                seeds = seeds[:1] if subject == "chance" else seeds
                line = {"row": row, "of": subject, "column": column, **asdict(column)}
                lines += [{**line, "seed": seed, "value": value, "status": DONE} for seed, value in seeds.items()]
                line |= {"value": seeds.mean(), "deviation": seeds.std(), "seeds": len(seeds)}
                baseline = by_seed.get((ablation.baseline, "trained", column))
                if baseline is not None and subject == "trained" and row != ablation.baseline:
                    line |= paired_difference(seeds, baseline)
                lines.append({**line, "status": "mean"})
    lines += [
        {"row": cell.name, "of": "trained", "seed": cell.seed, "status": cell.status}
        for cell in ablation.cells
        if not cell.results
    ]
    frame = pd.DataFrame(lines, columns=[*CSV_FIELDS, "column"], dtype=object)
    return frame.where(frame.notna(), None)


def paired_difference(values: pd.Series, baseline: pd.Series) -> dict[str, float]:
    """Compare two rows over the seeds that both have.

    Args:
        values, baseline: indexed by seed.

    Returns:
        The mean ``difference``; its standard ``error`` if there are two seeds; and its 95 %
        confidence interval ``low`` and ``high`` by Student's t-distribution, unless the difference
        is the same for every seed. Empty without common seeds.
    """
    differences = (values - baseline).dropna()
    if differences.empty:
        return {}
    mean, error = float(differences.mean()), float(differences.sem())
    if len(differences) == 1:
        return {"difference": mean}
    if error < _ROUNDING:
        return {"difference": mean, "error": 0.0}
    low, high = stats.t.interval(0.95, len(differences) - 1, loc=mean, scale=error)
    return {"difference": mean, "error": error, "low": float(low), "high": float(high)}


def is_significant(line: Line) -> bool:
    """Whether the interval of a difference excludes zero."""
    return line["low"] is not None and not line["low"] <= 0 <= line["high"]


def headline_columns(frame: pd.DataFrame) -> list[Column]:
    """Select top-1 of each protocol, of the visual feature if it has one, and text-to-video R@10, for charts."""
    columns: list[Column] = list(dict.fromkeys(frame.column.dropna()))
    visual = {column.protocol for column in columns if column.feature == "visual"}
    top_1 = [
        column for column in columns
        if column.metric == "top-1" and (column.feature == "visual") == (column.protocol in visual)
    ]  # fmt: skip
    recall = ("retrieval text→video", "R@10")
    return [each for each in columns if each in top_1 or (each.protocol, each.metric) == recall]


def column_means(frame: pd.DataFrame, column: Column) -> list[Line]:
    """Return each row's mean over seeds in a column, in the order of the rows."""
    means = frame[(frame.status == "mean") & (frame.column == column)]
    lines: list[Line] = means.to_dict("records")
    return lines


def format_mean(line: Line) -> str:
    """Format mean and deviation, e.g. "63.2 ± 1.1 %", or "4 ± 0.5" for ranks."""
    mean, deviation, is_rank = line["value"], line["deviation"], line["column"].is_rank
    if deviation is None:
        return format_value(mean, is_rank)
    if is_rank:
        return f"{mean:.4g} ± {deviation:.2g}"
    return f"{100 * mean:.1f} ± {100 * deviation:.1f} %"


def format_difference(line: Line) -> str:
    """Format difference, standard error and interval, e.g. "+2.1 ± 0.4 (+0.3 to +3.9)"."""
    if line["difference"] is None:
        return ""
    scale = 1 if line["column"].is_rank else 100
    text = format_signed(scale * line["difference"])
    if line["error"] is not None:
        text += f" ± {scale * line['error']:.1f}"
    if line["low"] is not None:
        low, high = (format_signed(scale * line[end]) for end in ("low", "high"))
        text += f" ({low} to {high})"
    return text


def ablation_tables(ablation: Ablation, frame: pd.DataFrame) -> list[ReportTable]:
    """Build the tables that have values; the last rows are random weights and chance.

    Published values are listed in the table of their protocol, or else in the first table.
    """
    columns: list[Column] = list(dict.fromkeys(frame.column.dropna()))
    numbers = list(dict.fromkeys(column.table for column in columns))
    tables: list[ReportTable] = []
    for number in numbers:
        members = sort_columns(column for column in columns if column.table == number)
        means = {(line["row"], c): line for c in members for line in column_means(frame, c)}
        published: dict[str, list[str]] = {}
        for each in ablation.published:
            finetuned = "3" in numbers and str(each.get("protocol", "")).endswith("views")
            if number == ("3" if finetuned else numbers[0]):
                published.setdefault(each["name"], []).append(_format_published(each))
        rows = []
        for name in (*ablation.rows, *_REFERENCES):
            lines = {c: means[name, c] for c in members if (name, c) in means}
            if name in ablation.rows:
                first, placeholder = _row_head(name, ablation.rows[name])
            elif lines:
                seeds = pluralize(max(line["seeds"] for line in lines.values()), "seed")
                detail = "random guessing" if name == "chance" else f"{seeds}; no pre-training"
                first, placeholder = TableCell(name, detail, style="reference"), TableCell("–")
            else:
                continue
            row = [first, *(_mean_cell(lines[c]) if c in lines else placeholder for c in members)]
            if published:
                text = "; ".join(published.get(name, ()))
                row.append(TableCell(text, style="published-text published"))
            rows.append(row)
        head = [TableCell("row"), *(TableCell(column.title, column.detail) for column in members)]
        if published:
            head.append(TableCell("published", "not measured here", style="published-text"))
        tables.append(ReportTable(f"table{len(tables) + 1}", TABLE_TITLES[number], head, rows))
    return tables


def _row_head(name: str, cells: Sequence[CellResult]) -> tuple[TableCell, TableCell]:
    """Return the first cell of a row, and the cell shown for missing values."""
    seeds: dict[str, list[str]] = {}
    for cell in cells:
        seeds.setdefault(cell.status, []).append(str(cell.seed))
    detail, done = pluralize(len(cells), "seed"), len(seeds.pop(DONE, ()))
    if not seeds:
        return TableCell(name, detail), TableCell("–", style="incomplete")
    incomplete = [f"seed {', '.join(each)} {status}" for status, each in seeds.items()]
    detail = "; ".join([f"{done} of {detail}", *incomplete])
    placeholder = "–" if done else next(iter(seeds))
    return TableCell(name, detail, style="partial"), TableCell(placeholder, style="incomplete")


def _mean_cell(line: Line) -> TableCell:
    style = "significant" if is_significant(line) else ""
    return TableCell(format_mean(line), format_difference(line), style=style)


def _format_published(published: Line) -> str:
    parts = []
    if published.get("value") is not None:
        parts.append(f"{100 * published['value']:.1f} %")
    if published.get("difference") is not None:
        other = " / ".join((published.get("against") or {}).values()) or "the baseline"
        parts.append(f"{format_signed(100 * published['difference'])} points vs. {other}")
    if published.get("note"):
        parts.append(published["note"])
    measure = ", ".join(filter(None, (published.get("protocol"), published.get("metric"))))
    return f"{', '.join(parts)} ({'; '.join(filter(None, (published.get('source'), measure)))})"


def describe_findings(ablation: Ablation, frame: pd.DataFrame) -> list[str]:
    """Describe the extent of the ablation, then the best row of each protocol."""
    done = ablation.count(DONE)
    extent = (
        f"{len(ablation.rows)} rows with {pluralize(ablation.seeds, 'seed')} each. Baseline: “{ablation.baseline}”."
    )
    if done < len(ablation.cells):
        extent += (
            f" {done} of {len(ablation.cells)} cells are done, {ablation.count('failed')} failed, "
            f"{ablation.count('missing')} missing."
        )
    return [extent, *(_describe_column(ablation, frame, each) for each in headline_columns(frame))]


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
    """Describe in words the best row of a column, among those with results for all seeds, and random weights."""
    means = column_means(frame, column)
    seeds = frame[(frame.column == column) & (frame.status == DONE) & (frame.of == "trained")].seed
    trained = [line for line in means if line["of"] == "trained"]
    complete = [line for line in trained if line["seeds"] == seeds.nunique()]
    finetuned = column.protocol.endswith("views")
    text = f"{column.protocol} {column.metric}".removesuffix(" top-1")
    text = f"Fine-tuned, {text}" if finetuned else text
    if complete:
        partial = "" if complete == trained else f" ({len(complete)} rows with all seeds)"
        ranked = sorted(complete, key=lambda line: float(line["value"]), reverse=True)
        text += f"{partial}: {_describe_best(ablation, ranked)}."
    else:
        text += ": no row has results for all seeds."
    name = "Trained from scratch" if finetuned else "Random weights"
    random = [f" {name}: {format_mean(line)}." for line in means if line["of"] == "random weights"]
    return text + "".join(random)


def _describe_best(ablation: Ablation, ranked: Sequence[Line]) -> str:
    """Describe the best row and its difference to the baseline; if it is the baseline, that of the second."""
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
