"""The test of a classifier: 10 clips × 3 crops of each video, softmax averaged (Section 4.2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from crosspair.corpora.manifest import Manifest
from crosspair.device import autocast
from crosspair.distributed import World
from crosspair.errors import ManifestError, ModelError
from crosspair.evaluation.features import eval_mode, gather_failures, usable_rows
from crosspair.evaluation.results import Result, bootstrap_interval, chance_result, class_details
from crosspair.evaluation.tasks import check_labels
from crosspair.models.classifier import Classifier
from crosspair.models.inference import inference
from crosspair.progress import Progress, progress
from crosspair.video.decode import uniform_positions
from crosspair.video.loader import explain_dead_workers, video_loader
from crosspair.video.pixels import crops_along

logger = logging.getLogger(__name__)

CLIPS, CROPS = 10, 3  # Section 4.2
TOGETHER = 10  # clips that go through the network at a time


@dataclass(frozen=True)
class ViewScores:
    """What a classifier makes of videos.

    Attributes:
        rows: (V,) int64, the videos' rows in the manifest, ascending; unreadable ones are absent.
        probabilities: (V, classes) float64, the mean of the softmax over a video's views.
    """

    rows: torch.Tensor
    probabilities: torch.Tensor


def multiview_results(
    model: Classifier,
    manifest: Manifest,
    *,
    split: str = "test",
    clips: int = CLIPS,
    crops: int = CROPS,
    workers: int = 2,
    world: World | None = None,
    precision: str = "auto",
    settings: Mapping[str, Any] | None = None,
) -> list[Result]:
    """Top-1 and top-5 accuracy on a split, and those of chance.

    A video that cannot be read is left out by name; how many were is among the results' settings.
    A video of a class that the classifier does not know counts as wrong.

    Args:
        model: the classifier to test.
        manifest: whose videos of ``split`` all have a label.
        split: what to test on.
        clips: uniformly spread over a video (10 in the paper).
        crops: of each clip (3 in the paper: left, centre, right), or 1, the centre.
        workers: decoding processes for each process.
        world: the processes that share the videos; each gets all results, the same to the last bit
            however many they are.
        precision: see `crosspair.config.TrainingConfig`.
        settings: what else the results are to tell of.

    Raises:
        ManifestError: the split is empty, or a video of it has no label.
        VideoError: none of its videos can be read.
    """
    world = world or World()
    tested = manifest.split(split)
    if not len(tested):
        raise ManifestError(f"{manifest.path}: no video of split {split}; nothing to test on")
    check_labels(tested, split)
    labels = tested.column("label")
    unknown = sorted(set(labels) - set(model.classes))
    if unknown and world.is_main:
        logger.warning(
            "the classifier does not know %d classes of split %s, whose videos count as wrong: %s",
            len(unknown), split, ", ".join(unknown),
        )  # fmt: skip
    with progress("testing", len(tested), "videos", shown=world.is_main) as bar:
        scores = multiview_scores(
            model, tested, clips=clips, crops=crops, workers=workers, world=world,
            precision=precision, bar=bar,
        )  # fmt: skip
    position = {name: index for index, name in enumerate(model.classes)}
    truth = torch.tensor([position.get(labels[row], -1) for row in scores.rows.tolist()])
    known = truth >= 0
    best = scores.probabilities.topk(min(5, len(model.classes)), dim=1).indices
    told = {"clips": clips, "crops": crops, "classes": len(model.classes), **(settings or {})}
    if len(scores.rows) < len(tested):
        told["left out"] = len(tested) - len(scores.rows)
    results = []
    for k in (1, 5) if len(model.classes) > 5 else (1,):
        correct = (best[:, :k] == truth[:, None]).any(dim=1)
        result = Result(
            f"{clips * crops} views", f"top-{k}", float(correct.double().mean()),
            "trained", split=split, count=len(truth), settings=told,
            interval=bootstrap_interval(correct, seed=0),
            details=class_details(model.classes, truth[known], best[known, 0]) if k == 1 else {},
        )  # fmt: skip
        results += [result, chance_result(result, k / len(model.classes))]
    return results


@torch.no_grad()
def multiview_scores(
    model: Classifier,
    manifest: Manifest,
    *,
    clips: int = CLIPS,
    crops: int = CROPS,
    workers: int = 2,
    world: World | None = None,
    precision: str = "auto",
    bar: Progress | None = None,
) -> ViewScores:
    """Classify every video of a manifest by the mean of its views' softmax.

    A clip is decoded once for all its crops: squares along the frames' longer side, of the size
    that the network was trained with, while the shorter side is ``test_scale`` times as long.
    Only views of one video go through the network together, so that its numbers do not depend on
    which videos a process happens to have. Arguments are those of `multiview_results`.

    Raises:
        ModelError: the network gives values that are not finite.
        VideoError: none of the videos can be read.
    """
    world = world or World()
    usable, failures = usable_rows(manifest)
    mine = usable[world.rank :: world.size]
    broken: dict[int, str] = {}
    sums = torch.zeros(len(manifest), len(model.classes), dtype=torch.float64)
    views = torch.zeros(len(manifest), dtype=torch.long)
    loader = video_loader(
        manifest.clips(), mine, uniform_positions(clips), model.clip,
        batch_size=TOGETHER, workers=workers,
    )  # fmt: skip
    fastest = inference(model.video_encoder, world.device, precision)
    with eval_mode(model), fastest, explain_dead_workers(manifest.path):
        for batch in loader:
            broken.update(batch.failures)
            if len(batch.rows):
                row = int(batch.rows[0])
                for crop in crops_along(batch.clips, crops, model.clip.size):
                    with autocast(world.device, precision):
                        logits = model(crop.to(world.device, non_blocking=True))
                    sums[row] += logits.double().softmax(dim=1).sum(dim=0).cpu()
                    views[row] += len(crop)
            if bar:
                bar.advance(min(len(usable), (int((views > 0).sum()) + len(broken)) * world.size))
    views[list(broken)] = 0  # a video counts whole or not at all
    named = gather_failures(manifest, failures | broken, world)
    # Each video is one process's, so that these sums change no bit.
    views, sums = (world.sum(each.to(world.device)).cpu() for each in (views, sums))
    rows = views.nonzero().squeeze(1)
    counted = (views[rows] == clips * crops).all()
    assert counted, "a view was lost"
    assert len(rows) + len(named) == len(manifest), "a video was lost"
    if named and world.is_main:
        logger.warning("%d of %d videos were left out of the test", len(named), len(manifest))
    probabilities = sums[rows] / views[rows, None]
    if not probabilities.isfinite().all():
        raise ModelError("the classifier gives values that are not finite: its training diverged")
    return ViewScores(rows, probabilities)
