"""Figures of an ablation: how every cell learnt, and what a numeric axis does."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from matplotlib.axes import Axes

from crosspair.corpora.manifest import Manifest
from crosspair.corpora.titles.stage import prepare_titles
from crosspair.errors import CrosspairError, RunError
from crosspair.evaluation.feature_cache import features_match, load_features
from crosspair.evaluation.features import embed_texts
from crosspair.evaluation.retrieval import target_ranks
from crosspair.models.cpd import CPD
from crosspair.reporting.ablation_tables import (
    DONE,
    Ablation,
    AblationTable,
    CellResult,
    Mean,
    TableEntry,
    TableRow,
    headlines,
)
from crosspair.reporting.figures import (
    CHART,
    INK,
    SERIES,
    STYLES,
    Series,
    name_ends,
    name_rows,
    shortened,
    svg_figure,
)
from crosspair.reporting.run_report import (
    ContactSheet,
    Curve,
    History,
    RetrievedClip,
    SheetTile,
    load_contact_sheet,
    smoothed,
)
from crosspair.reporting.tables import Column, pluralize
from crosspair.reporting.titles import Example, title_examples

_PANEL = (3.3, 2.1)  # in; at 72 points an inch as wide as a card of the page's narrowest column
_NAME = 28  # letters
_FEWEST = 3  # values of an axis that make a chart

Line = tuple[Sequence[float], Sequence[float]]  # thousands of clips, values
Lines = dict[str, list[tuple[Line, bool]]]  # by row: each seed's line, and whether its cell is done


def validation_panels(ablation: Ablation) -> list[Curve]:
    """Retrieval on the validation pairs against clips seen, a panel a row."""
    lines = _lines(
        ablation, lambda history: smoothed("", history.validation, "text_to_video_R@10"), 100
    )
    means = [_mean(own) for own in lines.values()]
    top = max((y for own in lines.values() for (_, ys), _ in own for y in ys), default=0.0)
    return [
        _panel("Validation", name, own, others=means, ylabel="R@10, %", top=top)
        for name, own in lines.items()
    ]


def loss_panels(ablation: Ablation) -> list[Curve]:
    """The training loss against clips seen, a panel a row, each with its own scale."""
    lines = _lines(ablation, lambda history: smoothed("", history.train, "loss"))
    return [_panel("Loss", name, own, ylabel="loss") for name, own in lines.items()]


def dial_charts(ablation: Ablation, tables: Sequence[AblationTable]) -> list[Curve]:
    """For a numeric axis a chart a protocol: a line for each of the other axes' values.

    Returns:
        Nothing where no axis has three numeric values, or more lines than can be told apart.
    """
    values = {
        axis: list(dict.fromkeys(c.row[axis] for c in ablation.cells)) for axis in ablation.axes
    }
    dials = [a for a, own in values.items() if len(own) >= _FEWEST and all(map(_is_number, own))]
    if not dials:
        return []
    dial = dials[0]
    places: dict[str, list[tuple[float, str]]] = {}
    for name, cells in ablation.rows.items():
        row = cells[0].row
        line = " / ".join(value for axis, value in row.items() if axis != dial)
        places.setdefault(line, []).append((float(row[dial]), name))
    if len(places) > len(SERIES):
        return []
    charts = []
    for table, column in headlines(tables):
        entries = {row.name: row.entries[column] for row in table.rows if column in row.entries}
        lines = {
            line: [(x, entries[name].mean) for x, name in sorted(own) if name in entries]
            for line, own in places.items()
        }
        chance = entries.get("chance")
        drawn = svg_figure(
            f"{column.title} by {dial}",
            partial(_chart, dial=dial, lines={k: v for k, v in lines.items() if v}, chance=chance),
        )
        dotted = " Dotted: chance." if chance else ""
        caption = f"{column.detail}. Mean and standard deviation over seeds.{dotted}"
        charts.append(Curve(column.title, drawn, caption))
    return charts


def dot_charts(tables: Sequence[AblationTable]) -> list[Curve]:
    """For each protocol a chart of rows: every seed a dot, with their mean and deviation."""
    charts = []
    for table, column in headlines(tables):
        rows = [row for row in table.rows if column in row.entries]
        drawn = svg_figure(
            f"{column.title} by row",
            partial(_dots, rows=rows, column=column),
            (CHART[0], 0.7 + 0.27 * len(rows)),
        )
        caption = f"{column.detail}. Dots: seeds; bars: their mean and standard deviation."
        charts.append(Curve(column.title, drawn, caption))
    return charts


def _chart(
    axes: Axes,
    dial: str,
    lines: Mapping[str, Sequence[tuple[float, Mean]]],
    chance: TableEntry | None,
) -> None:
    marks = sorted({x for line in lines.values() for x, _ in line})
    wide = marks[0] > 0 and marks[-1] / marks[0] >= 8
    ends = []
    for number, (name, points) in enumerate(lines.items()):
        # Bars of several lines at one place would hide one another.
        aside = (number - (len(lines) - 1) / 2) * 0.012
        span = marks[-1] - marks[0]
        axes.errorbar(
            [x * (1 + 4 * aside) if wide else x + aside * span for x, _ in points],
            [100 * mean.value for _, mean in points],
            [100 * (mean.deviation or 0) for _, mean in points],
            color=SERIES[number], linestyle=STYLES[number], linewidth=1.6, marker="o",
            markersize=3.5, capsize=2.5,
        )  # fmt: skip
        ends.append((100 * points[-1][1].value, shortened(name, _NAME), SERIES[number]))
    if chance is not None:
        axes.axhline(100 * chance.mean.value, color=INK, linestyle=":", linewidth=1)
    if wide:
        axes.set_xscale("log")
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.minorticks_off()
    axes.set_xlabel(dial)
    axes.set_ylim(bottom=0)
    axes.set_title("%", loc="left", fontsize="medium")
    name_ends(axes, ends if len(ends) > 1 else [])


def _dots(axes: Axes, rows: Sequence[TableRow], column: Column) -> None:
    for place, row in enumerate(rows):
        entry, colour = row.entries[column], SERIES[0] if row.of == "trained" else INK
        mean = entry.mean
        values = [100 * value for value in entry.values.values()]
        axes.plot(values, [place] * len(values), "o", color=colour, markersize=4, alpha=0.55)
        axes.errorbar(
            100 * mean.value, place, xerr=100 * (mean.deviation or 0), fmt="|", color=colour,
            markersize=11, markeredgewidth=2, capsize=3, linewidth=1.2,
        )  # fmt: skip
    name_rows(axes, [shortened(row.name, _NAME) for row in rows])
    axes.set_xlabel("%")
    axes.margins(y=0.08)


def _panel(
    kind: str,
    row: str,
    lines: Sequence[tuple[Line, bool]],
    *,
    ylabel: str,
    others: Sequence[Line] = (),
    top: float | None = None,
) -> Curve:
    def draw(axes: Axes) -> None:
        for x, y in others:
            axes.plot(x, y, color=INK, linewidth=0.7, alpha=0.4)
        for (x, y), done in lines:
            style = "-" if done else (0, (1, 1))
            axes.plot(x, y, color=SERIES[0], linewidth=0.8, alpha=0.8, linestyle=style)
        mean = _mean(lines)
        axes.plot(*mean, color=SERIES[0], linewidth=2.2, marker="o" if len(mean[0]) == 1 else "")
        axes.margins(x=0)
        if top is not None:
            axes.set_ylim(0, 1.05 * top or 1)
        axes.set_xlabel("thousand clips seen", fontsize="small")
        axes.set_title(ylabel, loc="left", fontsize="small")
        axes.tick_params(labelsize="small")

    lost = sum(not done for _, done in lines)
    told = pluralize(len(lines), "seed") + (f", {lost} of them not done (dotted)" if lost else "")
    return Curve(row, svg_figure(f"{kind} of {row}", draw, _PANEL), told)


def _lines(ablation: Ablation, read: Callable[[History], Series], factor: float = 1) -> Lines:
    """Of every row that has begun; what failed in the middle is drawn as far as it came."""
    lines: Lines = {}
    for name, cells in ablation.rows.items():
        for cell in cells:
            line, last = read(cell.history), (cell.history.train or [{}])[-1]
            if line.y and last.get("pairs") and last["epoch"]:
                clips = [epoch * last["pairs"] / last["epoch"] / 1000 for epoch in line.x]
                values = [factor * y for y in line.y]
                lines.setdefault(name, []).append(((clips, values), cell.status == DONE))
    return lines


def _mean(lines: Sequence[tuple[Line, bool]]) -> Line:
    """Of cells that are done, where all of them have a value."""
    found = [dict(zip(x, y, strict=True)) for (x, y), done in lines if done]
    shared = [x for x in found[0] if all(x in each for each in found)] if found else []
    return shared, [statistics.fmean(each[x] for each in found) for x in shared]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_QUERIES, _FOUND = 3, 5  # of the best and of the worst; clips a query
_TITLES, _PAIRS = 300, 6  # titles to choose from; pairs that are shown


@dataclass
class Examples:
    """What could be shown, and what could not and why."""

    best: Sequence[ContactSheet] = ()
    worst: Sequence[ContactSheet] = ()
    pairs: Sequence[tuple[SheetTile, Example]] = ()
    lacking: list[str] = field(default_factory=list)


def examples(ablation: Ablation) -> Examples:
    """Retrievals of the first row's first cell that is done, and some of its pairs.

    Models, features and videos may be gone since: what is lacking is told.
    """
    done = [cell for cell in ablation.rows[ablation.first] if cell.status == DONE]
    if not done:
        return Examples(lacking=["No cell of the first row is done: its retrievals lack."])
    found = Examples()
    try:
        found.best, found.worst = best_and_worst(done[0])
    except CrosspairError as error:
        found.lacking.append(f"Retrievals of the first row lack: {error}")
    try:
        found.pairs = cleaned_pairs(_job(done[0], "manifest"))
    except CrosspairError as error:
        found.lacking.append(f"Examples of pairs lack: {error}")
    return found


def best_and_worst(cell: CellResult) -> tuple[list[ContactSheet], list[ContactSheet]]:
    """Titles of tested videos whose own clip is found first by the widest margin, and latest.

    Raises:
        CrosspairError: the cell's model, its features or its manifest are gone.
    """
    manifest = _job(cell, "videos")
    model = CPD.from_pretrained(cell.path / "model")
    features = load_features(cell.path / "features")
    if not features_match(cell.path / "features", manifest):
        raise RunError(f"{manifest.path} has other pairs than when the cell was tested")
    splits = manifest.column("split")
    titles = manifest.column(model.text.column)
    empty = model.text_encoder.is_empty  # of titles that it cannot read, which retrieval leaves out
    kept = [
        i
        for i, row in enumerate(features.rows.tolist())
        if splits[row] == "test" and titles[row] and not empty(titles[row])
    ]
    rows = features.rows[kept].tolist()
    if len(rows) < 2:
        raise RunError(f"{manifest.path} has no two tested videos with titles")
    videos = features.embedding[kept]
    texts = embed_texts(model, [titles[row] for row in rows])
    scores = texts @ videos.T
    ranks = target_ranks(texts, videos)
    others = scores.masked_fill(torch.eye(len(rows), dtype=torch.bool), -torch.inf)
    margins = scores.diagonal() - others.amax(dim=1)
    order = sorted(range(len(rows)), key=lambda i: (int(ranks[i]), -float(margins[i])))
    clips = manifest.clips()

    def sheet(query: int) -> ContactSheet:
        own = int(ranks[query])
        best = [(i, 0) for i in scores[query].topk(min(_FOUND, len(rows))).indices.tolist()]
        if own > len(best):
            best[-1] = (query, own)
        found = [
            RetrievedClip(
                clips[rows[i]], titles[rows[i]], float(scores[query, i]), i == query, place
            )
            for i, place in best
        ]
        sheet = load_contact_sheet(titles[rows[query]], found)
        return replace(sheet, note=f"Its own clip is at place {own} of {len(rows)}.")

    return [sheet(i) for i in order[:_QUERIES]], [sheet(i) for i in order[: -_QUERIES - 1 : -1]]


def cleaned_pairs(manifest: Manifest) -> list[tuple[SheetTile, Example]]:
    """Training pairs, each with its title as it was, cleaned, and as a tree (Figures 3 and 4)."""
    train = manifest.split("train")
    train = train.take(range(0, len(train), max(1, len(train) // _TITLES)))
    shown = title_examples(prepare_titles(train, workers=1)[1], _PAIRS)
    rows = {title: row for row, title in enumerate(train.column("title"))}
    clips = train.clips()
    found = [RetrievedClip(clips[rows[each.raw]], each.raw, 0.0) for each in shown]
    return list(zip(load_contact_sheet("", found).tiles, shown, strict=True))


def _job(cell: CellResult, name: str) -> Manifest:
    """The videos that the cell learnt from (``manifest``) or was tested on, as it was told."""
    path = cell.path / "job.json"
    try:
        told = Path(json.loads(path.read_text(encoding="utf-8"))[name])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"{path} is missing or damaged") from error
    return Manifest.read(told)
