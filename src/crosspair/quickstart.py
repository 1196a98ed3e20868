"""The whole way in minutes: render a corpus, pre-train on it, evaluate, report."""

from __future__ import annotations

import dataclasses
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
from crosspair.evaluation.evaluate import FrozenConfig, Protocols, results_with_random_baseline
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
CLIPS = 3  # a video; the rendered ones are so short that three cover them
QUERIES, FOUND = 4, 6
PROTOCOLS: Protocols = ("retrieval", "knn", "linear", "zeroshot")


def quickstart(
    out: Path, *, seed: int = 0, pairs: int = PAIRS, recipe: Recipe | None = None
) -> Path | None:
    """Render a corpus, pre-train, evaluate, and write ``report.html``.

    What is there already is used again, so that a second call goes on where a first one stopped.

    Args:
        out: gets ``corpus/``, ``run/``, ``results.json``, ``report.html`` and ``overview.png``.
        seed: of corpus and training.
        pairs: videos to render.
        recipe: instead of the packaged ``quickstart``.

    Returns:
        The report, or None where the training was asked to stop.

    Raises:
        CrosspairError: as the four steps do.
    """
    recipe = recipe or load_recipe("quickstart", [f"training.seed={seed}"])
    world = World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    watch = _Stopwatch()
    with watch.lap("rendering"), delayed_progress("rendering", "videos") as progress:
        manifest = render_corpus(out / "corpus", pairs, seed, NOISE, progress=progress)
    with watch.lap("pre-training"):
        model = pretrain(recipe, manifest, out / "run", resume=True, world=world)
    if model is None:
        return None
    with watch.lap("evaluation"):
        results, features = results_with_random_baseline(
            model,
            manifest,
            lambda each: _features(each, manifest, recipe, world),
            PROTOCOLS,
            FrozenConfig(seed=seed),
        )
    origin = provenance(
        recipe=recipe_hash(recipe), model=model.hash, manifest=manifest.hash, seed=seed,
        manifest_file=manifest.path.name,
    )  # fmt: skip
    write_results(out / "results.json", results, origin)
    history = reporting.read_history(out / "run")
    sheets = _sheets(model, manifest, features)
    training = recipe.training
    steps = training.epochs * (len(manifest.split("train")) // training.batch_size)
    facts = [
        ("Videos", f"{len(manifest)} rendered files, {len(manifest.split('test'))} of them tested"),
        ("Pairs seen in training", f"{steps * training.batch_size:,}"),
        ("This call took", ", ".join(f"{s:.0f} s for {name}" for name, s in watch.laps.items())),
    ]
    reporting.write_report(
        out / "report.html",
        title="Cross-modal pair discrimination on rendered videos",
        summary=SUMMARY.format(actions=len(_classes(manifest))),
        results=results,
        provenance=origin,
        curves=reporting.learning_curves(history),
        sheets=sheets,
        facts=facts,
        recipe=dump_recipe(recipe),
    )
    picture = reporting.overview_figure(results, history, sheets[:2])
    write_atomically(out / "overview.png", picture)
    return out / "report.html"


SUMMARY = (
    "A video network that began with random weights has seen nothing but video files and the "
    "noisy titles that came with them: words missing, words beside the point, titles that are "
    "plainly wrong. Which of {actions} actions a clip shows can only be told from motion. Tested "
    "on videos that were not trained on, beside the same network with random weights and beside "
    "guessing."
)


def _features(model: CPD, manifest: Manifest, recipe: Recipe, world: World) -> Features:
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


def _classes(manifest: Manifest) -> list[str]:
    return sorted(set(manifest.column("label")))


def _sheets(model: CPD, manifest: Manifest, features: Features) -> list[reporting.ContactSheet]:
    """Every so-many-th action as a query, not the ones that came out best."""
    classes = _classes(manifest)
    queries = classes[:: max(1, len(classes) // QUERIES)][:QUERIES]
    splits, labels, titles = (manifest.column(name) for name in ("split", "label", "title"))
    clips = manifest.clips()
    tested = torch.tensor([splits[row] == "test" for row in features.rows.tolist()])
    rows, videos = features.rows[tested].tolist(), features.embedding[tested]
    texts = embed_texts(model, [class_phrase(query) for query in queries])
    sheets = []
    for query, text in zip(queries, texts, strict=True):
        scores, best = (videos @ text).topk(min(FOUND, len(rows)))
        found = [
            reporting.RetrievedClip(clips[row], f"{titles[row]}", score, labels[row] == query)
            for row, score in zip([rows[i] for i in best.tolist()], scores.tolist(), strict=True)
        ]
        sheets.append(reporting.load_contact_sheet(class_phrase(query), found))
    return sheets


@dataclasses.dataclass
class _Stopwatch:
    laps: dict[str, float] = dataclasses.field(default_factory=dict)

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.laps[name] = time.monotonic() - begin
        logger.info("%s took %.0f s", name, self.laps[name])
