"""Report of an ablation: HTML page with charts and examples, tables in Markdown, values as CSV."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from matplotlib.axes import Axes

from crosspair.corpora.manifest import Manifest
from crosspair.corpora.titles import prepare_titles
from crosspair.errors import CrosspairError, RunError
from crosspair.evaluation.features import embed_texts, features_match, load_features
from crosspair.evaluation.retrieval import target_ranks
from crosspair.files import write_atomically
from crosspair.markdown import escape_markdown
from crosspair.models.cpd import CPD
from crosspair.reporting.ablation_tables import (
    CSV_FIELDS,
    DONE,
    Ablation,
    CellResult,
    Line,
    ablation_frame,
    ablation_tables,
    column_means,
    describe_findings,
    describe_uncertainty,
    headline_columns,
    read_ablation,
)
from crosspair.reporting.figures import (
    CHART,
    INK,
    SERIES,
    STYLES,
    Curve,
    label_line_ends,
    label_rows,
    svg_figure,
    truncate,
)
from crosspair.reporting.run_report import (
    ContactSheet,
    History,
    RetrievedClip,
    SheetTile,
    load_contact_sheet,
    smooth_series,
)
from crosspair.reporting.tables import ReportTable, TableCell, format_csv, pluralize, render_page
from crosspair.reporting.titles import REASON_CLASSES, TitleExample, title_examples

_PANEL = (3.3, 2.1)  # in
_NAME_LENGTH = 28  # characters
_MIN_VALUES = 3  # of an axis with a chart
_QUERIES, _CLIPS = 3, 5  # best and worst queries each, and clips per query
_TITLES, _PAIRS = 300, 6  # titles to choose from, and pairs shown

SeedLines = list[tuple[pd.Series, bool]]  # by thousands of clips seen, and whether the cell is done


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
        f"# {escape_markdown(ablation.title)}", escape_markdown(findings[0]),
        "\n".join(f"- {escape_markdown(finding)}" for finding in findings[1:]), escape_markdown(uncertainty),
        *(table.markdown() for table in [*tables, cells]),
    ]  # fmt: skip
    write_atomically(folder / "report.md", "\n\n".join(filter(None, blocks)) + "\n")
    write_atomically(folder / "report.csv", format_csv(frame[CSV_FIELDS]))
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


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
            TableCell(cell.name, cell.error, link, style="partial"),
            TableCell(str(cell.seed)), TableCell(cell.status, style=style),
            *(TableCell("–" if number is None else f"{number:,.0f}") for number in numbers),
        ])  # fmt: skip
    return ReportTable("cells", "Cells", list(map(TableCell, head)), rows)


def validation_panels(ablation: Ablation) -> list[Curve]:
    """Draw text-to-video R@10 on the validation pairs over the clips seen, a panel per row."""
    recall = "text_to_video_R@10"
    rows = _seed_lines(ablation, lambda history: 100 * smooth_series("", history.validation, recall))
    means = [_mean_line(lines) for lines in rows.values()]
    top = max((line.max() for lines in rows.values() for line, _ in lines), default=0.0)
    return [
        _draw_panel("Validation", name, lines, others=means, ylabel="R@10, %", top=top) for name, lines in rows.items()
    ]


def loss_panels(ablation: Ablation) -> list[Curve]:
    """Draw the training loss over the clips seen, a panel per row, each with its own scale."""
    rows = _seed_lines(ablation, lambda history: smooth_series("", history.train, "loss"))
    return [_draw_panel("Loss", name, lines, ylabel="loss") for name, lines in rows.items()]


def _seed_lines(ablation: Ablation, read: Callable[[History], pd.Series]) -> dict[str, SeedLines]:
    """Return, by row, each cell's curve of ``read`` over thousands of clips seen, and whether the cell is done."""
    rows: dict[str, SeedLines] = {}
    for name, cells in ablation.rows.items():
        for cell in cells:
            line, last = read(cell.history), (cell.history.train or [{}])[-1]
            if len(line) and last.get("pairs") and last["epoch"]:
                line.index *= last["pairs"] / last["epoch"] / 1000
                rows.setdefault(name, []).append((line, cell.status == DONE))
    return rows


def _mean_line(lines: SeedLines) -> pd.Series:
    """Average the lines of completed cells at the points that they have in common."""
    complete = [line for line, done in lines if done]
    if not complete:
        return pd.Series(dtype=float)
    return pd.concat(complete, axis=1, join="inner").mean(axis=1)


def _draw_panel(
    kind: str, row: str, lines: SeedLines, ylabel: str, others: Sequence[pd.Series] = (),
    top: float | None = None,
) -> Curve:  # fmt: skip
    """Draw a row's seeds thin (dotted if not done), their mean thick, and the means ``others`` in grey."""

    def draw(axes: Axes) -> None:
        for line in others:
            axes.plot(line, color=INK, linewidth=0.7, alpha=0.4)
        for line, done in lines:
            style = "-" if done else (0, (1, 1))
            axes.plot(line, color=SERIES[0], linewidth=0.8, alpha=0.8, linestyle=style)
        mean = _mean_line(lines)
        axes.plot(mean, color=SERIES[0], linewidth=2.2, marker="o" if len(mean) == 1 else "")
        axes.margins(x=0)
        if top is not None:
            axes.set_ylim(0, 1.05 * top or 1)
        axes.set_xlabel("thousand clips seen", fontsize="small")
        axes.set_title(ylabel, loc="left", fontsize="small")
        axes.tick_params(labelsize="small")

    incomplete = sum(not done for _, done in lines)
    caption = pluralize(len(lines), "seed")
    caption += f", {incomplete} of them not done (dotted)" if incomplete else ""
    return Curve(row, svg_figure(f"{kind} of {row}", draw, _PANEL), caption)


def axis_charts(ablation: Ablation, frame: pd.DataFrame) -> list[Curve]:
    """Draw accuracy over the plan's first numeric axis, a chart per protocol, a line per value of other axes.

    Returns:
        No chart if no axis has three numeric values, or if there are more than six lines.
    """
    rows = pd.DataFrame({name: cells[0].row for name, cells in ablation.rows.items()}).T
    numbers = rows.apply(pd.to_numeric, errors="coerce")
    is_numeric = numbers.notna().all() & (rows.nunique() >= _MIN_VALUES)
    if not is_numeric.any():
        return []
    axis = is_numeric.idxmax()
    others = rows.drop(columns=axis).apply(" / ".join, axis=1, result_type="reduce").tolist()
    if len(set(others)) > len(SERIES):
        return []
    charts = []
    for column in headline_columns(frame):
        means = {line["row"]: line for line in column_means(frame, column)}
        lines: dict[str, list[tuple[float, Line]]] = {}
        for name, other, x in zip(rows.index, others, numbers[axis], strict=True):
            if name in means:
                lines.setdefault(other, []).append((x, means[name]))
        for points in lines.values():
            points.sort(key=lambda point: point[0])
        chance = means.get("chance")
        draw = partial(_draw_axis_chart, axis=axis, lines=lines, chance=chance)
        figure = svg_figure(f"{column.title} by {axis}", draw)
        caption = f"{column.detail}. Mean and standard deviation over seeds."
        charts.append(Curve(column.title, figure, caption + " Dotted: chance." * bool(chance)))
    return charts


def _draw_axis_chart(axes: Axes, axis: str, lines: dict[str, list[tuple[float, Line]]], chance: Line | None) -> None:
    ticks = sorted({x for line in lines.values() for x, _ in line})
    logarithmic = ticks[0] > 0 and ticks[-1] / ticks[0] >= 8
    span = ticks[-1] - ticks[0]
    ends = []
    for number, (name, points) in enumerate(lines.items()):
        # Shift the lines horizontally, so that their error bars do not hide one another.
        shift = (number - (len(lines) - 1) / 2) * 0.012
        axes.errorbar(
            [x * (1 + 4 * shift) if logarithmic else x + shift * span for x, _ in points],
            [100 * mean["value"] for _, mean in points],
            [100 * (mean["deviation"] or 0) for _, mean in points],
            color=SERIES[number], linestyle=STYLES[number], linewidth=1.6, marker="o",
            markersize=3.5, capsize=2.5,
        )  # fmt: skip
        end = 100 * points[-1][1]["value"]
        ends.append((end, truncate(name, _NAME_LENGTH), SERIES[number]))
    if chance:
        axes.axhline(100 * chance["value"], color=INK, linestyle=":", linewidth=1)
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(axis)
    axes.set_ylim(bottom=0)
    axes.set_title("%", loc="left", fontsize="medium")
    label_line_ends(axes, ends if len(ends) > 1 else [])


def dot_charts(frame: pd.DataFrame) -> list[Curve]:
    """Draw the values of all seeds with mean and deviation by row, a chart per protocol."""
    charts = []
    for column in headline_columns(frame):
        means = column_means(frame, column)
        done = frame[(frame.column == column) & (frame.status == DONE)]
        seeds = [100 * done.value[done.row == line["row"]] for line in means]
        draw = partial(_draw_dots, means=means, seeds=seeds)
        figure = svg_figure(f"{column.title} by row", draw, (CHART[0], 0.7 + 0.27 * len(means)))
        caption = f"{column.detail}. Dots: seeds; bars: mean and standard deviation."
        charts.append(Curve(column.title, figure, caption))
    return charts


def _draw_dots(axes: Axes, means: Sequence[Line], seeds: Sequence[pd.Series]) -> None:
    for y, (line, dots) in enumerate(zip(means, seeds, strict=True)):
        colour = SERIES[0] if line["of"] == "trained" else INK
        axes.plot(dots, [y] * len(dots), "o", color=colour, markersize=4, alpha=0.55)
        axes.errorbar(
            100 * line["value"], y, xerr=100 * (line["deviation"] or 0), fmt="|", color=colour,
            markersize=11, markeredgewidth=2, capsize=3, linewidth=1.2,
        )  # fmt: skip
    label_rows(axes, [truncate(line["row"], _NAME_LENGTH) for line in means])
    axes.set_xlabel("%")
    axes.margins(y=0.08)


@dataclass
class RetrievalExamples:
    """Examples of an ablation's report, and the reasons for those that are unavailable."""

    best: Sequence[ContactSheet] = ()
    worst: Sequence[ContactSheet] = ()
    pairs: Sequence[tuple[SheetTile, TitleExample]] = ()
    unavailable: list[str] = field(default_factory=list)


def retrieval_examples(ablation: Ablation) -> RetrievalExamples:
    """Retrieve clips with the baseline's first completed cell, and show some of its pairs.

    Models, features and videos may have been deleted since; the reasons are then in
    ``unavailable``.
    """
    done = [cell for cell in ablation.rows[ablation.baseline] if cell.status == DONE]
    if not done:
        return RetrievalExamples(unavailable=["No cell of the baseline is done: no examples."])
    examples = RetrievalExamples()
    try:
        examples.best, examples.worst = best_and_worst_queries(done[0])
    except CrosspairError as error:
        examples.unavailable.append(f"Retrieval examples of the baseline are unavailable: {error}")
    try:
        examples.pairs = cleaned_pairs(_job_manifest(done[0], "training"))
    except CrosspairError as error:
        examples.unavailable.append(f"Examples of pairs are unavailable: {error}")
    return examples


def best_and_worst_queries(cell: CellResult) -> tuple[list[ContactSheet], list[ContactSheet]]:
    """Retrieve clips for the three test titles that rank their own clip best (ties: by margin), and worst.

    Raises:
        CrosspairError: the cell's model, features or manifest do not exist.
    """
    manifest = _job_manifest(cell, "evaluation")
    model = CPD.from_pretrained(cell.path / "model")
    features = load_features(cell.path / "features")
    if not features_match(cell.path / "features", manifest):
        raise RunError(f"{manifest.path} has changed since the cell was evaluated")
    splits, titles = manifest.column("split"), manifest.column(model.text.column)
    empty = model.text_encoder.is_empty  # titles without a known word, as in retrieval
    kept = {
        i: row
        for i, row in enumerate(features.rows.tolist())
        if splits[row] == "test" and titles[row] and not empty(titles[row])
    }
    rows = list(kept.values())
    if len(rows) < 2:
        raise RunError(f"{manifest.path} has fewer than two test videos with titles")
    texts, videos = embed_texts(model, [titles[row] for row in rows]), features.embedding[[*kept]]
    scores, ranks = texts @ videos.T, target_ranks(texts, videos)
    others = scores.masked_fill(torch.eye(len(rows), dtype=torch.bool), -torch.inf)
    margins = scores.diagonal() - others.amax(dim=1)
    order = sorted(range(len(rows)), key=lambda i: (int(ranks[i]), -float(margins[i])))
    clips = manifest.clips()

    def sheet(query: int) -> ContactSheet:
        own_rank, own_scores = int(ranks[query]), scores[query].tolist()
        top = [(i, 0) for i in scores[query].topk(min(_CLIPS, len(rows))).indices.tolist()]
        if own_rank > len(top):
            top[-1] = (query, own_rank)
        retrieved = [RetrievedClip(clips[rows[i]], titles[rows[i]], own_scores[i], i == query, rank) for i, rank in top]
        sheet = load_contact_sheet(titles[rows[query]], retrieved)
        return replace(sheet, note=f"Rank of its own clip: {own_rank} of {len(rows)}.")

    return [sheet(i) for i in order[:_QUERIES]], [sheet(i) for i in order[: -_QUERIES - 1 : -1]]


def cleaned_pairs(manifest: Manifest) -> list[tuple[SheetTile, TitleExample]]:
    """Select up to six training pairs; return frames and raw, clean and tree titles (Figures 3 and 4)."""
    train = manifest.split("train")
    train = train.take(range(0, len(train), max(1, len(train) // _TITLES)))
    examples = title_examples(prepare_titles(train, workers=1)[1], _PAIRS)
    clips = dict(zip(train.column("title"), train.clips(), strict=True))
    retrieved = [RetrievedClip(clips[each.raw], each.raw, 0.0) for each in examples]
    return list(zip(load_contact_sheet("", retrieved).tiles, examples, strict=True))


def _job_manifest(cell: CellResult, key: str) -> Manifest:
    """Read the manifest of the cell's training pairs ("training") or test videos ("evaluation")."""
    path = cell.path / "job.json"
    try:
        manifest = Path(json.loads(path.read_text(encoding="utf-8"))["paths"][key])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"{path} is missing or damaged") from error
    return Manifest.read(manifest)
