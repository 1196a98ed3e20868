"""Examples for an ablation's report: what the first row's model finds, and what it learnt from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from crosspair.corpora import Manifest
from crosspair.corpora.titles import prepare_titles
from crosspair.errors import CrosspairError, RunError
from crosspair.evaluation import embed_texts, load_features, own_ranks
from crosspair.evaluation.featurefiles import are_of
from crosspair.models import CPD
from crosspair.reporting.ablation_cells import DONE, Ablation, Cell
from crosspair.reporting.sheets import Found, Sheet, Tile, load_sheet
from crosspair.reporting.title_picture import Example
from crosspair.reporting.titles import title_examples

_QUERIES, _FOUND = 3, 5  # of the best and of the worst; clips a query
_TITLES, _PAIRS = 300, 6  # titles to choose from; pairs that are shown


@dataclass
class Examples:
    """What could be shown, and what could not and why."""

    best: Sequence[Sheet] = ()
    worst: Sequence[Sheet] = ()
    pairs: Sequence[tuple[Tile, Example]] = ()
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


def best_and_worst(cell: Cell) -> tuple[list[Sheet], list[Sheet]]:
    """Titles of tested videos whose own clip is found first by the widest margin, and latest.

    Raises:
        CrosspairError: the cell's model, its features or its manifest are gone.
    """
    manifest = _job(cell, "videos")
    model = CPD.from_pretrained(cell.path / "model")
    features = load_features(cell.path / "features")
    if not are_of(cell.path / "features", manifest):
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
    ranks = own_ranks(texts, videos)
    others = scores.masked_fill(torch.eye(len(rows), dtype=torch.bool), -torch.inf)
    margins = scores.diagonal() - others.amax(dim=1)
    order = sorted(range(len(rows)), key=lambda i: (int(ranks[i]), -float(margins[i])))
    clips = manifest.clips()

    def sheet(query: int) -> Sheet:
        own = int(ranks[query])
        best = [(i, 0) for i in scores[query].topk(min(_FOUND, len(rows))).indices.tolist()]
        if own > len(best):
            best[-1] = (query, own)
        found = [
            Found(clips[rows[i]], titles[rows[i]], float(scores[query, i]), i == query, place)
            for i, place in best
        ]
        sheet = load_sheet(titles[rows[query]], found)
        return replace(sheet, note=f"Its own clip is at place {own} of {len(rows)}.")

    return [sheet(i) for i in order[:_QUERIES]], [sheet(i) for i in order[: -_QUERIES - 1 : -1]]


def cleaned_pairs(manifest: Manifest) -> list[tuple[Tile, Example]]:
    """Training pairs, each with its title as it was, cleaned, and as a tree (Figures 3 and 4)."""
    train = manifest.split("train")
    train = train.take(range(0, len(train), max(1, len(train) // _TITLES)))
    shown = title_examples(prepare_titles(train, workers=1)[1], _PAIRS)
    rows = {title: row for row, title in enumerate(train.column("title"))}
    clips = train.clips()
    found = [Found(clips[rows[each.raw]], each.raw, 0.0) for each in shown]
    return list(zip(load_sheet("", found).tiles, shown, strict=True))


def _job(cell: Cell, name: str) -> Manifest:
    """The videos that the cell learnt from (``manifest``) or was tested on, as it was told."""
    path = cell.path / "job.json"
    try:
        told = Path(json.loads(path.read_text(encoding="utf-8"))[name])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"{path} is missing or damaged") from error
    return Manifest.read(told)
