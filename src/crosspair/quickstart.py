"""Quickstart: render a corpus, pre-train on it, evaluate, and write a report."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from crosspair.config import Recipe
from crosspair.corpora.rendered.render import render_corpus
from crosspair.distributed import World
from crosspair.evaluation.evaluate import EvaluationConfig, Protocols, evaluate_model
from crosspair.evaluation.features import Features, extract_features
from crosspair.evaluation.results import write_results
from crosspair.files import check_output_folder, write_atomically
from crosspair.models.cpd import CPD
from crosspair.progress import delayed_progress
from crosspair.provenance import provenance
from crosspair.recipes import load_recipe, recipe_hash
from crosspair.reporting.examples import retrieval_examples
from crosspair.reporting.run_report import overview_figure, read_history, write_run_report
from crosspair.training.pretrain import pretrain
from crosspair.training.run import RECIPE, check_run_folder

logger = logging.getLogger(__name__)

PAIRS, NOISE = 2000, 0.2
CLIPS = 3  # per video; enough to cover the short rendered videos
PROTOCOLS: Protocols = ("retrieval", "knn", "linear", "zeroshot")
TITLE = "Cross-modal pair discrimination on rendered videos"
SUMMARY = (
    "A randomly initialised video network was trained on nothing but video files and their noisy titles: some titles "
    "lack words, some contain irrelevant words, and some are wrong. The {actions} actions can only be distinguished by "
    "motion. The network is tested on videos that were not used in training, and compared with the same network with "
    "random weights and with chance."
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
    check_output_folder(out, "a quickstart", f"run/{RECIPE}", "corpus", "run")
    check_run_folder(out / "run")
    recipe = recipe or load_recipe("quickstart", [f"training.seed={seed}"])
    world = World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    seconds: dict[str, float] = {}
    with _timed("rendering", seconds), delayed_progress("rendering", "videos") as progress:
        manifest = render_corpus(out / "corpus", pairs, seed, NOISE, progress=progress)
    with _timed("pre-training", seconds):
        model = pretrain(recipe, manifest, out / "run", resume=True, world=world)
    if model is None:
        return None

    def extract(model: CPD, _: object) -> Features:
        with delayed_progress("encoding", "clips") as progress:
            return extract_features(
                model, manifest, clips=CLIPS, workers=recipe.training.workers, world=world,
                precision=recipe.training.precision, progress=progress,
            )  # fmt: skip

    with _timed("evaluation", seconds):
        results, features = evaluate_model(model, manifest, extract, PROTOCOLS, EvaluationConfig(seed=seed))
    origin = provenance(
        recipe=recipe_hash(recipe), model=model.hash, manifest=manifest.hash, seed=seed,
        manifest_file=manifest.path.name,
    )  # fmt: skip
    write_results(out / "results.json", results, origin)
    splits = manifest.column("split")
    is_test = torch.tensor([splits[row] == "test" for row in features.rows.tolist()])
    examples = retrieval_examples(model, manifest, features.rows[is_test].tolist(), features.embedding[is_test])
    steps = recipe.training.epochs * (len(manifest.split("train")) // recipe.training.batch_size)
    facts = [
        ("Videos", f"{len(manifest)} rendered files, {len(manifest.split('test'))} of them tested"),
        ("Pairs seen in training", f"{steps * recipe.training.batch_size:,}"),
        ("Duration of this call", ", ".join(f"{duration:.0f} s for {step}" for step, duration in seconds.items())),
    ]
    summary = SUMMARY.format(actions=len(set(manifest.column("label"))))
    overview = overview_figure(results, read_history(out / "run"), examples.sheets[:2])
    write_atomically(out / "overview.png", overview)
    return write_run_report(out / "run", folder=out, title=TITLE, summary=summary, facts=facts, examples=examples)


@contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Log the duration of the block, and store it as ``seconds[name]``."""
    start = time.monotonic()
    yield
    seconds[name] = time.monotonic() - start
    logger.info("%s took %.0f s", name, seconds[name])
