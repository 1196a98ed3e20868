"""Encode videos: decode clips in worker processes, run the network, average over clips.

`encode_plans` is the one routine for whole videos, windows, test views and validation.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from crosspair.config import Clip, ClipConfig
from crosspair.corpora.manifest import Manifest
from crosspair.device import autocast, dtype_for, resolve_device, to_device
from crosspair.errors import CrosspairError, ModelError, TextError, VideoError
from crosspair.evaluation.windows import CLIPS_PER_JOB, ClipPlan, Sampling, Span, Windows, whole_video_plan
from crosspair.models.cpd import CPD
from crosspair.models.resnet3d import inference
from crosspair.video.views import DecodedClips, DecodeJob, decode_job
from crosspair.workers import WorkerFailure, cpu_count, map_isolated

logger = logging.getLogger(__name__)

CLIPS = 10  # evenly spaced over a video (Section 4.2)
DECODE_TIMEOUT = 120.0  # s for a job: a decoder that takes longer hangs
LONGEST = 7 * 24 * 3600.0  # s; the windows of an absurd duration would fill the memory
FULL_HD = 1920 * 1080  # pixels; of larger frames fewer are decoded together, as all are held

Network = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class EncodedPlan:
    """The outcome of a `ClipPlan`.

    Attributes:
        groups: Indices of the plan's groups whose clips could all be decoded, ascending.
        sums: For each output of the network, (groups, ...) the sum over the clips and crops of each of these groups.
        thumbnails: JPEG of the middle clip of each of these groups, if requested.
        failure: Why clips could not be decoded; empty if all could.
    """

    plan: ClipPlan
    groups: list[int]
    sums: tuple[torch.Tensor, ...] = ()
    thumbnails: list[bytes] = field(default_factory=list)
    failure: str = ""


def encode_plans(
    plans: Sequence[ClipPlan],
    network: Network,
    config: ClipConfig,
    *,
    batch_size: int | None,
    workers: int,
    crops: int = 1,
    thumbnails: bool = False,
    check_cancelled: Callable[[], None] | None = None,
) -> Iterator[EncodedPlan]:
    """Decode the clips of plans, run a network on them and sum its outputs by group; yield a result per plan, in order.

    A video that crashes its decoder, makes it hang or exhausts the memory fails alone, with a `failure` message.

    Args:
        plans: The clips of each video.
        network: From clips (B, 3, T, S, S) uint8 on the CPU to tensors (B, ...) on the CPU.
        config: Number, distance and size of the frames of a clip.
        batch_size: Maximum number of clips in a call of the network. None: the clips of one job,
            so that outputs do not depend on which videos are encoded together.
        workers: Decoding processes; 0 decodes in this process.
        crops: Square crops of each clip; the network is called once for each.
        thumbnails: Whether to make a picture of each group.
        check_cancelled: Called after each decoded job; an exception that it raises ends everything.

    Raises:
        CrosspairError: Worker processes cannot be started.
    """
    jobs = [list(plan.jobs(config, crops, thumbnails)) for plan in plans]
    decoded = _decode(list(chain.from_iterable(jobs)), workers, check_cancelled)
    parts = (part for batch in _batches(decoded, batch_size) for part in _run_network(network, batch))  # in order
    for plan, of_plan in zip(plans, jobs, strict=True):
        yield _sum_groups(plan, list(islice(parts, len(of_plan))))


Decoded = tuple[DecodeJob, DecodedClips]


@dataclass(frozen=True)
class _Part:
    """A decoded job and the network's outputs, each (crops, clips, ...); none if it failed."""

    job: DecodeJob
    decoded: DecodedClips
    outputs: tuple[torch.Tensor, ...] = ()


def _decode(jobs: Sequence[DecodeJob], workers: int, check_cancelled: Callable[[], None] | None) -> Iterator[Decoded]:
    """Yield jobs with their decoded clips, in order; a worker's crash or timeout is a `failure` of its job."""
    isolated = map_isolated(decode_job, jobs, timeout=DECODE_TIMEOUT, workers=workers, in_order=True)
    results = isolated if workers else ((index, decode_job(job)) for index, job in enumerate(jobs))
    with closing(results):
        for index, result in results:
            job = jobs[index]
            if isinstance(result, WorkerFailure):
                path = job.source.path if isinstance(job.source, Clip) else f"array {job.row}"
                result = DecodedClips(np.empty(0, np.uint8), failure=f"{path}: {result.reason}")
            if check_cancelled:
                check_cancelled()
            yield job, result


def _batches(decoded: Iterable[Decoded], batch_size: int | None) -> Iterator[list[Decoded]]:
    """Group jobs into batches of at most `batch_size` clips, larger jobs alone; None: one job each."""
    batch: list[Decoded] = []
    room = 0
    for job, clips in decoded:
        if batch and len(job) > room:
            yield batch
            batch = []
        if not batch:
            room = batch_size or 0
        batch.append((job, clips))
        room -= len(job)
    if batch:
        yield batch


@torch.no_grad()
def _run_network(network: Network, batch: Sequence[Decoded]) -> list[_Part]:
    """Run the network on all clips of a batch, one crop at a time."""
    good = [(job, clips.clips) for job, clips in batch if not clips.failure]
    outputs: Iterator[tuple[torch.Tensor, ...]] = iter(())
    if good:
        pixels = np.concatenate([clips for _, clips in good], axis=1)
        # (B, T, S, S, C) in memory, seen as (B, C, T, S, S): channels_last_3d without a copy.
        per_crop = [network(torch.from_numpy(crop).permute(0, 4, 1, 2, 3)) for crop in pixels]
        sizes = [clips.shape[1] for _, clips in good]
        stacked = [torch.split(torch.stack(output), sizes, dim=1) for output in zip(*per_crop, strict=True)]
        outputs = zip(*stacked, strict=True)
    return [_Part(job, clips, () if clips.failure else _repeat(next(outputs), clips.repeats)) for job, clips in batch]


def _repeat(outputs: tuple[torch.Tensor, ...], repeats: np.ndarray | None) -> tuple[torch.Tensor, ...]:
    """Expand outputs (crops, u, ...) of distinct clips to those of all clips, (crops, k, ...)."""
    return outputs if repeats is None else tuple(output[:, torch.from_numpy(repeats)] for output in outputs)


def _sum_groups(plan: ClipPlan, parts: Sequence[_Part]) -> EncodedPlan:
    """Sum the outputs over the clips and crops of each group; leave out groups with a clip that was not decoded."""
    good = [part for part in parts if not part.decoded.failure]
    failure = next((part.decoded.failure for part in parts if part.decoded.failure), "")
    clips = [part.job.first + i for part in good for i in range(len(part.job))]
    place = {clip: i for i, clip in enumerate(clips)}
    groups = [i for i, group in enumerate(plan.groups) if all(clip in place for clip in group)]
    if not groups:
        return EncodedPlan(plan, [], failure=failure)
    members = [[place[clip] for clip in plan.groups[i]] for i in groups]
    outputs = [torch.cat(values, dim=1) for values in zip(*(part.outputs for part in good), strict=True)]
    sums = tuple(torch.stack([output[:, rows].sum(dim=1).sum(dim=0) for rows in members]) for output in outputs)
    pictures = [picture for part in good for picture in part.decoded.thumbnails]
    thumbnails = [pictures[rows[len(rows) // 2]] for rows in members] if any(pictures) else []
    return EncodedPlan(plan, groups, sums, thumbnails, failure)


@dataclass(frozen=True)
class WindowFeatures:
    """Features of one video, a row of its manifest: n results, one for the whole of it or one per window.

    Attributes:
        spans: (start, end) of each result, in s of the file; None for the file's own.
        visual: (n, F) float32 on the CPU, the mean visual feature.
        embedding: (n, D) float32 on the CPU, the mean embedding, normalized.
        thumbnails: A JPEG per result, if requested.
        failure: Why the video, or a part of it, could not be read; empty otherwise.
    """

    row: int
    spans: list[Span]
    visual: torch.Tensor
    embedding: torch.Tensor
    thumbnails: list[bytes] = field(default_factory=list)
    failure: str = ""


@dataclass(frozen=True)
class InferenceEngine:
    """A model on a device, and how it runs.

    Attributes:
        precision: "auto", "bf16" or "fp32", see `crosspair.config.TrainingConfig`.
        batch_size: Maximum number of clips in a call of the network.
        workers: Decoding processes; 0 decodes in this process.
    """

    model: CPD
    device: torch.device
    precision: str = "auto"
    batch_size: int = 32
    workers: int = 2


def encode_features(
    engine: InferenceEngine,
    plans: Sequence[ClipPlan],
    *,
    thumbnails: bool = False,
    progress: ProgressCallback | None = None,
    check_cancelled: Callable[[], None] | None = None,
) -> Iterator[WindowFeatures]:
    """Encode the clips of plans with a model, in order.

    ``progress`` gets the number of encoded clips and their total; for other arguments, see `encode_plans`.
    """
    model, device = engine.model, engine.device

    def network(clips: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with autocast(device, engine.precision):
            features = tuple(output.float().cpu() for output in model.encode_video(to_device(clips, device)))
        if not all(output.isfinite().all() for output in features):
            raise ModelError("the features of this model are not finite: its weights are damaged or too large.")
        return features

    done, total = 0, sum(map(len, plans))
    with eval_mode(model), inference(model.video_encoder, device, engine.precision):
        for encoded in encode_plans(
            plans, network, model.clip, batch_size=engine.batch_size, workers=engine.workers,
            thumbnails=thumbnails, check_cancelled=check_cancelled,
        ):  # fmt: skip
            yield _average(model, encoded)
            done += len(encoded.plan)
            if progress:
                progress(done, total)


def _average(model: CPD, encoded: EncodedPlan) -> WindowFeatures:
    """Convert sums to mean visual features and unit-norm embeddings by window; count skipped windows in `failure`."""
    plan, failure = encoded.plan, encoded.failure
    if not encoded.groups:
        return no_features(model, plan.row, failure)
    visual, embedding = encoded.sums
    sizes = torch.tensor([len(plan.groups[i]) for i in encoded.groups])[:, None]
    if failure:
        skipped = len(plan.spans) - len(encoded.groups)
        failure = f"{failure} ({skipped} of {len(plan.spans)} windows skipped)"
    spans = [plan.spans[i] for i in encoded.groups]
    return WindowFeatures(plan.row, spans, visual / sizes, F.normalize(embedding, dim=1), encoded.thumbnails, failure)


def no_features(model: CPD, row: int, failure: str) -> WindowFeatures:
    """Return the result for a video that cannot be read."""
    visual = torch.empty(0, model.video_encoder.features)
    return WindowFeatures(row, [], visual, torch.empty(0, model.head.embedding), failure=failure)


def encode_rows(
    engine: InferenceEngine,
    manifest: Manifest,
    rows: Sequence[int],
    clips: int = CLIPS,
    progress: ProgressCallback | None = None,
) -> Iterator[WindowFeatures]:
    """Encode whole videos: the mean over evenly spaced clips (Section 4.2).

    A batch of the network is some whole videos, or an equal part of one if it cannot hold all its clips: features
    depend on nothing but the `batch_size` // `clips` videos of the batch.

    Yields:
        Features per row of the manifest, in the order of ``rows``; without spans if unreadable.
    """
    batch_size = engine.batch_size
    per_job = max(size for size in range(1, min(clips, batch_size) + 1) if clips % size == 0)
    engine = replace(engine, batch_size=max(1, batch_size // clips) * per_job)
    sources = manifest.clips()
    plans = [whole_video_plan(row, sources[row], clips, per_job) for row in rows]
    return encode_features(engine, plans, progress=progress)


def encode_whole_videos(
    engine: InferenceEngine, manifest: Manifest, clips: int = CLIPS, progress: ProgressCallback | None = None
) -> Iterator[WindowFeatures]:
    """Encode all videos of a manifest as `encode_rows` does, and log failures.

    Yields:
        Features per row of the manifest, empty if unreadable: first the rows with an error, then the others in order.

    Raises:
        VideoError: None of the videos can be read; raised after the last one.
    """
    usable, failures = usable_rows(manifest)
    for row, failure in failures.items():
        yield no_features(engine.model, row, failure)
    for features in encode_rows(engine, manifest, usable, clips, progress):
        if features.failure:
            failures[features.row] = features.failure
            logger.warning("%s", features.failure)
        yield features
    check_readable(manifest, failures)


def usable_rows(manifest: Manifest) -> tuple[list[int], dict[int, str]]:
    """Return the indices of the rows with an empty ``error`` column, and the errors of the others by row."""
    errors = {row: error for row, error in enumerate(manifest.column("error")) if error}
    return [row for row in range(len(manifest)) if row not in errors], errors


def check_readable(manifest: Manifest, failures: Mapping[int, str]) -> None:
    """Raise VideoError, with the first failure as the reason, if all rows of a manifest failed."""
    if len(failures) == len(manifest):
        reason = next(iter(failures.values()), "the manifest has no rows")
        source = f"{manifest.path}: ".removeprefix(".: ")  # no manifest
        raise VideoError(f"{source}none of the {len(manifest)} videos can be read: {reason}")


def encode_windows(
    engine: InferenceEngine,
    manifest: Manifest,
    windows: Windows,
    *,
    sampling: Sampling = "clips",
    thumbnails: bool = False,
    progress: ProgressCallback | None = None,
    check_cancelled: Callable[[], None] | None = None,
) -> Iterator[WindowFeatures]:
    """Encode the windows of videos. A window that cannot be read is skipped, the others are kept.

    The manifest is probed (see `crosspair.corpora.inputs.probe_missing`). Videos without suitable key frames are
    encoded from clips, and all videos if the model does not encode single frames.

    Yields:
        Features per row: first, empty, rows with an error, an invalid segment or over a week; then rows encoded from
        key frames, then the others, each in order.
    """
    use_key_frames = sampling != "clips" and engine.model.video_encoder.image
    plans: dict[int, ClipPlan] = {}
    key_frame_plans: list[ClipPlan] = []
    rows = zip(manifest.table.to_pylist(), manifest.clips(), strict=True)
    for row, (columns, clip) in enumerate(rows):
        failure = columns["error"]
        if not failure:
            end = columns["duration"] if clip.end is None else clip.end
            duration = min(end, columns["duration"]) - (clip.start or 0.0)
            if duration <= 0:
                failure = f"{clip.path}: the segment lies outside the video"
            elif duration > LONGEST:
                failure = (
                    f"{clip.path}: its header gives a duration of {duration:g} s, more than a week;"
                    " remux the file, or give a segment of it"
                )
        if failure:
            yield no_features(engine.model, row, failure)
            continue
        pixels = max(1, columns["width"] * columns["height"])
        together = max(1, min(CLIPS_PER_JOB, CLIPS_PER_JOB * FULL_HD // pixels))
        plans[row] = windows.plan(row, clip, duration, engine.model.clip, together)
        if use_key_frames:
            key_frame_plans.append(windows.key_frame_plan(row, clip, duration, engine.model.clip, sampling))
    options: Any = {"thumbnails": thumbnails, "progress": progress, "check_cancelled": check_cancelled}
    for features in encode_features(engine, key_frame_plans, **options) if key_frame_plans else ():
        if not features.failure:
            del plans[features.row]
            yield features
    yield from encode_features(engine, list(plans.values()), **options)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; restore the mode of every module, which may differ, afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


TEXT_PARTS = ("video_head", "text_encoder", "text_head")  # untrained, texts cannot be compared


def load_engine(
    source: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 32,
    workers: int | None = None,
) -> InferenceEngine:
    """Load a model (a folder or a name on the Hugging Face Hub) onto a device; arguments as of `InferenceEngine`.

    Device "auto" is the first GPU, or the CPU; ``workers`` None is one per core, at most 8.

    Raises:
        ModelError: There is no such model or device.
        RecipeError: The precision is unknown.
        CrosspairError: ``batch_size`` or ``workers`` is out of its range.
    """
    check_counts(batch_size=batch_size, workers=workers)
    if not isinstance(source, str | os.PathLike):
        raise ModelError(f"a model must be a folder or a name on the Hugging Face Hub, not {source!r}")
    place = resolve_device(device)
    dtype_for(place, precision)  # an unknown precision is an error before the model is loaded
    model = CPD.from_pretrained(source).to(place).eval()
    count = min(8, cpu_count()) if workers is None else workers
    return InferenceEngine(model, place, precision, batch_size, count)


def check_counts(*, workers: object = None, **counts: object) -> None:
    """Raise CrosspairError unless ``workers`` is None or a whole number from 0, and the others are from 1."""
    for name, value in {"workers": 0 if workers is None else workers, **counts}.items():
        lowest = 0 if name == "workers" else 1
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float | np.integer)
            or not value >= lowest
            or value % 1
        ):
            raise CrosspairError(f"{name} must be a whole number from {lowest}, not {value!r}")


def has_text_tower(model: CPD) -> bool:
    """Return whether video head, text encoder and text head are trained, so that texts and videos can be compared."""
    return not set(TEXT_PARTS) & set(model.untrained)


def check_text_tower(model: CPD, texts: Iterable[str] = ()) -> None:
    """Raise ModelError if texts cannot be compared with videos, or TextError if the model knows no word of a text."""
    if not has_text_tower(model):
        raise ModelError(
            "this model has no trained text tower; search by a video, or use a model with a text tower, "
            "such as openai/clip-vit-base-patch32"
        )
    for text in texts:
        if model.text_encoder.is_empty(text):
            raise TextError(f"the model knows no word of {text!r}")
