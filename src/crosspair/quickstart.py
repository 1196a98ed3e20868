"""Quickstart: render a corpus, pre-train on it, evaluate, and write a report."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from crosspair import reporting
from crosspair.config import Recipe
from crosspair.corpora.build import class_phrase
from crosspair.corpora.manifest import Manifest
from crosspair.corpora.rendered.render import render_corpus
from crosspair.distributed import World
from crosspair.evaluation.evaluate import EvaluationConfig, Protocols, evaluate_model
from crosspair.evaluation.features import Features, embed_texts, extract_features
from crosspair.evaluation.results import write_results
from crosspair.files import write_atomically
from crosspair.models.cpd import CPD
from crosspair.progress import delayed_progress
from crosspair.provenance import provenance
from crosspair.recipes import dump_recipe, load_recipe, recipe_hash
from crosspair.training.pretrain import pretrain

logger = logging.getLogger(__name__)

PAIRS, NOISE = 2000, 0.2
CLIPS = 3  # per video; enough to cover the short rendered videos
QUERIES, RETRIEVED = 4, 6
PROTOCOLS: Protocols = ("retrieval", "knn", "linear", "zeroshot")
SUMMARY = (
    "A randomly initialised video network was trained on nothing but video files and their noisy "
    "titles: some titles lack words, some contain irrelevant words, and some are wrong. The "
    "{actions} actions can only be distinguished by motion. The network is tested on videos that "
    "were not used in training, and compared with the same network with random weights and with "
    "chance."
)


def quickstart(out: Path, *, seed: int = 0, pairs: int = PAIRS, recipe: Recipe | None = None) -> Path | None:
    """Render a corpus, pre-train, evaluate, and write ``report.html``.

    Existing results in ``out`` are reused, so a second call resumes an interrupted one.

    Args:
        out: folder for ``corpus/``, ``run/``, ``results.json``, ``report.html`` and
            ``overview.png``.
        seed: of the corpus and the training.
        pairs: number of videos to render.
        recipe: of the pre-training; None: the packaged ``quickstart``.

    Returns:
        The report, or None if the training was stopped by a signal.

    Raises:
        CrosspairError: one of the steps failed.
    """
    recipe = recipe or load_recipe("quickstart", [f"training.seed={seed}"])
    world = World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    seconds: dict[str, float] = {}
    with _timed("rendering", seconds), delayed_progress("rendering", "videos") as progress:
        manifest = render_corpus(out / "corpus", pairs, seed, NOISE, progress=progress)
    with _timed("pre-training", seconds):
        model = pretrain(recipe, manifest, out / "run", resume=True, world=world)
    if model is None:
        return None
    with _timed("evaluation", seconds):
        results, features = evaluate_model(
            model,
            manifest,
            lambda network, _: _extract_features(network, manifest, recipe, world),
            PROTOCOLS,
            EvaluationConfig(seed=seed),
        )
    origin = provenance(
        recipe=recipe_hash(recipe), model=model.hash, manifest=manifest.hash, seed=seed,
        manifest_file=manifest.path.name,
    )  # fmt: skip
    write_results(out / "results.json", results, origin)
    history = reporting.read_history(out / "run")
    sheets = _retrieval_examples(model, manifest, features)
    training = recipe.training
    steps = training.epochs * (len(manifest.split("train")) // training.batch_size)
    durations = ", ".join(f"{duration:.0f} s for {step}" for step, duration in seconds.items())
    facts = [
        ("Videos", f"{len(manifest)} rendered files, {len(manifest.split('test'))} of them tested"),
        ("Pairs seen in training", f"{steps * training.batch_size:,}"),
        ("Duration of this call", durations),
    ]
    reporting.write_report(
        out / "report.html",
        title="Cross-modal pair discrimination on rendered videos",
        summary=SUMMARY.format(actions=len(_class_names(manifest))),
        results=results,
        provenance=origin,
        curves=reporting.learning_curves(history),
        sheets=sheets,
        facts=facts,
        recipe=dump_recipe(recipe),
    )
    write_atomically(out / "overview.png", reporting.overview_figure(results, history, sheets[:2]))
    return out / "report.html"


@contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Log the duration of the block, and store it as ``seconds[name]``."""
    start = time.monotonic()
    yield
    seconds[name] = time.monotonic() - start
    logger.info("%s took %.0f s", name, seconds[name])


def _extract_features(model: CPD, manifest: Manifest, recipe: Recipe, world: World) -> Features:
    with delayed_progress("encoding", "clips") as progress:
        return extract_features(
            model,
            manifest,
            clips=CLIPS,
            workers=recipe.training.workers,
            world=world,
            precision=recipe.training.precision,
            progress=progress,
        )


def _class_names(manifest: Manifest) -> list[str]:
    return sorted(set(manifest.column("label")))


def _retrieval_examples(model: CPD, manifest: Manifest, features: Features) -> list[reporting.ContactSheet]:
    """Retrieve six test videos for each of four class names, spaced evenly in the alphabet (not the best)."""
    classes = _class_names(manifest)
    queries = classes[:: max(1, len(classes) // QUERIES)][:QUERIES]
    splits, labels, titles = (manifest.column(name) for name in ("split", "label", "title"))
    clips = manifest.clips()
    is_test = torch.tensor([splits[row] == "test" for row in features.rows.tolist()])
    rows, videos = features.rows[is_test].tolist(), features.embedding[is_test]
    texts = embed_texts(model, [class_phrase(query) for query in queries])
    sheets = []
    for query, text in zip(queries, texts, strict=True):
        scores, best = (videos @ text).topk(min(RETRIEVED, len(rows)))
        retrieved = [
            reporting.RetrievedClip(clips[row], f"{titles[row]}", score, labels[row] == query)
            for row, score in zip([rows[i] for i in best.tolist()], scores.tolist(), strict=True)
        ]
        sheets.append(reporting.load_contact_sheet(class_phrase(query), retrieved))
    return sheets
