"""Report of a training run: history, learning curves, contact sheets, page and overview figure."""

from __future__ import annotations

import io
import json
import math
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
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from crosspair.config import Clip, FinetuneRecipe, Recipe
from crosspair.corpora.build import class_phrase
from crosspair.corpora.manifest import Manifest
from crosspair.distributed import World
from crosspair.errors import CrosspairError, RunError, VideoError
from crosspair.evaluation.features import embed_texts, extract_features, usable_rows
from crosspair.evaluation.multiview import ViewScores, multiview_scores
from crosspair.evaluation.results import Result, chance_result, read_results
from crosspair.files import read_jsonl, read_yaml, write_atomically
from crosspair.models.classifier import Classifier
from crosspair.models.cpd import CPD
from crosspair.models.hub import CONFIG_FILE
from crosspair.provenance import Provenance
from crosspair.recipes import read_recipe, recipe_hash
from crosspair.reporting.figures import (
    FAINT,
    SERIES,
    Curve,
    draw_lines,
    encode_png,
    figure_style,
    replace_missing_glyphs,
    svg_figure,
)
from crosspair.reporting.tables import ReportTable, TableCell, compare_with_baselines, format_comparison, render_page
from crosspair.training.finetune import RESULTS_FILE, select_labelled_videos
from crosspair.training.run import METRICS, MODEL, ORIGIN, RECIPE
from crosspair.video.decode import REFERENCE_FPS, clip_times, read_frames
from crosspair.workers import cpu_count

Line = dict[str, Any]
_POINTS = 400  # maximum number of points of a line
_POSTERIOR_CAPTION = (
    "Probability that a video and a title are a pair, as defined by the objective (nce: h of "
    "Equation 5; softmax: the class probability). True pairs should rise, noise stay near zero."
)
_EXAMPLES = 200  # maximum number of videos to choose examples from, one clip of each
_QUERIES, _TILES = 4, 6  # queries or classes, and clips of each
_FRAMES, _STRIDE = 16, 4  # frames of a clip, and their distance in 1/30 s, as in training
_GREY = (128, 132, 138)
_SEAM = 2  # pixels between the frames of a strip
_WIDTH, _CHARTS, _QUERY = 8.0, 2.7, 0.98  # in: figure width, height of the charts and of a query
_DPI = 200  # text of 10 points stays readable at half the size
_BARS, _STRIPS = 6, 3  # maximum number of measurements, and of clips per query


@dataclass(frozen=True)
class History:
    """Lines of ``metrics.jsonl`` by kind, in the order of steps."""

    train: Sequence[Line] = ()  # means since the previous line: loss, posteriors, speed, …
    validation: Sequence[Line] = ()  # retrieval on the validation pairs
    events: Sequence[Line] = ()  # changes of the training, e.g. the start of stage II
    pairs: Sequence[Line] = ()  # numbers of pairs at the beginning, of unreadable ones at the end

    @property
    def stage2_epoch(self) -> float | None:
        """Epoch at which stage II (training of the language model) begins; None without it."""
        epochs = [line["epoch"] for line in self.events if line.get("event") == "stage II begins"]
        return float(epochs[0]) if epochs else None

    @property
    def finished(self) -> bool:
        """Whether the training has reached its end."""
        return any("failed" in line for line in self.pairs)

    @property
    def validation_pairs(self) -> int | None:
        """Number of validation pairs; None if unknown."""
        return self.validation[-1].get("pairs") if self.validation else None


def read_history(run: str | os.PathLike[str]) -> History:
    """Read the history of a run.

    Incomplete lines of a killed run are skipped. If a step occurs several times because the run
    was resumed, its last line is used.

    Args:
        run: the run folder or its ``metrics.jsonl``.

    Raises:
        RunError: the file does not exist or cannot be read.
    """
    path = Path(run)
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise RunError(f"{path} does not exist. Check that the training has started.")
    latest = {
        (line["kind"], line["step"], line.get("event")): line
        for line in read_jsonl(path)
        if isinstance(line, dict) and {"kind", "step", "epoch"} <= line.keys()
    }
    lines = sorted(latest.values(), key=lambda line: float(line["step"]))
    kinds = ("train", "validation", "event", "pairs")
    return History(*([line for line in lines if line["kind"] == kind] for kind in kinds))


def learning_curves(history: History, chance: float | None = None) -> list[Curve]:
    """Draw validation recall both ways, accuracy, loss and posteriors over epochs, a figure each if it has values.

    Args:
        history: of the training.
        chance: accuracy of random guesses, drawn as a dotted line.
    """
    pairs = history.validation_pairs
    recall = "Fraction of queries whose match is in the top 1, 5 and 10"
    recall += f" among {pairs:,} validation pairs. Dotted: chance." if pairs else "."
    accuracy = "Single clips; training clips are augmented. Dotted: chance."
    averaged = "Training values are averaged over neighbouring log lines."
    train, validation = history.train, history.validation
    figures: list[tuple[str, str, list[pd.Series], list[float], str]] = []
    for way in ("text → video", "video → text"):
        lines, levels = retrieval_series(history, way.replace(" → ", "_to_"))
        figures.append((f"Retrieval, {way}", "recall, %", lines, levels, recall))
    for title, ylabel, key in (("Accuracy", "top-1, %", "top-1"), ("Loss", "loss", "loss")):
        lines = [smooth_series("training", train, key), finite_values(validation, key).rename("validation")]
        levels = [chance] if chance and key == "top-1" else []
        figures.append((title, ylabel, lines, levels, accuracy if key == "top-1" else averaged))
    posteriors = {"true pairs": "posterior_positive", "noise": "posterior_noise"}
    lines = [smooth_series(name, train, key) for name, key in posteriors.items()]
    figures.append(("Posterior of being a pair", "posterior, %", lines, [], _POSTERIOR_CAPTION))
    curves = []
    for title, ylabel, lines, levels, caption in figures:
        lines = [line for line in lines if len(line)]
        draw = partial(
            draw_lines, lines=lines, levels=levels, ylabel=ylabel, percent="%" in ylabel, stage2=history.stage2_epoch
        )
        if lines:
            curves.append(Curve(title, svg_figure(title, draw), caption))
    return curves


def retrieval_series(history: History, direction: str) -> tuple[list[pd.Series], list[float]]:
    """Return R@1, R@5 and R@10 over epochs, and their values by chance if known.

    Args:
        history: of the training.
        direction: "text_to_video" or "video_to_text".
    """
    pairs = history.validation_pairs
    lines = {k: finite_values(history.validation, f"{direction}_R@{k}") for k in (1, 5, 10)}
    lines = {k: line.rename(f"R@{k}") for k, line in lines.items() if len(line)}
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


@dataclass(frozen=True)
class RetrievedClip:
    """A clip retrieved by a query."""

    clip: Clip
    caption: str  # the clip's own text
    score: float  # cosine similarity of query and clip, -1 to 1
    correct: bool | None = None  # whether it is a correct result; None if unknown
    rank: int = 0  # from 1; 0 for the rank among the clips shown


@dataclass(frozen=True)
class SheetTile:
    """A retrieved clip with its pixels: 16 frames of its middle, 4/30 s apart.

    An unreadable video has one grey frame.
    """

    retrieved: RetrievedClip
    frames: np.ndarray  # (T, H, W, 3) uint8
    error: str = ""  # why the video is unreadable

    def strip(self, count: int = 4) -> Image.Image:
        """Return an image of ``count`` evenly spaced frames side by side, with white seams."""
        indices = np.linspace(0, len(self.frames) - 1, count).round().astype(int)
        padded = np.pad(self.frames[indices], ((0, 0), (0, 0), (0, _SEAM), (0, 0)), constant_values=255)
        return Image.fromarray(np.concatenate(list(padded), axis=1)[:, :-_SEAM])

    def animation(self) -> bytes:
        """Encode the frames as a looping WebP animation at normal speed."""
        return _encode_webp(self.frames)

    def still(self) -> bytes:
        """Encode the middle frame as WebP, for print and for readers who prefer no motion."""
        return _encode_webp(self.frames[[len(self.frames) // 2]])


@dataclass(frozen=True)
class ContactSheet:
    """A query and its retrieved clips, best first, with an optional note."""

    query: str
    tiles: tuple[SheetTile, ...]
    note: str = ""


@dataclass(frozen=True)
class Examples:
    """A section with outputs of a model: queries with their retrieved clips, or classes with their predictions."""

    title: str
    sheets: Sequence[ContactSheet]
    caption: str


def load_contact_sheet(
    query: str, retrieved: Sequence[RetrievedClip], *, short_side: int = 112, note: str = ""
) -> ContactSheet:
    """Decode the clips retrieved by a query.

    Args:
        query: the text query.
        retrieved: clips, best first.
        short_side: of the frames, in pixels.
        note: shown next to the query.
    """
    return ContactSheet(query, tuple(_load_tile(each, short_side) for each in retrieved), note)


def _load_tile(retrieved: RetrievedClip, short_side: int) -> SheetTile:
    """Decode and scale 16 frames of a clip's middle; if it is unreadable, one grey frame and the error."""

    def scale(width: int, height: int) -> tuple[int, int]:
        factor = short_side / min(width, height)
        longest = 2 * short_side  # limits the size of very wide videos
        return min(longest, round(width * factor)), min(longest, round(height * factor))

    def times(length: float) -> Any:
        return clip_times(0.5, length, _FRAMES, _STRIDE)

    try:
        return SheetTile(retrieved, read_frames(retrieved.clip, times, scale))
    except VideoError as error:
        blank = np.full((1, short_side, short_side * 4 // 3, 3), _GREY, dtype=np.uint8)
        return SheetTile(retrieved, blank, str(error))


def _encode_webp(frames: np.ndarray) -> bytes:
    first, *others = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    first.save(
        file, "WEBP", quality=70, save_all=bool(others), append_images=others, loop=0,
        duration=round(1000 * _STRIDE / REFERENCE_FPS),
    )  # fmt: skip
    return file.getvalue()


def write_run_report(run: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` of a pre-training or fine-tuning, finished or not, from the files of its folder.

    The page has the results (``results.json``, or the last validation), predictions for at most 200
    validation videos, the learning curves and the recipe. Random generators are left unchanged.

    Args:
        run: a run folder, or the folder of a fine-tuning over official splits; of the latter, the
            reports of the splits are written too.

    Returns:
        The path of the page.

    Raises:
        RunError: the folder contains no run, or the report cannot be written.
    """
    run = Path(run)
    page = run / "report.html"
    parts = sorted(path.parent for path in run.glob(f"split*/{RECIPE}"))
    if parts and not (run / RECIPE).is_file():
        for part in parts:
            write_run_report(part)
        _write_splits_report(page, [_read_run(part) for part in parts])
        return page
    trained = _read_run(run)
    results, origin, notes = _read_results(run)
    examples = None
    try:
        with torch.random.fork_rng(devices=[]):  # loading a model draws its initial weights
            examples = _load_examples(trained)
    except CrosspairError as error:
        notes.append(f"No examples: {error}.")
    write_report(
        page,
        title=f"{trained.kind.capitalize()} “{run.resolve().name}”",
        summary=trained.summary,
        results=results or _validation_results(trained),
        origin=origin or trained.origin,
        curves=learning_curves(trained.history, 1 / len(classes) if (classes := _classes(trained)) else None),
        examples=examples,
        facts=trained.facts,
        recipe=trained.recipe_text,
        notes=notes,
    )
    return page


@dataclass(frozen=True)
class TrainedRun:
    """The files of a run folder."""

    path: Path
    recipe: Recipe | FinetuneRecipe
    recipe_text: str
    inputs: Mapping[str, str]  # of ``manifest.json``; may be empty
    history: History

    @property
    def kind(self) -> str:
        """ "pre-training" or "fine-tuning"."""
        return "pre-training" if isinstance(self.recipe, Recipe) else "fine-tuning"

    @property
    def summary(self) -> str:
        """Progress and data of the training in a sentence."""
        lines = [*self.history.train, *self.history.validation, *self.history.events, *self.history.pairs]
        done = max((float(line["epoch"]) for line in lines), default=0.0)
        state = "Finished" if self.history.finished else "Not finished"
        return (
            f"{state} after {done:g} of {self.recipe.training.epochs} epochs on {self.data or 'an unknown manifest'}."
        )

    @property
    def data(self) -> str:
        """File name of the manifest, if known, and its hash."""
        return f"{Path(self.inputs.get('file', '')).name} {self.inputs.get('manifest', '')}".strip()

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Numbers of the training."""
        history, facts = self.history, []
        counts = history.pairs[0] if history.pairs else {}
        for split, name in (("train", "training"), ("val", "validation")):
            if split in counts:
                facts.append((f"{name.capitalize()} pairs", f"{counts[split]:,}"))
        if history.train:
            facts.append(("Clips seen", f"{history.train[-1]['pairs']:,}"))
            speeds = finite_values(history.train, "clips_per_second")
            facts.append(("Speed", f"{speeds.median():.0f} clips/s"))
        skipped = {line.get("pair_id") for line in history.events if line.get("event") == "left out"}
        if skipped:
            facts.append(("Unreadable videos", f"{len(skipped):,}"))
        return facts

    @property
    def origin(self) -> list[tuple[str, str]]:
        """Names and values of what the training started from."""
        return [
            ("recipe", recipe_hash(self.recipe)),
            ("initial weights", self.inputs.get("init") or self.inputs.get("start") or "unknown"),
            ("manifest", self.data or "unknown"),
            ("seed", str(self.recipe.training.seed)),
        ]


def _read_run(run: Path) -> TrainedRun:
    file = run / RECIPE
    if not file.is_file():
        raise RunError(f"{run} contains no {RECIPE}: it is not a run folder")
    text = file.read_text(encoding="utf-8")
    kind = FinetuneRecipe if "classifier" in (read_yaml(text, str(file)) or {}) else Recipe
    inputs: dict[str, str] = {}
    with suppress(OSError, ValueError, TypeError):
        inputs |= json.loads((run / ORIGIN).read_text(encoding="utf-8"))
    history = read_history(run) if (run / METRICS).is_file() else History()
    return TrainedRun(run, read_recipe(kind, str(file)), text, inputs, history)


def _read_results(run: Path) -> tuple[list[Result], list[tuple[str, str]], list[str]]:
    """Return the results of a run and their provenance, both empty if there are none, and notes."""
    path = run / RESULTS_FILE
    if not path.exists():
        return [], [], []
    try:
        results, origin = read_results(path)
    except RunError as error:
        return [], [], [f"No results: {error}."]
    return results, describe_provenance(origin), []


def _validation_results(run: TrainedRun) -> list[Result]:
    """Return the last validation as results of split val, with those of chance."""
    values = run.history.validation[-1] if run.history.validation else {}
    results = []
    for key, value in values.items():
        direction, _, metric = key.rpartition("_to_")
        if direction and metric.partition("_")[2].startswith("R@"):
            other, _, metric = metric.partition("_")
            protocol = f"retrieval {direction}→{other}"
            chance = min(1.0, int(metric[2:]) / values["pairs"])
            count = values["pairs"]
        elif key == "top-1":
            protocol, metric, count = "1 view", key, values["videos"]
            classes = _classes(run)
            chance = 1 / len(classes) if classes else None
        else:
            continue
        result = Result(protocol, metric, value, "trained", split="val", count=count)
        results += [result] if chance is None else [result, chance_result(result, chance)]
    return results


def _classes(run: TrainedRun) -> list[str]:
    with suppress(OSError, ValueError, LookupError):
        config = json.loads((run.path / MODEL / CONFIG_FILE).read_text(encoding="utf-8"))
        return list(config["classes"])
    return []


def _load_examples(run: TrainedRun) -> Examples:
    """Return examples of the model's outputs for validation videos.

    Raises:
        CrosspairError: model, manifest or videos are missing or unreadable.
    """
    folder = run.path / MODEL
    if not folder.is_dir():
        raise RunError("the training has not written a model yet")
    if not run.inputs.get("file"):
        raise RunError("the run folder does not name the manifest's file")
    manifest = Manifest.read(run.inputs["file"])
    if manifest.hash != run.inputs.get("manifest"):
        raise RunError("the manifest has changed since the training")
    training = run.recipe.training
    if isinstance(run.recipe, Recipe):
        videos = manifest.split("val")
    else:
        tested = run.inputs.get("tested", "test")
        videos = select_labelled_videos(manifest, run.recipe.labels, training.seed, tested).validation
    usable, _ = usable_rows(videos)
    if not usable:
        raise RunError("there are no validation videos")
    videos = videos.take(usable[:: math.ceil(len(usable) / _EXAMPLES)])
    world = World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    settings: dict[str, Any] = {
        "clips": 1, "workers": min(training.workers, cpu_count()), "world": world, "precision": training.precision,
    }  # fmt: skip
    if isinstance(run.recipe, Recipe):
        model = CPD.from_pretrained(folder).to(world.device)
        features = extract_features(model, videos, **settings)
        return retrieval_examples(model, videos, features.rows.tolist(), features.embedding)
    classifier = Classifier.from_pretrained(folder).to(world.device)
    scores = multiview_scores(classifier, videos, crops=1, **settings)
    return prediction_examples(classifier.classes, videos, scores)


def retrieval_examples(model: CPD, manifest: Manifest, rows: Sequence[int], embedding: torch.Tensor) -> Examples:
    """Retrieve six videos for each of four queries, spaced evenly (not the best).

    Queries are class names in alphabetical order, if all videos have a label whose words the model
    knows; otherwise titles.

    Args:
        model: embeds the queries.
        manifest: the videos.
        rows: n rows of the manifest.
        embedding: (n, D), f_v of these rows.
    """
    labels, titles, clips = manifest.column("label"), manifest.column("title"), manifest.clips()
    texts = manifest.column(model.text.column)
    is_known = [bool(texts[row]) and not model.text_encoder.is_empty(texts[row]) for row in rows]
    queries = [(texts[row], [row == other for other in rows]) for row in _spread(list(compress(rows, is_known)))]
    names = {class_phrase(label): label for label in sorted({labels[row] or "" for row in rows})}
    if all(names) and not any(map(model.text_encoder.is_empty, names)):
        queries = [(name, [labels[row] == names[name] for row in rows]) for name in _spread(list(names))]
    sheets = []
    for (query, correct), text in zip(queries, embed_texts(model, [query for query, _ in queries]), strict=True):
        scores, order = (embedding @ text).sort(descending=True, stable=True)
        ranks = [rank for rank, index in enumerate(order.tolist(), start=1) if correct[index]]
        retrieved = [
            RetrievedClip(clips[rows[index]], f"{titles[rows[index]]}", score, correct[index])
            for score, index in zip(scores[:_TILES].tolist(), order[:_TILES].tolist(), strict=True)
        ]
        expected = (len(rows) + 1) / (len(ranks) + 1)
        note = f"first correct clip at rank {ranks[0]} of {len(rows)}; {expected:.0f} expected by chance"
        sheets.append(load_contact_sheet(query, retrieved, note=note))
    caption = "The number is the cosine similarity of the embeddings of text and clip. Below is the clip's own title."
    return Examples("Text-to-video retrieval", sheets, caption)


def prediction_examples(classes: Sequence[str], manifest: Manifest, scores: ViewScores) -> Examples:
    """Show the predictions for the first six videos of four classes, spaced evenly in the alphabet.

    Args:
        classes: names, in the order of the probabilities.
        manifest: the videos, with labels.
        scores: class probabilities of its rows.
    """
    labels, clips = manifest.column("label"), manifest.clips()
    rows, (best, index) = scores.rows.tolist(), scores.probabilities.max(dim=1)
    predicted = list(zip(rows, best.tolist(), [classes[i] for i in index.tolist()], strict=True))
    sheets = []
    for label in _spread(sorted({labels[row] for row in rows})):
        own = [each for each in predicted if labels[each[0]] == label]
        tiles = [RetrievedClip(clips[row], f"predicted: {name}", p, name == label) for row, p, name in own[:_TILES]]
        hits = sum(name == label for _, _, name in own)
        note = f"{hits} of {len(own)} videos correct; {len(own) / len(classes):.1f} expected by chance"
        sheets.append(load_contact_sheet(label, tiles, note=note))
    return Examples("Predictions", sheets, "The number is the probability of the predicted class, from one clip.")


def _spread(values: Sequence[Any]) -> Sequence[Any]:
    """Select four values, spaced evenly."""
    return values[:: max(1, len(values) // _QUERIES)][:_QUERIES]


def _write_splits_report(page: Path, runs: Sequence[TrainedRun]) -> None:
    """Write the report of a fine-tuning over official splits: their means, and the accuracies of all splits."""
    results, origin, notes = _read_results(page.parent)
    lines = [finite_values(run.history.validation, "top-1").rename(run.path.name) for run in runs]
    curves = []
    if all(map(len, lines)):
        draw = partial(draw_lines, lines=lines[: len(SERIES)], ylabel="top-1, %", percent=True)
        curves.append(Curve("Validation accuracy", svg_figure("Validation accuracy", draw), "One line per split."))
    write_report(
        page,
        title=f"Fine-tuning “{page.parent.resolve().name}” over {len(runs)} splits",
        summary=" ".join(f"{run.path.name}: {run.summary}" for run in runs),
        results=results,
        origin=origin,
        curves=curves,
        recipe=runs[0].recipe_text,
        notes=notes if results or notes else ["No results: not all splits are tested yet."],
        links=[(run.path.name, f"{run.path.name}/{page.name}") for run in runs],
    )


def describe_provenance(origin: Provenance) -> list[tuple[str, str]]:
    """Return the names and values of a provenance for display."""
    machine = origin.machine
    return [
        ("recipe", origin.recipe or "unknown"), ("weights", origin.model), ("manifest", origin.data),
        ("commit", origin.commit or "unknown"), ("seed", str(origin.seed)),
        ("processor", f"{machine.cpu}, {machine.cores} cores, {machine.memory} GiB"), ("device", machine.device),
        ("PyTorch", machine.torch), ("created", origin.created),
    ]  # fmt: skip


def write_report(
    path: Path,
    *,
    title: str,
    summary: str,
    results: Sequence[Result],
    origin: Sequence[tuple[str, str]],
    curves: Sequence[Curve] = (),
    examples: Examples | None = None,
    facts: Sequence[tuple[str, str]] = (),
    recipe: str = "",
    notes: Sequence[str] = (),
    links: Sequence[tuple[str, str]] = (),
) -> None:
    """Write the HTML report of a run; all texts are plain.

    Args:
        path: of the HTML file.
        title, summary: heading and the paragraph below.
        results: of the table, see `crosspair.reporting.tables.compare_with_baselines`.
        origin: names and values of the provenance.
        curves: figures, in order.
        examples: outputs of the model.
        facts: names and values of other figures, e.g. the number of pairs.
        recipe: the recipe as YAML.
        notes: why parts are omitted.
        links: names and relative paths of other pages.

    Raises:
        RunError: the file cannot be written, or two results belong to the same cell.
    """
    page = render_page(
        "run.html", title=title, summary=summary, table=_results_table(results), origin=origin,
        curves=curves, examples=examples, facts=facts, recipe=recipe, notes=notes, links=links,
    )  # fmt: skip
    write_atomically(path, page)


def _results_table(results: Sequence[Result]) -> ReportTable:
    """Build the table of results beside chance and, if measured, random weights, with the ratios to both."""
    frame = compare_with_baselines(results)
    shown = [0, 2, 3] if frame.random.isna().all() else [0, 1, 2, 3, 4]
    titles = [
        TableCell("chance"), TableCell("random", "weights"), TableCell("trained"),
        TableCell("×", "chance"), TableCell("×", "random"),
    ]  # fmt: skip
    rows = []
    for row in frame.itertuples():
        chance, random, trained, interval, *ratios = format_comparison(row)
        split = row.split if row.count is None else f"{row.count:,} of {row.split}"
        detail = "; ".join(filter(None, (row.feature, split, row.settings, row.over)))
        cells = [TableCell(chance), TableCell(random), TableCell(trained, interval, style="main")]
        cells += map(TableCell, ratios)
        rows.append([TableCell(row.column.title, detail), *(cells[i] for i in shown)])
    remarks = [
        (frame.low.notna().any(), "Below a value is its 95 % bootstrap interval over the videos."),
        (1 in shown, "Random weights: the same network before training."),
        (any(column.is_rank for column in frame.column), "Smaller ranks are better; their ratios are inverted."),
    ]
    remark = " ".join(text for applies, text in remarks if applies)
    head = [TableCell("protocol"), *(titles[i] for i in shown)]
    return ReportTable("results", "Results", head, rows, remark=remark)


def overview_figure(results: Sequence[Result], history: History, sheets: Sequence[ContactSheet] = ()) -> bytes:
    """Draw the overview of a run for a README.

    Left: retrieval on validation pairs over epochs. Right: the first six accuracies of the trained
    network, random weights and chance. Below: for each query, frames of its first three clips.

    Args:
        results: see `crosspair.reporting.tables.compare_with_baselines`; ranks are skipped.
        history: of the training.
        sheets: two or three queries.

    Returns:
        A PNG, 1600 pixels wide, on white.
    """
    frame = compare_with_baselines(results)
    frame = frame[[not column.is_rank for column in frame.column]][:_BARS]
    heights = [_CHARTS, *[_QUERY] * len(sheets)]
    lines, levels = retrieval_series(history, "text_to_video")
    with figure_style():
        figure = Figure(figsize=(_WIDTH, sum(heights)), dpi=_DPI, facecolor="white")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
        charts, *queries = parts[:, 0]
        draw_lines(
            charts.add_axes((0.055, 0.19, 0.36, 0.62)), lines,
            "text → video recall, % (dotted: chance)", levels=levels, percent=True,
            stage2=history.stage2_epoch,
        )  # fmt: skip
        _draw_bars(charts.add_axes((0.69, 0.19, 0.27, 0.62)), frame)
        for subfigure, sheet in zip(queries, sheets, strict=True):
            _draw_query(subfigure, sheet)
        return encode_png(figure)


def _draw_bars(axes: Axes, frame: pd.DataFrame) -> None:
    subjects = {"trained": SERIES[0], "random": "#8fa3b3", "chance": FAINT}
    for offset, (subject, colour) in enumerate(subjects.items()):
        values = 100 * frame[subject].astype(float)
        name = "random weights" if subject == "random" else subject
        heights = np.arange(len(frame)) + 0.27 * (offset - 1)
        bars = axes.barh(heights, values.fillna(0), height=0.25, color=colour, label=name)
        if subject == "trained":
            labels = ["" if np.isnan(value) else f"{value:.0f}" for value in values]
            axes.bar_label(bars, labels, padding=3, color=colour, fontsize="small")
    # The feature is named only where the same quantity has several.
    ambiguous = frame.duplicated(["protocol", "metric"], keep=False) & (frame.feature != "")
    titles = frame.protocol.str.removeprefix("retrieval ") + ", " + frame.metric
    titles = titles.where(~ambiguous, titles + " (" + frame.feature + ")")
    axes.set_yticks(range(len(frame)), titles, fontsize="small")
    axes.invert_yaxis()
    axes.grid(visible=False)
    splits = " and ".join(frame.split.unique())
    axes.set_title(f"{splits} split, %", loc="left", fontsize="medium", pad=20)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.4, -0.07), ncols=3, frameon=False, fontsize="small",
        handlelength=0.9, handletextpad=0.4, columnspacing=1.0,
    )  # fmt: skip
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])


def _draw_query(figure: SubFigure, sheet: ContactSheet) -> None:
    figure.text(0.02, 0.93, f"“{replace_missing_glyphs(sheet.query)}”", va="top", parse_math=False)
    width, gap = 0.309, 0.0165
    for index, tile in enumerate(sheet.tiles[:_STRIPS]):
        strip = tile.strip()
        height = min(0.66, width * _WIDTH / _QUERY * strip.height / strip.width)
        axes = figure.add_axes((0.02 + index * (width + gap), 0.68 - height, width, height))
        axes.imshow(strip, aspect="auto", interpolation="lanczos")
        axes.set_axis_off()
        if tile.retrieved.correct is not None:
            sign, colour = ("✓", SERIES[2]) if tile.retrieved.correct else ("✗", SERIES[1])
            axes.annotate(
                sign, (1, 1), (-8, -8), xycoords="axes fraction", textcoords="offset points",
                ha="center", va="center", fontsize="small", color=colour,
                bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "none"},
            )  # fmt: skip
