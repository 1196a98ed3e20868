"""What a model makes of videos, whole or in windows."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
import torch.nn.functional as F

from crosspair.clip import Clip
from crosspair.corpora import Manifest
from crosspair.corpora.probing import probe_all
from crosspair.distributed import World
from crosspair.errors import VideoError
from crosspair.evaluation.features import CLIPS, extract_features
from crosspair.library.engines import Engine
from crosspair.library.passage import (
    PREFETCH,
    STALLED,
    Decoded,
    DecodingEndedError,
    Passage,
    batched,
    decode_passages,
    passages,
)
from crosspair.library.windows import TOGETHER, Plan, Windows
from crosspair.models.inference import inference
from crosspair.precision import autocast

Progress = Callable[[int, int], None]

LONGEST = 7 * 24 * 3600.0  # s; the windows of a length that is made up fill all memory
FULL_HD = 1920 * 1080  # pixels; larger frames are decoded fewer at a time, as all are held at once


@dataclass(frozen=True)
class Encoded:
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


def encode_whole(
    of: Engine, manifest: Manifest, clips: int = CLIPS, progress: Progress | None = None
) -> Iterator[Encoded]:
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
            yield Encoded(row, [(starts[row], ends[row])], found.visual[at], found.embedding[at])
        else:
            yield _nothing(of, row, failures[pair_id])


def encode_windows(
    of: Engine,
    manifest: Manifest,
    windows: Windows,
    *,
    thumbnails: bool = False,
    progress: Progress | None = None,
) -> Iterator[Encoded]:
    """Windows of each video.

    A window that cannot be read is left out, and the video's other windows stay.

    Args:
        of: what to encode with.
        manifest: the videos, probed (`crosspair.library.videos.probed`).
        windows: how to cut them.
        thumbnails: whether to make a picture of each window.
        progress: called with the clips done and their number.

    Yields:
        Every video once: those that cannot be read at all first, then the others in their order.

    Raises:
        VideoError: decoding ended, and not by a video.
    """
    plans: list[Plan] = []
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
    of: Engine,
    plans: Sequence[Plan],
    *,
    thumbnails: bool = False,
    progress: Progress | None = None,
) -> Iterator[Encoded]:
    """Carry out plans, in their order.

    Args:
        of: what to encode with.
        plans: see `crosspair.library.windows.Plan`.
        thumbnails, progress: see `encode_windows`.

    Raises:
        VideoError: decoding ended, and not by a video.
    """
    jobs = [job for plan in plans for job in passages(plan)]
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

    of: Decoded
    visual: torch.Tensor
    embedding: torch.Tensor


def _decoded(of: Engine, jobs: Sequence[Passage], thumbnails: bool) -> Iterator[list[Decoded]]:
    """Batches of passages in their order; a video that ends its decoding process fails."""
    left = deque(batched(jobs, of.batch_size))
    while left:
        workers = min(of.workers, len(left))
        batches = decode_passages(list(left), of.model.clip, workers=workers, thumbnails=thumbnails)
        try:
            for decoded in batches:
                left.popleft()
                yield decoded
        except DecodingEndedError as error:
            in_flight = [job for batch in islice(left, PREFETCH * workers) for job in batch]
            broken = _crashing(in_flight) or _ending_alone(of, in_flight, thumbnails)
            if not broken:
                raise VideoError(
                    f"decoding ended ({error}): perhaps memory ran out; "
                    "fewer workers or a smaller batch need less"
                ) from error
            # They are done with, in one batch of failures.
            yield [
                Decoded(job.row, job.first, torch.empty(0), [], broken[job.row])
                for batch in left
                for job in batch
                if job.row in broken
            ]
            rest = ([job for job in batch if job.row not in broken] for batch in left)
            left = deque(batch for batch in rest if batch)


def _crashing(jobs: Sequence[Passage]) -> dict[int, str]:
    """Those of some videos that end a process that decodes them, and how."""
    paths = {job.row: job.source.path for job in jobs if isinstance(job.source, Clip)}
    found = probe_all(list(paths.values()), decode=True)
    return {
        row: columns["error"]
        for row, columns in zip(paths, found, strict=True)
        if columns.get("error")
    }


def _ending_alone(of: Engine, jobs: Sequence[Passage], thumbnails: bool) -> dict[int, str]:
    """Those of some videos that end a process that has nothing else to decode, and how.

    None where all of several do: it is hardly a video then.
    """
    found: dict[int, str] = {}
    left = [(job, job.source.path) for job in jobs if isinstance(job.source, Clip)]
    while left:
        done = 0
        alone = [[job] for job, _ in left]
        try:
            for _ in decode_passages(alone, of.model.clip, workers=1, thumbnails=thumbnails):
                done += 1
            break
        except DecodingEndedError:
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
def _encoded(of: Engine, batch: Sequence[Decoded]) -> list[_Part]:
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


def _joined(of: Engine, plan: Plan, parts: Sequence[_Part]) -> Encoded:
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
    return Encoded(
        plan.row,
        [plan.spans[i] for i in kept],
        torch.stack([visual[of_window].mean(dim=0) for of_window in members]),
        torch.stack([F.normalize(embedding[of_window].sum(dim=0), dim=0) for of_window in members]),
        [pictures[of_window[len(of_window) // 2]] for of_window in members] if pictures else [],
        failure,
    )


def _nothing(of: Engine, row: int, failure: str) -> Encoded:
    visual = torch.empty(0, of.model.video_encoder.features)
    return Encoded(row, [], visual, torch.empty(0, of.model.head.embedding), failure=failure)
