"""Results of an ablation: a table of all of them, means over seeds, differences of rows, verdicts on claims."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from crosspair.errors import RunError
from crosspair.evaluation.results import Result, read_results
from crosspair.reporting.run_report import read_history, smooth_series
from crosspair.reporting.tables import COLUMN_FIELDS, TABLE_TITLES, Column, results_frame, sort_columns

ABLATION, RESULTS_TABLE = "ablation.json", "results.parquet"
DONE = "done"
STEPS = ("pretrain", "evaluate", "finetune")
RESULT_FIELDS = [
    "of", "protocol", "metric", "feature", "split", "value", "low", "high", "count", "settings", "correct", "tested",
    "recipe", "model", "manifest", "manifest_file", "commit", "created", "cpu", "cores", "memory", "torch", "device",
]  # fmt: skip
"""Fields of `crosspair.evaluation.Result` (``settings`` as JSON), of its provenance, and of the machine. ``correct``
and ``tested`` are numbers of videos by recording, as JSON, of a top-1 accuracy."""
MEAN_FIELDS = [
    "row", "of", *COLUMN_FIELDS, "value", "deviation", "seeds", "difference", "error", "low", "high",
]  # fmt: skip
EFFECT = 0.02  # difference that a claim without a published one must exceed to be testable
_CURVES = ("text_to_video_R@1", "text_to_video_R@5", "text_to_video_R@10", "video_to_text_R@10", "mrr", "loss")
_POINTS = 60  # maximum number of points of a curve of the training
REFERENCES = ("random weights", "chance")
_ROUNDING = 1e-9  # standard errors below this are rounding errors of equal differences

Line = Mapping[str, Any]  # a row of `Ablation.means`


@dataclass(frozen=True)
class Ablation:
    """An ablation's plan and results."""

    plan: Mapping[str, Any]  # content of plan.yaml
    table: pd.DataFrame  # see `collect_results`

    @cached_property
    def results(self) -> pd.DataFrame:
        """The results of the rows, without those of the tuning and learning curves."""
        return self.table[~self.table.tuning.astype(bool) & self.table.clips_seen.isna()]

    @property
    def curves(self) -> pd.DataFrame:
        """The learning curves of the rows."""
        return self.table[~self.table.tuning.astype(bool) & self.table.clips_seen.notna()]

    @property
    def baseline(self) -> str:
        """Name of the row that the others are compared with."""
        return self.row_name(self.plan["first"])

    @property
    def cells(self) -> pd.DataFrame:
        """The first row of ``results`` of each cell."""
        return self.results.drop_duplicates(["row", "seed"])

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
        """Values of single seeds, with the columns row, of, column, seed, value, correct and tested.

        The rows of random weights and chance, which do not depend on the row of the plan, are those of the first
        row that has them, and are named after their subject.
        """
        done = self.results[self.results.protocol.notna()]
        frames = [results_frame([], row="", seed=0)]
        for (row, seed), lines in done.groupby(["row", "seed"], sort=False):
            results = [
                Result(
                    x.protocol, x.metric, x.value, x.of, x.split, x.feature, settings=json.loads(x.settings),
                    details={"correct": x.correct, "tested": x.tested},
                )
                for x in lines.itertuples()
            ]  # fmt: skip
            frames.append(results_frame(results, row=row, seed=seed))
        values = pd.concat(frames)[["row", "of", "column", "seed", "value", "correct", "tested"]]
        values = values.drop_duplicates(["row", "of", "column", "seed"], keep="last")
        values = values.sort_values("row", key=lambda rows: rows.map(self.rows.index), kind="stable")
        first = values.groupby(["of", "column"], sort=False).row.transform("first")
        repeated = (values.of == "chance") & values.duplicated(["of", "column"])
        values = values[(values.of == "trained") | ((values.row == first) & ~repeated)]
        return values.assign(row=values.row.where(values.of == "trained", values.of))

    @cached_property
    def seed_values(self) -> dict[tuple[Column, str], pd.DataFrame]:
        """Lines of `values` by column and row, with the seed as index."""
        groups = self.values.groupby(["column", "row"], sort=False)
        return {key: group.set_index("seed").astype({"value": float}) for key, group in groups}

    @cached_property
    def means(self) -> pd.DataFrame:
        """Means over seeds of every row and reference, in the order of the tables.

        The columns are `MEAN_FIELDS`: ``value`` with its sample standard ``deviation`` over ``seeds``, and the
        `difference` to the baseline; also ``column``, and ``complete``, whether the row has all seeds that any row
        has. Fields that do not apply are None.
        """
        trained = self.values[self.values.of == "trained"]
        numbers = list(TABLE_TITLES)
        columns = sorted(sort_columns(trained.column), key=lambda column: numbers.index(column.table))
        measured = trained.groupby("column", sort=False).seed.nunique()
        lines = []
        for column, row in product(columns, [*self.rows, *REFERENCES]):
            if (column, row) not in self.seed_values:
                continue
            seeds = self.seed_values[column, row].value
            line: dict[str, Any] = {"row": row, "of": row if row in REFERENCES else "trained", "column": column}
            line |= asdict(column) | {"value": seeds.mean(), "deviation": seeds.std(), "seeds": len(seeds)}
            line["complete"] = len(seeds) == measured[column]
            if row not in {self.baseline, *REFERENCES}:
                line |= self.difference({row: 1, self.baseline: -1}, column)
            lines.append(line)
        return _replace_nan(pd.DataFrame(lines, columns=[*MEAN_FIELDS, "column", "complete"], dtype=object))

    def difference(self, weights: Mapping[str, float], column: Column) -> dict[str, float]:
        """Estimate a weighted sum of rows over the seeds that all have, see `estimate_difference`; {} if none have."""
        rows = {row: self.seed_values.get((column, row)) for row in weights}
        found = {row: frame for row, frame in rows.items() if frame is not None}
        if len(found) < len(weights):
            return {}
        weight = np.array(list(weights.values()))
        seeds = pd.concat([frame.value for frame in found.values()], axis=1, join="inner")
        differences = seeds.to_numpy() @ weight
        tested = {each for frame in found.values() for each in frame.tested[seeds.index]}
        if len(tested) != 1 or None in tested:
            return estimate_difference(differences)
        correct = [[json.loads(each) for each in frame.correct[seeds.index]] for frame in found.values()]
        by_recording = weight @ np.mean(correct, axis=1)  # (R,), from (rows, seeds, R)
        return estimate_difference(differences, by_recording, np.array(json.loads(tested.pop())))

    def row_name(self, row: Mapping[str, str]) -> str:
        """Format a row of the plan, e.g. "words / frozen"."""
        return " / ".join(row[axis] for axis in self.plan["axes"])

    def count(self, status: str) -> int:
        """Count the cells of a status: "done", "failed", "missing" or "waiting"."""
        return int((self.cells.status == status).sum())

    def column_means(self, column: Column) -> list[Line]:
        """Return the means of a column, in the order of the rows."""
        lines: list[Line] = self.means[self.means.column == column].to_dict("records")
        return lines


def is_ablation(folder: Path) -> bool:
    """Whether a folder was written by ``crosspair ablate``, with its cells or only with the table of their results."""
    return (folder / ABLATION).is_file() or (folder / RESULTS_TABLE).is_file()


def read_ablation(folder: Path) -> Ablation:
    """Read a folder of ``crosspair ablate``: its cells, or else ``results.parquet``.

    Raises:
        RunError: a file is missing or damaged.
    """
    try:
        if (folder / ABLATION).is_file():
            table = collect_results(folder)
        else:
            table = pd.read_parquet(folder / RESULTS_TABLE, dtype_backend="numpy_nullable")
        ablation = Ablation(table.attrs["plan"], _replace_nan(table))
        if ablation.baseline not in set(ablation.results.row):
            raise LookupError(f"the baseline {ablation.baseline!r} has no cell")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(
            f"{folder}: {ABLATION} or {RESULTS_TABLE} is missing or damaged ({type(error).__name__}: {error}). "
            'Run the same "crosspair ablate" command again to rewrite them.'
        ) from error
    return ablation


def write_results_table(ablation: Ablation, path: Path) -> None:
    """Write all results and the plan, enough for `read_ablation`, as Parquet."""
    table = ablation.table.copy()
    table.attrs = {"plan": ablation.plan}
    table.to_parquet(path, compression="zstd", index=False)


def collect_results(folder: Path) -> pd.DataFrame:
    """Collect the results of all cells of a folder of ``crosspair ablate``, as written to ``results.parquet``.

    Returns:
        A row per result, per point of a learning curve, and per cell that is not done. ``row`` is the name of the
        plan's row, ``axis.NAME`` its value on each axis, ``tuning`` whether the cell was trained to choose values,
        ``grid`` the values tried or chosen, as JSON, ``cell`` the cell's folder, ``job`` all its settings as JSON,
        ``clips`` those seen in pre-training, and ``pretrain_s``, ``evaluate_s`` and ``finetune_s`` durations. A cell
        whose results cannot be read is "failed". The other columns are those of `RESULT_FIELDS`; they are None if the
        cell is not done. Points of a learning curve have ``clips_seen``, and ``protocol`` "training" or "validation".
        The attribute "plan" has the plan.
    """
    summary = json.loads((folder / ABLATION).read_text(encoding="utf-8"))
    lines: list[dict[str, Any]] = []
    names: dict[str, Any] = {}
    for cell in summary["cells"]:
        run = folder / cell["folder"]
        names = {"row": " / ".join(cell["row"].values())}
        names |= {f"axis.{axis}": value for axis, value in cell["row"].items()}
        names |= {key: cell[key] for key in ("seed", "tuning", "status", "error", "clips", "pairs")}
        names |= {"cell": cell["folder"], "grid": json.dumps(cell["grid"]), "job": _read_job(run / "job.json")}
        names |= {f"{step}_s": cell["seconds"].get(step) for step in STEPS}
        found: list[dict[str, Any]] = [{}]
        if cell["status"] == DONE:
            try:
                results, origin = read_results(run / "results.json")
                found = [{**_flatten(result), **vars(origin), **vars(origin.machine)} for result in results]
            except RunError as error:
                names |= {"status": "failed", "error": str(error)}
        lines += [names | fields for fields in found]
        lines += [names | fields for fields in _curve_points(run, cell.get("views", 1)) if cell["status"] != "waiting"]
    table = _replace_nan(pd.DataFrame(lines, columns=[*names, *RESULT_FIELDS, "clips_seen"], dtype=object))
    table.attrs["plan"] = summary["plan"]
    return table


def _read_job(file: Path) -> str | None:
    """Return the settings of a cell as JSON, without paths of this machine; None if it was never started."""
    if not file.is_file():
        return None
    job = json.loads(file.read_text(encoding="utf-8"))
    return json.dumps({key: value for key, value in job.items() if key != "paths"})


def _flatten(result: Result) -> dict[str, Any]:
    low, high = result.interval or (None, None)
    settings = json.dumps(result.settings, ensure_ascii=False)
    found, counts = result.by_recording, {}
    if found and len(found.tested) == 1:  # a single test, not the mean of several
        counts = {"correct": json.dumps(found.correct[0]), "tested": json.dumps(found.tested[0])}
    return {**vars(result), **counts, "settings": settings, "low": low, "high": high}


def _curve_points(run: Path, views: int) -> Iterator[dict[str, Any]]:
    """Yield the points of a cell's learning curves: retrieval on the validation pairs, and the training loss."""
    history = read_history(run)
    last = (history.train or [{}])[-1]
    if last.get("pairs") and last["epoch"]:
        for protocol, lines in (("validation", history.validation), ("training", history.train)):
            for metric in _CURVES:
                curve = smooth_series(metric, lines, metric)
                for epoch, value in curve[:: max(1, len(curve) // _POINTS)].items():
                    clips = round(views * epoch * last["pairs"] / last["epoch"])
                    yield {"of": "trained", "protocol": protocol, "metric": metric, "value": value, "clips_seen": clips}


def _replace_nan(frame: pd.DataFrame) -> pd.DataFrame:
    """Replace NaN by None."""
    return frame.astype(object).where(frame.notna(), None)


def estimate_difference(
    seeds: NDArray[np.float64], correct: NDArray[np.float64] | None = None, tested: NDArray[np.int64] | None = None
) -> dict[str, float]:
    """Estimate a mean difference of accuracies from that of each seed and, if known, of each recording of test videos.

    Seeds and test videos are samples: the variance of the mean over seeds, e_s², and that over test videos, e_v², add
    up. Clips of a recording are alike; recordings are independent.

    Args:
        seeds: (S,) differences.
        correct: (R,) differences of the numbers of correctly classified videos of a recording, means over seeds; None
            to neglect the variance over test videos.
        tested: (R,) numbers of videos of each recording.

    Returns:
        The mean ``difference``; with two seeds, its standard ``error``, √(e_s² + e_v²), and its 95 % interval ``low``
        and ``high``, ± √((t e_s)² + (1.96 e_v)²), with the quantile t of Student's t-distribution. No interval if the
        difference is the same for every seed and e_v is not known. Empty without seeds.
    """
    if not len(seeds):
        return {}
    found = {"difference": float(seeds.mean())}
    if len(seeds) == 1:
        return found
    over_seeds, over_videos = float(seeds.std(ddof=1)) / math.sqrt(len(seeds)), 0.0
    if correct is not None and tested is not None:
        residuals = correct - tested * correct.sum() / tested.sum()
        over_videos = math.sqrt((residuals**2).sum() * len(tested) / max(1, len(tested) - 1)) / float(tested.sum())
    elif over_seeds < _ROUNDING:
        return found | {"error": 0.0}
    half = math.hypot(stats.t.ppf(0.975, len(seeds) - 1) * over_seeds, stats.norm.ppf(0.975) * over_videos)
    low, high = found["difference"] - half, found["difference"] + half
    return found | {"error": math.hypot(over_seeds, over_videos), "low": low, "high": high}


def is_significant(line: Line) -> bool:
    """Whether the interval of a difference excludes zero."""
    return line.get("low") is not None and not line["low"] <= 0 <= line["high"]


class ClaimVerdict(NamedTuple):
    """A claim of the plan, its verdict, and the differences of its rows by headline column."""

    claim: Mapping[str, Any]
    verdict: str
    decisive: Column | None  # None if its protocol was not measured
    differences: Mapping[Column, Line]


def judge_claims(ablation: Ablation) -> list[ClaimVerdict]:
    """Test the plan's claims by `crosspair.reporting.ablation_tables.RULE`."""
    judged = []
    for claim in ablation.plan.get("claims") or ():
        differences = {column: ablation.difference(claim["rows"], column) for column in headline_columns(ablation)}
        measured = [each for each in differences if each.protocol == claim["protocol"] and differences[each]]
        decisive = measured[0] if measured else None
        verdict = "not measured"
        if decisive:
            means = {line["row"]: line["value"] for line in ablation.column_means(decisive)}
            learned = max(means[row] for row in claim["rows"]) > means.get("random weights", 0)
            effect = EFFECT if claim["difference"] is None else claim["difference"]
            low, high = (differences[decisive].get(end) for end in ("low", "high"))
            verdict = "not testable at this size"
            if "error" not in differences[decisive]:
                verdict = "not testable with one seed"
            elif learned and low is not None and high is not None:
                verdict = "supported" if low > 0 else "not supported" if high < effect else verdict
        judged.append(ClaimVerdict(claim, verdict, decisive, differences))
    return judged


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
