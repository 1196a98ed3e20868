"""Results of an ablation: a table of all of them, means over seeds, differences to the baseline, findings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from crosspair.errors import RecipeError, RunError
from crosspair.evaluation.results import Result, read_results
from crosspair.files import read_yaml
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

ABLATION, PLAN, RESULTS_TABLE = "ablation.json", "plan.yaml", "results.parquet"
DONE = "done"
STEPS = ("pretrain", "evaluate", "finetune")
RESULT_FIELDS = [
    "of", "protocol", "metric", "feature", "split", "value", "low", "high", "count", "settings", "details",
    "recipe", "model", "manifest", "manifest_file", "commit", "created", "cpu", "cores", "memory", "torch", "device",
]  # fmt: skip
"""Fields of `crosspair.evaluation.Result` (the last two as JSON), of its provenance, and of the machine."""
MEAN_FIELDS = [
    "row", "of", *COLUMN_FIELDS, "value", "deviation", "seeds", "difference", "error", "low", "high",
]  # fmt: skip
_FEW_SEEDS = 5
_REFERENCES = ("random weights", "chance")
_ROUNDING = 1e-9  # standard errors below this are rounding errors of equal differences

Line = Mapping[str, Any]  # a row of `Ablation.means`


@dataclass(frozen=True)
class Ablation:
    """An ablation's plan and results."""

    plan: Mapping[str, Any]  # content of plan.yaml
    results: pd.DataFrame  # see `collect_results`

    @property
    def baseline(self) -> str:
        """Name of the row that the others are compared with."""
        return self.row_name(self.plan["first"])

    @property
    def cells(self) -> pd.DataFrame:
        """The first row of ``results`` of each cell."""
        return self.results.drop_duplicates("cell")

    @property
    def rows(self) -> list[str]:
        """Names of the rows, the baseline first, then in the plan's order."""
        return list(dict.fromkeys([self.baseline, *self.results.row]))

    @property
    def seeds(self) -> int:
        """Number of seeds per row."""
        return int(self.results.seed.nunique())

    @cached_property
    def values(self) -> pd.DataFrame:
        """Values of single seeds, with the columns row, of, column, seed and value.

        The rows of random weights and chance, which do not depend on the row of the plan, are those of the first
        row that has them, and are named after their subject.
        """
        done = self.results[self.results.protocol.notna()]
        frames = [results_frame([], row="", seed=0)]
        for (row, seed), lines in done.groupby(["row", "seed"], sort=False):
            results = [
                Result(x.protocol, x.metric, x.value, x.of, x.split, x.feature, settings=json.loads(x.settings))
                for x in lines.itertuples()
            ]
            frames.append(results_frame(results, row=row, seed=seed))
        values = pd.concat(frames)[["row", "of", "column", "seed", "value"]]
        values = values.drop_duplicates(["row", "of", "column", "seed"], keep="last")
        values = values.sort_values("row", key=lambda rows: rows.map(self.rows.index), kind="stable")
        first = values.groupby(["of", "column"], sort=False).row.transform("first")
        repeated = (values.of == "chance") & values.duplicated(["of", "column"])
        values = values[(values.of == "trained") | ((values.row == first) & ~repeated)]
        return values.assign(row=values.row.where(values.of == "trained", values.of))

    @cached_property
    def means(self) -> pd.DataFrame:
        """Means over seeds of every row and reference, in the order of the tables.

        The columns are `MEAN_FIELDS`: ``value`` with its sample standard ``deviation`` over ``seeds``, and the
        `paired_difference` to the baseline; also ``column``, and ``complete``, whether the row has all seeds that any
        row has. Fields that do not apply are None.
        """
        trained = self.values[self.values.of == "trained"]
        numbers = list(TABLE_TITLES)
        columns = sorted(sort_columns(trained.column), key=lambda column: numbers.index(column.table))
        measured = trained.groupby("column", sort=False).seed.nunique()
        groups = {
            key: group.set_index("seed").value.astype(float)
            for key, group in self.values.groupby(["column", "row"], sort=False)
        }
        lines = []
        for column, row in product(columns, [*self.rows, *_REFERENCES]):
            seeds, baseline = groups.get((column, row)), groups.get((column, self.baseline))
            if seeds is None:
                continue
            line: dict[str, Any] = {"row": row, "of": row if row in _REFERENCES else "trained", "column": column}
            line |= asdict(column) | {"value": seeds.mean(), "deviation": seeds.std(), "seeds": len(seeds)}
            line["complete"] = len(seeds) == measured[column]
            if baseline is not None and row not in {self.baseline, *_REFERENCES}:
                line |= paired_difference(seeds, baseline)
            lines.append(line)
        return _replace_nan(pd.DataFrame(lines, columns=[*MEAN_FIELDS, "column", "complete"], dtype=object))

    def row_name(self, row: Mapping[str, str]) -> str:
        """Format a row of the plan, e.g. "words / frozen"."""
        return " / ".join(row[axis] for axis in self.plan["axes"])

    def count(self, status: str) -> int:
        """Count the cells of a status: "done", "failed" or "missing"."""
        return int((self.cells.status == status).sum())

    def column_means(self, column: Column) -> list[Line]:
        """Return the means of a column, in the order of the rows."""
        lines: list[Line] = self.means[self.means.column == column].to_dict("records")
        return lines


def is_ablation(folder: Path) -> bool:
    """Whether a folder was written by ``crosspair ablate``, with its cells or only with the table of their results."""
    return (folder / ABLATION).is_file() or (folder / RESULTS_TABLE).is_file()


def read_ablation(folder: Path) -> Ablation:
    """Read a folder of ``crosspair ablate``: ``plan.yaml``, and its cells or else ``results.parquet``.

    Raises:
        RunError: a file is missing or damaged.
    """
    try:
        if (folder / ABLATION).is_file():
            results = collect_results(folder)
        else:
            results = _replace_nan(pd.read_parquet(folder / RESULTS_TABLE, dtype_backend="numpy_nullable"))
        ablation = Ablation(read_yaml(folder / PLAN, PLAN), results)
        if ablation.baseline not in set(results.row):
            raise LookupError(f"the baseline {ablation.baseline!r} has no cell")
    except (OSError, RecipeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(
            f"{folder}: {PLAN}, {ABLATION} or {RESULTS_TABLE} is missing or damaged ({type(error).__name__}: {error}). "
            'Run the same "crosspair ablate" command again to rewrite them.'
        ) from error
    return ablation


def collect_results(folder: Path) -> pd.DataFrame:
    """Collect the results of all cells of a folder of ``crosspair ablate``, as written to ``results.parquet``.

    Returns:
        A row per result, and a row per cell that is not done. ``row`` is the name of the plan's row, ``axis.NAME`` its
        value on each axis, ``cell`` the cell's folder, ``clips`` those seen in pre-training, and ``pretrain_s``,
        ``evaluate_s`` and ``finetune_s`` durations. A cell whose results cannot be read is "failed". The other columns
        are those of `RESULT_FIELDS`; they are None if the cell is not done.
    """
    lines: list[dict[str, Any]] = []
    names: dict[str, Any] = {}
    for cell in json.loads((folder / ABLATION).read_text(encoding="utf-8"))["cells"]:
        names = {"row": " / ".join(cell["row"].values())}
        names |= {f"axis.{axis}": value for axis, value in cell["row"].items()}
        names |= {key: cell[key] for key in ("seed", "status", "error", "clips", "pairs")} | {"cell": cell["folder"]}
        names |= {f"{step}_s": cell["seconds"].get(step) for step in STEPS}
        found: list[dict[str, Any]] = [{}]
        if cell["status"] == DONE:
            try:
                results, origin = read_results(folder / cell["folder"] / "results.json")
                found = [{**_flatten(result), **vars(origin), **vars(origin.machine)} for result in results]
            except RunError as error:
                names |= {"status": "failed", "error": str(error)}
        lines += [names | fields for fields in found]
    return _replace_nan(pd.DataFrame(lines, columns=[*names, *RESULT_FIELDS], dtype=object))


def _flatten(result: Result) -> dict[str, Any]:
    low, high = result.interval or (None, None)
    texts = {key: json.dumps(getattr(result, key), ensure_ascii=False) for key in ("settings", "details")}
    return {**vars(result), **texts, "low": low, "high": high}


def _replace_nan(frame: pd.DataFrame) -> pd.DataFrame:
    """Replace NaN by None."""
    return frame.astype(object).where(frame.notna(), None)


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


def headline_columns(ablation: Ablation) -> list[Column]:
    """Select top-1 of each protocol, of the visual feature if it has one, and text-to-video R@10, for charts."""
    columns: list[Column] = list(dict.fromkeys(ablation.means.column))
    visual = {column.protocol for column in columns if column.feature == "visual"}
    top_1 = [
        column for column in columns
        if column.metric == "top-1" and (column.feature == "visual") == (column.protocol in visual)
    ]  # fmt: skip
    recall = ("retrieval text→video", "R@10")
    return [each for each in columns if each in top_1 or (each.protocol, each.metric) == recall]


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


def ablation_tables(ablation: Ablation) -> list[ReportTable]:
    """Build the tables that have values; the last rows are random weights and chance.

    Published values are listed in the table of their protocol, or else in the first table.
    """
    columns: list[Column] = list(dict.fromkeys(ablation.means.column))
    means = {(line["row"], line["column"]): line for line in ablation.means.to_dict("records")}
    numbers = list(dict.fromkeys(column.table for column in columns))
    tables: list[ReportTable] = []
    for number in numbers:
        members = [column for column in columns if column.table == number]
        published: dict[str, list[str]] = {}
        for each in ablation.plan.get("published", ()):
            finetuned = "3" in numbers and str(each.get("protocol", "")).endswith("views")
            if number == ("3" if finetuned else numbers[0]):
                published.setdefault(ablation.row_name(each["row"]), []).append(_format_published(each))
        rows = []
        for name in [*ablation.rows, *_REFERENCES]:
            lines = [means.get((name, column)) for column in members]
            if name in _REFERENCES and not any(lines):
                continue
            row = [_row_head(ablation, name, lines), *(_mean_cell(line) if line else TableCell("–") for line in lines)]
            if published:
                row.append(TableCell("; ".join(published.get(name, ())), style="published-text published"))
            rows.append(row)
        head = [TableCell("row"), *(TableCell(column.title, column.detail) for column in members)]
        if published:
            head.append(TableCell("published", "not measured here", style="published-text"))
        tables.append(ReportTable(f"table{len(tables) + 1}", TABLE_TITLES[number], head, rows))
    return tables


def _row_head(ablation: Ablation, name: str, lines: Sequence[Line | None]) -> TableCell:
    """Return the first cell of a row, with the number of seeds that have results."""
    if name == "chance":
        return TableCell(name, "random guessing", style="reference")
    if name in _REFERENCES:
        seeds = max(line["seeds"] for line in lines if line)
        return TableCell(name, f"{pluralize(seeds, 'seed')}; no pre-training", style="reference")
    status = ablation.cells.status[ablation.cells.row == name]
    done, seeds = int((status == DONE).sum()), pluralize(len(status), "seed")
    return TableCell(name, seeds) if done == len(status) else TableCell(name, f"{done} of {seeds}", style="partial")


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


def describe_findings(ablation: Ablation) -> list[str]:
    """Describe the extent of the ablation, then the best row of each protocol."""
    done, cells = ablation.count(DONE), len(ablation.cells)
    extent = (
        f"{len(ablation.rows)} rows with {pluralize(ablation.seeds, 'seed')} each. Baseline: “{ablation.baseline}”."
    )
    if done < cells:
        failed, missing = ablation.count("failed"), ablation.count("missing")
        extent += f" {done} of {cells} cells are done, {failed} failed, {missing} missing."
    return [extent, *(_describe_column(ablation, column) for column in headline_columns(ablation))]


def describe_uncertainty(ablation: Ablation) -> str:
    """Explain the intervals and how many are expected to exclude zero by chance."""
    compared = ablation.means[ablation.means.low.notna()].to_dict("records")
    if not compared:
        return "No row has two seeds in common with the baseline, so there are no intervals."
    few = (
        f" With {ablation.seeds} seeds, an interval extends {stats.t.ppf(0.975, ablation.seeds - 1):.1f} standard "
        "errors to each side, and the standard errors are rough estimates."
    )
    return (
        "Below each mean: difference to the baseline over the same seeds ± standard error, with the 95 % confidence "
        f"interval (Student's t-distribution).{few if ablation.seeds <= _FEW_SEEDS else ''} Significant (bold) means "
        f"that the interval excludes zero: {sum(map(is_significant, compared))} of {len(compared)} differences. About "
        f"{len(compared) / 20:.0f} would be significant by chance if all rows were equal."
    )


def _describe_column(ablation: Ablation, column: Column) -> str:
    """Describe in words the best row of a column, among those with results for all seeds, and random weights."""
    means = ablation.column_means(column)
    trained = [line for line in means if line["of"] == "trained"]
    complete = [line for line in trained if line["complete"]]
    finetuned = column.protocol.endswith("views")
    text = f"{column.protocol} {column.metric}".removesuffix(" top-1")
    text = f"Fine-tuned, {text}" if finetuned else text
    if complete:
        partial = "" if complete == trained else f" ({len(complete)} rows with all seeds)"
        ranked = sorted(complete, key=lambda line: float(line["value"]), reverse=True)
        text += f"{partial}: {_describe_best(ablation.baseline, ranked)}."
    else:
        text += ": no row has results for all seeds."
    name = "Trained from scratch" if finetuned else "Random weights"
    random = [f" {name}: {format_mean(line)}." for line in means if line["of"] == "random weights"]
    return text + "".join(random)


def _describe_best(baseline: str, ranked: Sequence[Line]) -> str:
    """Describe the best row and its difference to the baseline; if it is the baseline, that of the second."""
    best, *others = ranked
    tied = [f"“{line['row']}”" for line in ranked if line["value"] == best["value"]]
    if len(tied) > 1:
        return f"{', '.join(tied)} are tied at {format_mean(best)}"
    text = f"best is “{best['row']}” with {format_mean(best)}"
    if not others:
        return f"{text}, the only such row"
    compared = best
    if best["row"] == baseline:
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
