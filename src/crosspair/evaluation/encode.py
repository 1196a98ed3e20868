"""What a model makes of videos, whole or in windows."""

from __future__ import annotations

import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
import torch.nn.functional as F

from crosspair.config import Clip
from crosspair.corpora.check import probe_videos
from crosspair.corpora.manifest import Manifest
from crosspair.device import autocast
from crosspair.distributed import World
from crosspair.errors import ModelError, RecipeError, TextError, VideoError
from crosspair.evaluation.features import CLIPS, extract_features
from crosspair.evaluation.windows import (
    PREFETCH,
    STALLED,
    TOGETHER,
    ClipPlan,
    DecodedJob,
    DecodeJob,
    DecoderExitError,
    Windows,
    batch_jobs,
    decode_jobs,
    split_into_jobs,
)
from crosspair.models.cpd import CPD
from crosspair.models.inference import inference
from crosspair.workers import cpu_count

ProgressCallback = Callable[[int, int], None]

LONGEST = 7 * 24 * 3600.0  # s; the windows of a length that is made up fill all memory
FULL_HD = 1920 * 1080  # pixels; larger frames are decoded fewer at a time, as all are held at once


@dataclass(frozen=True)
class WindowFeatures:
    """What came of one video: n results, one for all of it or one a window.

    Attributes:
        row: of the video in its manifest.
        spans: (start, end) of each, in s of the file; None where that is the file's own.
        visual: (n, F) float32 on the CPU: the mean visual feature.
        embedding: (n, D) float32 on the CPU: the mean embedding, of unit norm again.
        thumbnails: a JPEG for each, where they were asked for.
        failure: what could not be read, all of it or a part; empty where nothing failed.
    """

    row: int
    spans: list[tuple[float | None, float | None]]
    visual: torch.Tensor
    embedding: torch.Tensor
    thumbnails: list[bytes] = field(default_factory=list)
    failure: str = ""


def encode_whole_videos(
    of: InferenceEngine,
    manifest: Manifest,
    clips: int = CLIPS,
    progress: ProgressCallback | None = None,
) -> Iterator[WindowFeatures]:
    """The features that `crosspair.evaluation` has of whole videos, in the manifest's order.

    Raises:
        VideoError: none of the videos can be read, or a decoding process died.
    """
    found = extract_features(
        of.model, manifest, clips=clips, batch_size=of.batch_size,
        workers=min(of.workers, len(manifest) // 2), world=World(device=of.device),
        precision=of.precision, progress=progress,
    )  # fmt: skip
    place = {row: i for i, row in enumerate(found.rows.tolist())}
    failures = dict(found.failures)
    ids, starts, ends = (manifest.column(name) for name in ("pair_id", "start", "end"))
    for row, pair_id in enumerate(ids):
        if row in place:
            at = slice(place[row], place[row] + 1)
            yield WindowFeatures(
                row, [(starts[row], ends[row])], found.visual[at], found.embedding[at]
            )
        else:
            yield _nothing(of, row, failures[pair_id])


def encode_windows(
    of: InferenceEngine,
    manifest: Manifest,
    windows: Windows,
    *,
    thumbnails: bool = False,
    progress: ProgressCallback | None = None,
) -> Iterator[WindowFeatures]:
    """Windows of each video.

    A window that cannot be read is left out, and the video's other windows stay.

    Args:
        of: what to encode with.
        manifest: the videos, probed (`crosspair.corpora.inputs.probe_missing`).
        windows: how to cut them.
        thumbnails: whether to make a picture of each window.
        progress: called with the clips done and their number.

    Yields:
        Every video once: those that cannot be read at all first, then the others in their order.

    Raises:
        VideoError: decoding ended, and not by a video.
    """
    plans: list[ClipPlan] = []
    rows = zip(manifest.table.to_pylist(), manifest.clips(), strict=True)
    for row, (says, clip) in enumerate(rows):
        end = says["duration"] if clip.end is None else clip.end
        length = 0.0 if says["error"] else min(end, says["duration"]) - (clip.start or 0.0)
        if length <= 0:
            yield _nothing(of, row, says["error"] or f"{clip.path}: the part is outside the video")
            continue
        if length > LONGEST:
            told = f"{clip.path}: the header gives a length of {length:g} s, more than a week"
            yield _nothing(of, row, f"{told}; copy it into a new file, or name a part of it")
            continue
        pixels = says["width"] * says["height"]
        together = max(1, min(TOGETHER, TOGETHER * FULL_HD // max(1, pixels)))
        plan = windows.plan(row, clip, length, of.model.clip)
        plans.append(replace(plan, together=together))
    yield from encode_plans(of, plans, thumbnails=thumbnails, progress=progress)


def encode_plans(
    of: InferenceEngine,
    plans: Sequence[ClipPlan],
    *,
    thumbnails: bool = False,
    progress: ProgressCallback | None = None,
) -> Iterator[WindowFeatures]:
    """Carry out plans, in their order.

    Args:
        of: what to encode with.
        plans: see `crosspair.evaluation.windows.ClipPlan`.
        thumbnails, progress: see `encode_windows`.

    Raises:
        VideoError: decoding ended, and not by a video.
    """
    jobs = [job for plan in plans for job in split_into_jobs(plan)]
    left = {plan.row: plan for plan in plans}
    waiting = Counter(job.row for job in jobs)
    parts: dict[int, list[_Part]] = defaultdict(list)
    total, done = sum(len(plan.times) for plan in plans), 0
    with inference(of.model.video_encoder, of.device, of.precision):
        for decoded in _decoded(of, jobs, thumbnails):
            for part in _encoded(of, decoded):
                parts[part.of.row].append(part)
                waiting[part.of.row] -= 1
                if not waiting[part.of.row]:
                    plan = left.pop(part.of.row)
                    yield _joined(of, plan, parts.pop(plan.row))
                    done += len(plan.times)
                    if progress:
                        progress(done, total)


@dataclass(frozen=True)
class _Part:
    """What came of a passage: (k, F) and (k, D), none where it failed."""

    of: DecodedJob
    visual: torch.Tensor
    embedding: torch.Tensor


def _decoded(
    of: InferenceEngine, jobs: Sequence[DecodeJob], thumbnails: bool
) -> Iterator[list[DecodedJob]]:
    """Batches of passages in their order; a video that ends its decoding process fails."""
    left = deque(batch_jobs(jobs, of.batch_size))
    while left:
        workers = min(of.workers, len(left))
        batches = decode_jobs(list(left), of.model.clip, workers=workers, thumbnails=thumbnails)
        try:
            for decoded in batches:
                left.popleft()
                yield decoded
        except DecoderExitError as error:
            in_flight = [job for batch in islice(left, PREFETCH * workers) for job in batch]
            broken = _crashing(in_flight) or _ending_alone(of, in_flight, thumbnails)
            if not broken:
                raise VideoError(
                    f"decoding ended ({error}): perhaps memory ran out; "
                    "fewer workers or a smaller batch need less"
                ) from error
            # They are done with, in one batch of failures.
            yield [
                DecodedJob(job.row, job.first, torch.empty(0), [], broken[job.row])
                for batch in left
                for job in batch
                if job.row in broken
            ]
            rest = ([job for job in batch if job.row not in broken] for batch in left)
            left = deque(batch for batch in rest if batch)


def _crashing(jobs: Sequence[DecodeJob]) -> dict[int, str]:
    """Those of some videos that end a process that decodes them, and how."""
    paths = {job.row: job.source.path for job in jobs if isinstance(job.source, Clip)}
    found = probe_videos(list(paths.values()), decode=True)
    return {
        row: columns["error"]
        for row, columns in zip(paths, found, strict=True)
        if columns.get("error")
    }


def _ending_alone(
    of: InferenceEngine, jobs: Sequence[DecodeJob], thumbnails: bool
) -> dict[int, str]:
    """Those of some videos that end a process that has nothing else to decode, and how.

    None where all of several do: it is hardly a video then.
    """
    found: dict[int, str] = {}
    left = [(job, job.source.path) for job in jobs if isinstance(job.source, Clip)]
    while left:
        done = 0
        alone = [[job] for job, _ in left]
        try:
            for _ in decode_jobs(alone, of.model.clip, workers=1, thumbnails=thumbnails):
                done += 1
            break
        except DecoderExitError:
            ended, path = left[done]
            found[ended.row] = (
                f"{path}: a process that decodes {len(ended.times)} clips of it ends: "
                f"they take more than {STALLED:g} s or too much memory, or crash it; "
                "write it anew with a key frame every second"
            )
            left = [each for each in left[done:] if each[0].row != ended.row]
    rows = {job.row for job in jobs}
    return found if len(found) < len(rows) or len(rows) == 1 else {}


@torch.no_grad()
def _encoded(of: InferenceEngine, batch: Sequence[DecodedJob]) -> list[_Part]:
    none = torch.empty(0)
    good = [decoded for decoded in batch if not decoded.failure]
    parts = [_Part(decoded, none, none) for decoded in batch if decoded.failure]
    if good:
        clips = torch.cat([decoded.clips for decoded in good])
        with autocast(of.device, of.precision):
            both = of.model.encode_video(clips.to(of.device, non_blocking=True))
        sizes = [len(decoded.clips) for decoded in good]
        visual, embedding = (torch.split(each.float().cpu(), sizes) for each in both)
        parts += [_Part(*each) for each in zip(good, visual, embedding, strict=True)]
    return parts


def _joined(of: InferenceEngine, plan: ClipPlan, parts: Sequence[_Part]) -> WindowFeatures:
    """The windows of a video whose clips are all there."""
    place: dict[int, int] = {}
    good = [part for part in parts if not part.of.failure]
    for part in good:
        for i in range(len(part.visual)):
            place[part.of.first + i] = len(place)
    failures = sorted((part.of.first, part.of.failure) for part in parts if part.of.failure)
    failure = failures[0][1] if failures else ""
    kept = [i for i, clips in enumerate(plan.clips) if all(clip in place for clip in clips)]
    if not kept:
        return _nothing(of, plan.row, failure)
    visual = torch.cat([part.visual for part in good])
    embedding = torch.cat([part.embedding for part in good])
    pictures = [picture for part in good for picture in part.of.thumbnails]
    members = [[place[clip] for clip in plan.clips[i]] for i in kept]
    if failure:
        failure = f"{failure} ({len(plan.spans) - len(kept)} of {len(plan.spans)} windows left out)"
    return WindowFeatures(
        plan.row,
        [plan.spans[i] for i in kept],
        torch.stack([visual[of_window].mean(dim=0) for of_window in members]),
        torch.stack([F.normalize(embedding[of_window].sum(dim=0), dim=0) for of_window in members]),
        [pictures[of_window[len(of_window) // 2]] for of_window in members] if pictures else [],
        failure,
    )


def _nothing(of: InferenceEngine, row: int, failure: str) -> WindowFeatures:
    visual = torch.empty(0, of.model.video_encoder.features)
    return WindowFeatures(row, [], visual, torch.empty(0, of.model.head.embedding), failure=failure)


PRECISIONS = ("auto", "bf16", "fp32")
EMBEDDING = ("video_head", "text_encoder", "text_head")  # without these a text means nothing


@dataclass(frozen=True)
class InferenceEngine:
    """A model where it computes.

    Attributes:
        model: in eval mode, on ``device``.
        device: of the network.
        precision: see `crosspair.config.TrainingConfig`.
        batch_size: clips that go through the network at a time, at most.
        workers: decoding processes.
    """

    model: CPD
    device: torch.device
    precision: str = "auto"
    batch_size: int = 32
    workers: int = 2


def load_engine(
    source: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 32,
    workers: int | None = None,
) -> InferenceEngine:
    """Load a model to where it computes fastest.

    Args:
        source: a model folder, or a name on the hub.
        device: as PyTorch calls it; "auto": the first GPU, or else the processor.
        precision: "auto", "bf16" or "fp32", see `crosspair.config.TrainingConfig`.
        batch_size: clips that go through the network at a time, at most.
        workers: decoding processes; None: one a core, 8 at most.

    Raises:
        ModelError: there is no such model, or no such device.
        RecipeError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise RecipeError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
    name = device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(name)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {device!r} cannot be used here: {reason}") from error
    model = CPD.from_pretrained(source).to(where).eval()
    return InferenceEngine(
        model, where, precision, batch_size, min(8, cpu_count()) if workers is None else workers
    )


def has_text_tower(model: CPD) -> bool:
    """Whether cosines of texts and videos mean anything; by imported video encoders they do not."""
    return not set(EMBEDDING) & set(model.untrained)


def check_text_tower(model: CPD, texts: Iterable[str] = ()) -> None:
    """See that texts can be compared with videos.

    Raises:
        ModelError: none can.
        TextError: the model knows no word of one of these.
    """
    if not has_text_tower(model):
        raise ModelError(
            "this model reads no text, as its text tower is not trained; search by a video, or let "
            '"crosspair pretrain --init" make a model of it that reads'
        )
    for text in texts:
        if model.text_encoder.is_empty(text):
            raise TextError(f"the model knows no word of {text!r}")
