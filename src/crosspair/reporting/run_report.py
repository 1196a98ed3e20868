"""The page of a training run: results, examples, learning curves and recipe, all read from its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crosspair.config import FinetuneRecipe, Recipe
from crosspair.errors import CrosspairError, RunError
from crosspair.evaluation.results import Result, chance_result, read_results
from crosspair.files import read_jsonl, write_atomically
from crosspair.models.hub import CONFIG_FILE
from crosspair.recipes import read_any_recipe, recipe_hash
from crosspair.reporting.examples import ContactSheet, Examples, load_examples
from crosspair.reporting.figures import (
    FAINT,
    SERIES,
    Curve,
    draw_lines,
    encode_png,
    figure_style,
    label_rows,
    replace_missing_glyphs,
    svg_figure,
)
from crosspair.reporting.tables import (
    ReportTable,
    TableCell,
    compare_with_baselines,
    format_comparison,
    other_models,
    render_page,
)
from crosspair.training.finetune import RESULTS_FILE
from crosspair.training.run import METRICS, MODEL, ORIGIN, RECIPE

Line = dict[str, Any]
Texts = Sequence[tuple[str, str]]  # names and values
_DIRECTIONS = {"text → video": "text_to_video", "video → text": "video_to_text"}
_POINTS = 400  # maximum number of points of a line
_POSTERIOR_CAPTION = (
    "Probability that a video and a title are a pair, as defined by the objective (nce: h of "
    "Equation 5; softmax: the class probability). True pairs should rise, noise stay near zero."
)
_WIDTH, _CHARTS, _QUERY = 8.0, 2.7, 0.98  # in: figure width, height of the charts and of a query
_DPI = 200  # text of 10 points stays readable at half the size
_BARS, _STRIPS = 6, 3  # maximum number of measurements, and of clips per query


@dataclass(frozen=True)
class History:
    """Lines of ``metrics.jsonl`` by kind, in the order of steps."""

    train: Sequence[Line] = ()  # means since the previous line: loss, posteriors, speed, …
    validation: Sequence[Line] = ()
    events: Sequence[Line] = ()  # changes of the training, e.g. the start of stage II
    pairs: Sequence[Line] = ()  # numbers of pairs at the beginning, of unreadable ones at the end

    @property
    def stage2_epoch(self) -> float | None:
        """Epoch at which stage II (training of the language model) begins; None without it."""
        return next((float(line["epoch"]) for line in self.events if line.get("event") == "stage II begins"), None)

    @property
    def validation_pairs(self) -> int | None:
        """Number of validation pairs; None if unknown."""
        return self.validation[-1].get("pairs") if self.validation else None


def read_history(run: Path) -> History:
    """Read the history of a run, empty if it has not started.

    Incomplete lines of a killed run are skipped. If a step occurs several times because the run
    was resumed, its last line is used.
    """
    latest = {
        (line["kind"], line["step"], line.get("event"), line.get("pair_id")): line
        for line in read_jsonl(run / METRICS)
        if isinstance(line, dict) and {"kind", "step", "epoch"} <= line.keys()
    }
    lines = sorted(latest.values(), key=lambda line: float(line["step"]))
    kinds = ("train", "validation", "event", "pairs")
    return History(*([line for line in lines if line["kind"] == kind] for kind in kinds))


@dataclass(frozen=True)
class TrainedRun:
    """A run folder: recipe, ``manifest.json`` (empty if unreadable) and history."""

    path: Path
    recipe: Recipe | FinetuneRecipe
    inputs: Mapping[str, str]
    history: History

    @property
    def manifest(self) -> str:
        """File name of the manifest, if known, and its hash."""
        file = Path(self.inputs.get("file", "")).name
        return f"{file} {self.inputs.get('manifest', '')}".strip() or "an unknown manifest"

    @property
    def chance(self) -> float | None:
        """Accuracy of random guesses of a fine-tuned classifier; None if unknown."""
        with suppress(OSError, ValueError, LookupError):
            return 1 / len(json.loads((self.path / MODEL / CONFIG_FILE).read_text(encoding="utf-8"))["classes"])
        return None

    def describe(self) -> str:
        """Describe progress and data in a sentence."""
        history = self.history
        lines = [*history.train, *history.validation, *history.events, *history.pairs]
        epochs = max((float(line["epoch"]) for line in lines), default=0.0)
        state = "Finished" if any("failed" in line for line in history.pairs) else "Not finished"
        return f"{state} after {epochs:.3g} of {self.recipe.training.epochs} epochs on {self.manifest}."

    def facts(self) -> Texts:
        """Return the numbers of pairs, clips seen and unreadable videos, and the speed."""
        counts, train = (self.history.pairs or [{}])[0], (self.history.train or [{}])[-1]
        speeds = finite_values(self.history.train, "clips_per_second")
        skipped = {line["pair_id"] for line in self.history.events if "pair_id" in line}
        facts = {
            "Training pairs": counts.get("train"), "Validation pairs": counts.get("val"),
            "Clips seen": train.get("pairs"), "Clips per second": round(speeds.median()) if len(speeds) else None,
            "Unreadable videos": len(skipped) or None,
        }  # fmt: skip
        return [(name, f"{value:,}") for name, value in facts.items() if value is not None]

    def origin(self) -> Texts:
        """Return what the training started from."""
        weights = self.inputs.get("init") or self.inputs.get("start") or "unknown"
        recipe, seed = recipe_hash(self.recipe), str(self.recipe.training.seed)
        return [("recipe", recipe), ("initial weights", weights), ("manifest", self.manifest), ("seed", seed)]


def read_run(path: Path) -> TrainedRun:
    """Read a run folder.

    Raises:
        RunError: it is not a run folder.
        RecipeError: its recipe is invalid.
    """
    file = path / RECIPE
    if not file.is_file():
        raise RunError(f"{path} contains no {RECIPE}: it is not a run folder")
    recipe = read_any_recipe(str(file))
    inputs: dict[str, str] = {}
    with suppress(OSError, ValueError, TypeError):
        inputs |= json.loads((path / ORIGIN).read_text(encoding="utf-8"))
    return TrainedRun(path, recipe, inputs, read_history(path))


def write_run_report(
    run: str | os.PathLike[str],
    *,
    folder: Path | None = None,
    title: str = "",
    summary: str = "",
    facts: Texts = (),
    examples: Examples | None = None,
) -> Path:
    """Write ``report.html`` of a pre-training or fine-tuning, finished or not, from the files of its folder.

    The page has the results (``results.json``, or the last validation), outputs of the model for at
    most 200 validation videos, the learning curves and the recipe. Random generators are left unchanged.

    Args:
        run: a run folder, or the folder of a fine-tuning over official splits; of the latter, the
            reports of the splits are written too.
        folder: of ``results.json`` and the report, if it is not ``run``.
        title, summary, facts: heading, paragraph and numbers to show, if not those of the training.
        examples: outputs to show; None: of the validation videos.

    Returns:
        The path of the page.

    Raises:
        RunError: the folder contains no run, or the report cannot be written.
    """
    run = Path(run)
    page = (folder or run) / "report.html"
    parts = [] if (run / RECIPE).is_file() else sorted(run.glob(f"split*/{RECIPE}"))
    splits = [read_run(part.parent) for part in parts]
    trained = splits[0] if splits else read_run(run)
    links = [(f"{each.path.name}: {each.describe()}", f"{each.path.name}/{page.name}") for each in splits]
    for each in splits:
        write_run_report(each.path)
    results, origin, notes = _read_results(page.with_name(RESULTS_FILE))
    if not results and not splits and (results := _validation_results(trained)):
        notes.append("The model has not been tested: the results are those of the last validation.")
    if not examples and not splits:
        try:
            examples = load_examples(trained.path, trained.recipe, trained.inputs)
        except CrosspairError as error:
            notes.append(f"No examples: {error}.")
    kind = "Pre-training" if isinstance(trained.recipe, Recipe) else "Fine-tuning"
    content = render_page(
        "run.html", title=title or f"{kind} “{run.resolve().name}”",
        summary=summary or ("" if splits else trained.describe()),
        facts=facts or ([] if splits else trained.facts()), links=links, notes=notes,
        table=_results_table(results), examples=examples,
        curves=[] if splits else learning_curves(trained.history, trained.chance),
        origin=origin or trained.origin(), recipe=(trained.path / RECIPE).read_text(encoding="utf-8"),
    )  # fmt: skip
    write_atomically(page, content)
    return page


def _read_results(path: Path) -> tuple[list[Result], Texts, list[str]]:
    """Return the results of a file and their provenance, both empty if there are none, and the reason if unreadable."""
    if not path.exists():
        return [], [], []
    try:
        results, origin = read_results(path)
    except RunError as error:
        return [], [], [f"No results: {error}."]
    machine = origin.machine
    return results, [
        ("recipe", origin.recipe or "unknown"), ("weights", origin.model), ("manifest", origin.data),
        ("commit", origin.commit or "unknown"), ("seed", str(origin.seed)),
        ("processor", f"{machine.cpu}, {machine.cores} cores, {machine.memory} GiB"), ("device", machine.device),
        ("PyTorch", machine.torch), ("created", origin.created),
    ], []  # fmt: skip


def _validation_results(run: TrainedRun) -> list[Result]:
    """Return the last validation as results of split val, with those of chance."""
    values = (run.history.validation or [{}])[-1]
    count = values.get("pairs") or values.get("videos") or 0
    measured = {
        f"{key}_R@{k}": (f"retrieval {way.replace(' ', '')}", f"R@{k}", min(1.0, k / max(count, 1)))
        for way, key in _DIRECTIONS.items() for k in (1, 5, 10)
    } | {"top-1": ("1 view", "top-1", run.chance)}  # fmt: skip
    results = []
    for key, (protocol, metric, chance) in measured.items():
        if key in values:
            results.append(Result(protocol, metric, values[key], "trained", split="val", count=count))
            results += [] if chance is None else [chance_result(results[-1], chance)]
    return results


def _results_table(results: Sequence[Result]) -> ReportTable:
    """Build the table of results compared with chance and, if measured, random weights and other models."""
    frame, others = compare_with_baselines(results), other_models(results)
    titles = [
        TableCell("chance"), TableCell("random", "weights"), *map(TableCell, others), TableCell("trained"),
        TableCell("×", "chance"), TableCell("×", "random"),
    ]  # fmt: skip
    without_random = [i for i in range(len(titles)) if i not in (1, len(titles) - 1)]
    shown = without_random if frame.random.isna().all() else range(len(titles))
    rows = []
    for row in frame.itertuples():
        *values, trained, interval, over_chance, over_random = format_comparison(row, others)
        split = row.split if row.count is None else f"{row.count:,} of {row.split}"
        detail = "; ".join(filter(None, (row.feature, split, row.settings, row.over)))
        cells = [*map(TableCell, values), TableCell(trained, interval, style="main")]
        cells += map(TableCell, (over_chance, over_random))
        rows.append([TableCell(row.column.title, detail), *(cells[i] for i in shown)])
    remarks = {
        "Below a value is its 95 % bootstrap interval over the videos.": frame.low.notna().any(),
        "Random weights: the same network before training.": 1 in shown,
        "Smaller ranks are better; their ratios are inverted.": any(column.is_rank for column in frame.column),
    }
    head = [TableCell("protocol"), *(titles[i] for i in shown)]
    return ReportTable("results", "Results", head, rows, remark=" ".join(compress(remarks, remarks.values())))


# --- learning curves ----------------------------------------------------------------------------


def learning_curves(history: History, chance: float | None = None) -> list[Curve]:
    """Draw validation recall both ways, accuracy, loss and posteriors over epochs, a figure each if it has values.

    Args:
        history: of the training.
        chance: accuracy of random guesses, drawn as a dotted line.
    """
    pairs, train, validation = history.validation_pairs, history.train, history.validation
    recall = "Fraction of queries whose match is in the top 1, 5 and 10"
    recall += f" among {pairs:,} validation pairs. Dotted: chance." if pairs else "."
    accuracy, loss, posteriors = (
        [smooth_series("training", train, "top-1"), finite_values(validation, "top-1").rename("validation")],
        [smooth_series("training", train, "loss"), finite_values(validation, "loss").rename("validation")],
        [smooth_series("true pairs", train, "posterior_positive"), smooth_series("noise", train, "posterior_noise")],
    )
    figures = [
        *(
            (f"Retrieval, {way}", "recall, %", *retrieval_series(history, key), recall)
            for way, key in _DIRECTIONS.items()
        ),
        ("Accuracy", "top-1, %", accuracy, [chance] if chance else [], "Of single clips. Dotted: chance."),
        ("Loss", "loss", loss, [], "Training loss averaged over neighbouring log lines."),
        ("Posterior of being a pair", "posterior, %", posteriors, [], _POSTERIOR_CAPTION),
    ]
    curves = []
    for title, ylabel, lines, levels, caption in figures:
        shown = [line for line in lines if len(line)]
        draw = partial(
            draw_lines, lines=shown, levels=levels, ylabel=ylabel, percent="%" in ylabel, stage2=history.stage2_epoch
        )
        if shown:
            curves.append(Curve(title, svg_figure(title, draw), caption))
    return curves


def retrieval_series(history: History, direction: str) -> tuple[list[pd.Series], list[float]]:
    """Return R@1, R@5 and R@10 in a direction (text_to_video or video_to_text) over epochs, and those of chance."""
    pairs = history.validation_pairs
    lines = {k: finite_values(history.validation, f"{direction}_R@{k}").rename(f"R@{k}") for k in (1, 5, 10)}
    lines = {k: line for k, line in lines.items() if len(line)}
    return list(lines.values()), [min(1.0, k / pairs) for k in lines] if pairs else []


def smooth_series(name: str, lines: Sequence[Line], key: str) -> pd.Series:
    """Average a quantity by epoch over windows of 1/50 of the history, thinned to fewer than 800 points."""
    values = finite_values(lines, key).rename(name)
    smooth = values.rolling(2 * (len(values) // 100) + 1, center=True, min_periods=1).mean()
    points = np.arange(len(values))
    return smooth[(points % max(1, len(values) // _POINTS) == 0) | (points == len(values) - 1)]


def finite_values(lines: Sequence[Line], key: str) -> pd.Series:
    """Return a quantity by epoch; lines without a finite value are skipped."""
    epochs = [float(line["epoch"]) for line in lines]
    values = pd.Series([line.get(key) for line in lines], index=epochs, dtype=float)
    return values[np.isfinite(values)]


# --- overview -----------------------------------------------------------------------------------


def overview_figure(results: Sequence[Result], history: History, sheets: Sequence[ContactSheet] = ()) -> bytes:
    """Draw the overview of a run for a README.

    Left: retrieval on validation pairs over epochs. Right: the first six accuracies of the trained
    network, random weights and chance. Below: for each query, frames of its first three clips.

    Returns:
        A PNG, 1600 pixels wide, on white.
    """
    frame = compare_with_baselines(results)
    frame = frame[frame.trained.notna() & ~frame.column.map(lambda column: column.is_rank).astype(bool)][:_BARS]
    lines, levels = retrieval_series(history, "text_to_video")
    with figure_style():
        size = (_WIDTH, _CHARTS + _QUERY * len(sheets))
        figure = Figure(size, dpi=_DPI, facecolor="white", layout="constrained")
        heights = [_CHARTS, *[_QUERY] * len(sheets)]
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
        charts, *queries = parts[:, 0]
        left, right = charts.subplots(1, 2)
        draw_lines(
            left, lines, "text → video recall, % (dotted: chance)", levels=levels, percent=True,
            stage2=history.stage2_epoch,
        )  # fmt: skip
        _draw_bars(right, frame)
        for row, sheet in zip(queries, sheets, strict=True):
            row.suptitle(f"“{replace_missing_glyphs(sheet.query)}”", x=0.02, ha="left", parse_math=False)
            for axes, tile in zip(row.subplots(1, _STRIPS), sheet.tiles, strict=False):
                axes.imshow(tile.strip(), interpolation="lanczos")
                sign, colour = ("✓", SERIES[2]) if tile.correct else ("✗", SERIES[1])
                axes.set_title(sign, loc="right", color=colour, fontsize="small", pad=2)
        for axes in (axes for row in queries for axes in row.axes):
            axes.set_axis_off()
        return encode_png(figure)


def _draw_bars(axes: Axes, frame: pd.DataFrame) -> None:
    """Draw a group of bars per measurement; the feature is named only where the same quantity has several."""
    ambiguous = frame.duplicated(["protocol", "metric"], keep=False) & (frame.feature != "")
    titles = frame.protocol.str.removeprefix("retrieval ") + ", " + frame.metric
    titles = titles.where(~ambiguous, titles + " (" + frame.feature + ")")
    subjects = {"trained": ("trained", SERIES[0]), "random": ("random weights", "#8fa3b3"), "chance": ("chance", FAINT)}
    for offset, (subject, (label, colour)) in enumerate(subjects.items()):
        values = 100 * frame[subject].astype(float)
        bars = axes.barh(np.arange(len(frame)) + 0.27 * (offset - 1), values.fillna(0), 0.25, color=colour, label=label)
        if subject == "trained":
            axes.bar_label(bars, values.map("{:.0f}".format), padding=3, color=colour, fontsize="small")
    label_rows(axes, titles.tolist())
    axes.grid(visible=False)
    axes.set_title(f"{' and '.join(frame.split.unique())} split, %", loc="left", fontsize="medium")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.3, 0), ncols=3, frameon=False, fontsize="small",
        handlelength=0.9, handletextpad=0.4, columnspacing=1.0,
    )  # fmt: skip
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
