"""Results of an ablation's folder: cells, means over seeds, and differences to the baseline."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
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
    Cell,
    Column,
    ReportTable,
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
    """A row of the plan with one seed.

    Attributes:
        row: name of the value by axis.
        seed: of the cell.
        path: folder of the cell.
        status: "done", "failed" or "missing".
        error: last line of the log of a failed cell.
        seconds: duration of the completed steps among "pretrain", "evaluate" and "finetune".
        clips: number of clips seen in pre-training.
        results: empty unless done.
        history: of pre-training; empty if not started.
    """

    row: Mapping[str, str]
    seed: int
    path: Path
    status: str
    error: str
    seconds: Mapping[str, float]
    clips: int
    results: Sequence[Result]
    history: History

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
    """An ablation's plan and cells.

    Attributes:
        folder: of the ablation.
        title: of the plan.
        table: number of the paper's table, e.g. "1a"; empty if there is none.
        baseline: name of the row that the others are compared with.
        published: the paper's values: name of the row, source, protocol, metric; value, difference
            or note.
        axes: names, in the plan's order.
        cells: in the plan's order.
    """

    folder: Path
    title: str
    table: str
    baseline: str
    published: Sequence[Mapping[str, Any]]
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
        ablation = Ablation(
            folder,
            plan["title"],
            plan.get("table", ""),
            _row_name(plan["first"], axes),
            [{**each, "name": _row_name(each["row"], axes)} for each in plan["published"]],
            axes,
            [_read_cell(folder, each) for each in content["cells"]],
        )
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


def _row_name(row: Mapping[str, str], axes: Sequence[str]) -> str:
    return " / ".join(row[axis] for axis in axes)


def _read_cell(folder: Path, entry: Mapping[str, Any]) -> CellResult:
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
    columns.sort(key=lambda column: list(TABLE_TITLES).index(column.table))
    for subject, column in ((s, c) for s in _REFERENCES for c in columns):
        found = (by_seed.get((row, subject, column)) for row in ablation.rows)
        first = next((each for each in found if each is not None), None)
        if first is not None:
            by_seed[subject, subject, column] = first[:1] if subject == "chance" else first
    rows = [(row, "trained") for row in ablation.rows]
    rows += [(subject, subject) for subject in _REFERENCES]
    lines: list[dict[str, Any]] = []
    for table in TABLE_TITLES:
        for row, subject in rows:
            for column in (each for each in columns if each.table == table):
                if (seeds := by_seed.get((row, subject, column))) is None:
                    continue
                baseline = by_seed.get((ablation.baseline, "trained", column))
                line = {"row": row, "of": subject, "column": column, **asdict(column)}
                lines += [
                    {**line, "seed": seed, "value": value, "status": DONE}
                    for seed, value in seeds.items()
                ]
                line |= {"value": seeds.mean(), "deviation": seeds.std(), "seeds": len(seeds)}
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
    """Select one column per protocol for the findings and the charts.

    Top-1 accuracy of the visual feature if the protocol has it, and R@10 from text to video.
    """
    columns: list[Column] = list(dict.fromkeys(frame.column.dropna()))
    visual = {column.protocol for column in columns if column.feature == "visual"}
    return [
        column
        for column in columns
        if (
            column.metric == "top-1" and (column.feature == "visual") == (column.protocol in visual)
        )
        or (column.protocol, column.metric) == ("retrieval text→video", "R@10")
    ]


def column_means(frame: pd.DataFrame, column: Column) -> list[Line]:
    """Return the means of a column, in the order of the rows."""
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
    columns = list(dict.fromkeys(frame.column.dropna()))
    numbers = list(dict.fromkeys(column.table for column in columns))
    tables = []
    for number in numbers:
        members = sort_columns(column for column in columns if column.table == number)
        means: dict[str, dict[Column, Line]] = {}
        for column in members:
            for line in column_means(frame, column):
                means.setdefault(line["row"], {})[column] = line
        published = _published_texts(ablation, number, numbers)
        rows = []
        for name in [*ablation.rows, *(each for each in _REFERENCES if each in means)]:
            lines = means.get(name, {})
            if name in ablation.rows:
                first, placeholder = _row_head(name, ablation.rows[name])
            else:
                seeds = pluralize(max(line["seeds"] for line in lines.values()), "seed")
                detail = "random guessing" if name == "chance" else f"{seeds}; no pre-training"
                first, placeholder = Cell(name, detail, style="reference"), Cell("–")
            row = [first, *(_mean_cell(lines[c]) if c in lines else placeholder for c in members)]
            if published:
                row.append(Cell(published.get(name, ""), style="published-text published"))
            rows.append(row)
        head = [Cell("row"), *(Cell(column.title, column.detail) for column in members)]
        if published:
            head.append(Cell("published", "not measured here", style="published-text"))
        title = TABLE_TITLES[number]
        tables.append(ReportTable(f"table{len(tables) + 1}", title, head, rows))
    return tables


def _row_head(name: str, cells: Iterable[CellResult]) -> tuple[Cell, Cell]:
    """Return the first cell of a row, and the cell shown for missing values."""
    seeds: dict[str, list[str]] = {}
    for cell in cells:
        seeds.setdefault(cell.status, []).append(str(cell.seed))
    detail = pluralize(sum(map(len, seeds.values())), "seed")
    done = len(seeds.pop(DONE, ()))
    if not seeds:
        return Cell(name, detail), Cell("–", style="incomplete")
    incomplete = [f"seed {', '.join(each)} {status}" for status, each in seeds.items()]
    detail = "; ".join([f"{done} of {detail}", *incomplete])
    return Cell(name, detail, style="partial"), Cell(
        "–" if done else next(iter(seeds)), style="incomplete"
    )


def _mean_cell(line: Line) -> Cell:
    style = "significant" if is_significant(line) else ""
    return Cell(format_mean(line), format_difference(line), style=style)


def _published_texts(ablation: Ablation, number: str, numbers: Sequence[str]) -> dict[str, str]:
    """Format the published values that belong to a table, by row."""
    texts: dict[str, list[str]] = {}
    for published in ablation.published:
        finetuned = "3" in numbers and str(published.get("protocol", "")).endswith("views")
        if number == ("3" if finetuned else numbers[0]):
            texts.setdefault(published["name"], []).append(_format_published(published))
    return {name: "; ".join(parts) for name, parts in texts.items()}


def _format_published(published: Mapping[str, Any]) -> str:
    parts = []
    if published.get("value") is not None:
        parts.append(f"{100 * published['value']:.1f} %")
    if published.get("difference") is not None:
        other = " / ".join((published.get("against") or {}).values()) or "the baseline"
        parts.append(f"{format_signed(100 * published['difference'])} points vs. {other}")
    if published.get("note"):
        parts.append(published["note"])
    measure = f"{published.get('protocol', '')}, {published.get('metric', '')}".strip(", ")
    source = "; ".join(text for text in (published.get("source"), measure) if text)
    return f"{', '.join(parts)} ({source})"


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
