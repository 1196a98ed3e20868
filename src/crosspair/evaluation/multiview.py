"""The test of a classifier: 10 clips × 3 crops per video, softmax averaged (Section 4.2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from crosspair.config import MultiviewConfig
from crosspair.corpora.manifest import Manifest
from crosspair.corpora.ucf_hmdb import recording_ids
from crosspair.device import autocast, to_device
from crosspair.distributed import World
from crosspair.errors import ManifestError, ModelError
from crosspair.evaluation.encode import encode_plans, eval_mode, usable_rows
from crosspair.evaluation.features import gather_failures
from crosspair.evaluation.results import RecordingCounts, Result, bootstrap_interval, chance_result, class_details
from crosspair.evaluation.windows import whole_video_plan
from crosspair.models.classifier import Classifier
from crosspair.models.resnet3d import inference
from crosspair.progress import progress

logger = logging.getLogger(__name__)

BATCH_CLIPS = 10  # clips in a call of the network


def multiview_results(
    model: Classifier,
    manifest: Manifest,
    config: MultiviewConfig | None = None,
    *,
    split: str = "test",
    workers: int = 2,
    world: World | None = None,
    precision: str = "auto",
    settings: Mapping[str, Any] | None = None,
) -> list[Result]:
    """Measure top-1 and, for more than 5 classes, top-5 accuracy on a split, with the accuracies of chance.

    Videos that cannot be read are skipped and logged; their number is in the results' settings.
    A video of a class that the classifier does not know counts as wrong.

    Args:
        model: The classifier.
        manifest: The videos; all those of ``split`` have a label.
        config: Views of each video; None for the paper's 30.
        split: Split to test on.
        workers: Decoding processes for each process.
        world: The processes that share the videos. Each gets all results, bit-identical for any number of processes.
        precision: See `crosspair.config.TrainingConfig`.
        settings: Further settings to store with the results.

    Raises:
        ManifestError: The split is empty, or a video of it has no label.
        VideoError: None of its videos can be read.
    """
    config, world = config or MultiviewConfig(), world or World()
    tested = manifest.split(split)
    if not len(tested):
        raise ManifestError(f"{manifest.path}: split {split} has no videos to test on")
    check_labels(tested, split)
    labels = tested.column("label")
    unknown = sorted(set(labels) - set(model.classes))
    if unknown and world.is_main:
        message = "the classifier does not know %d classes of split %s; their videos count as wrong: %s"
        logger.warning(message, len(unknown), split, ", ".join(unknown))
    rows, probabilities = multiview_scores(model, tested, config, workers=workers, world=world, precision=precision)
    position = {name: index for index, name in enumerate(model.classes)}
    truth = torch.tensor([position.get(labels[row], -1) for row in rows.tolist()])
    known = truth >= 0
    best = probabilities.topk(min(5, len(model.classes)), dim=1).indices
    all_settings = {"clips": config.clips, "crops": config.crops, "classes": len(model.classes), **(settings or {})}
    if config.crop_scale != 1:
        all_settings["crop size"] = config.test_clip(model.clip).size
    if len(rows) < len(tested):
        all_settings["left out"] = len(tested) - len(rows)
    recordings = recording_ids(tested.take(rows.tolist()))
    results = []
    for k in (1, 5) if len(model.classes) > 5 else (1,):
        correct = (best[:, :k] == truth[:, None]).any(dim=1)
        counts = RecordingCounts.count(correct, recordings)
        result = Result(
            f"{config.clips * config.crops} views",
            f"top-{k}",
            float(correct.double().mean()),
            "trained",
            split=split,
            count=len(truth),
            settings=all_settings,
            interval=bootstrap_interval(counts, seed=0),
            details=class_details(model.classes, truth[known], best[known, 0]) if k == 1 else {},
            by_recording=counts,
        )
        results += [result, chance_result(result, k / len(model.classes))]
    return results


def check_labels(manifest: Manifest, split: str) -> None:
    """Raise ManifestError if a row has no label; ``split`` is only named in the message."""
    for pair_id, label in zip(manifest.column("pair_id"), manifest.column("label"), strict=True):
        if not label:
            raise ManifestError(f"{manifest.path}: pair {pair_id!r} of split {split} has no label")


def multiview_scores(
    model: Classifier,
    manifest: Manifest,
    config: MultiviewConfig,
    *,
    workers: int = 2,
    world: World | None = None,
    precision: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Classify every video of a manifest by the mean softmax of its views.

    A clip is decoded once for all its crops. Only views of one video form a batch of the network, so that the scores
    do not depend on how videos are divided over processes. Arguments are those of `multiview_results`.

    Returns:
        The rows of the readable videos, (V,) int64, ascending, and their class probabilities, (V, classes) float64.

    Raises:
        ModelError: The network's outputs are not finite.
        RecipeError: The crops are larger than the frames.
        VideoError: None of the videos can be read.
    """
    world = world or World()
    device, clip = world.device, config.test_clip(model.clip)

    def network(pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with autocast(device, precision):
            logits = model(to_device(pixels, device))
        return (logits.double().softmax(dim=1).cpu(),)

    usable, failures = usable_rows(manifest)
    sources = manifest.clips()
    plans = [whole_video_plan(row, sources[row], config.clips, BATCH_CLIPS) for row in usable[world.rank :: world.size]]
    sums = torch.zeros(len(manifest), len(model.classes), dtype=torch.float64)
    encoded = torch.zeros(len(manifest), dtype=torch.long)
    shown = progress("testing", len(usable), "videos", shown=world.is_main)
    with shown as bar, eval_mode(model), inference(model.video_encoder, device, precision):
        videos = encode_plans(plans, network, clip, batch_size=None, workers=workers, crops=config.crops)
        for done, video in enumerate(videos, start=1):
            row = video.plan.row
            if video.groups:
                sums[row], encoded[row] = video.sums[0][0], 1
            else:
                failures[row] = video.failure
            bar.advance(min(len(usable), done * world.size))
    skipped = gather_failures(manifest, failures, world)
    # Each video belongs to one process, so that the sums over processes are exact.
    encoded, sums = (world.sum(values.to(device)).cpu() for values in (encoded, sums))
    rows = encoded.nonzero().squeeze(1)
    assert len(rows) + len(skipped) == len(manifest), "a video was lost"
    if skipped and world.is_main:
        logger.warning("%d of %d videos were skipped in the test", len(skipped), len(manifest))
    probabilities = sums[rows] / (config.clips * config.crops)
    if not probabilities.isfinite().all():
        raise ModelError("the classifier's outputs are not finite: its training diverged")
    return rows, probabilities
