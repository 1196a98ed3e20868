"""Use a trained model: embed videos and texts, and classify videos."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from crosspair.config import ObjectiveConfig
from crosspair.corpora.build import class_phrase
from crosspair.corpora.inputs import collect_videos, probe_missing
from crosspair.corpora.manifest import Manifest
from crosspair.errors import CrosspairError, VideoError
from crosspair.evaluation.encode import (
    CLIPS,
    InferenceEngine,
    WindowFeatures,
    check_counts,
    check_text_tower,
    encode_features,
    encode_whole_videos,
    encode_windows,
    load_engine,
)
from crosspair.evaluation.features import embed_texts
from crosspair.evaluation.windows import Windows, whole_video_plan
from crosspair.evaluation.zeroshot import class_embeddings
from crosspair.files import atomic_write, check_output
from crosspair.progress import delayed_progress
from crosspair.video.decode import REFERENCE_FPS, check_frame_array

Video = str | os.PathLike[str] | np.ndarray
Videos = Video | Manifest | Sequence[Video]

ROW_GROUP = 4096  # rows per row group of an embeddings file


def load(
    source: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 32,
    workers: int | None = None,
) -> Model:
    """Load a model for inference from a model folder or the Hugging Face Hub.

    Args:
        source: model folder (``model`` in a run folder of `crosspair pretrain`) or Hub name.
        device: PyTorch device; "auto": the first GPU, or the CPU.
        precision: "bf16", "fp32", or "auto": bf16 if the device supports it in hardware.
        batch_size: maximum number of clips per forward pass.
        workers: number of decoding processes; None: number of cores, at most 8.

    Raises:
        ModelError: the model or the device does not exist.
        CrosspairError: a number is out of its range.
    """
    return Model(load_engine(source, device=device, precision=precision, batch_size=batch_size, workers=workers))


class Model:
    """A pre-trained model with its device and batch settings; ``engine.model`` is the `crosspair.models.CPD`."""

    def __init__(self, engine: InferenceEngine) -> None:
        self.engine = engine

    def __repr__(self) -> str:
        video = self.engine.model.video
        name = video.source or f"ResNet-{video.depth}"
        return f"Model({name}, {self.engine.device}, {self.engine.precision})"

    def embed_videos(self, videos: Videos, *, clips: int = CLIPS, windows: Windows | None = None) -> Embedded:
        """Embed videos.

        Args:
            videos: one or several files, URLs, folders, manifests (``.parquet``), or uint8 RGB
                arrays of shape (T, H, W, 3) at 30 frames per second. Duplicates are removed.
            clips: number of clips per video, spread uniformly and averaged (Section 4.2).
            windows: return one row for each of these windows instead of one per video.

        Raises:
            VideoError: no video can be read, or an array is not a video.
            ManifestError: a folder contains no video, or a manifest is invalid.
        """
        ids, spans, visual, embedding, failures = [], [], [], [], []
        for name, encoded in self.encode(videos, clips=clips, windows=windows):
            ids += [name] * len(encoded.spans)
            spans += encoded.spans
            visual.append(encoded.visual)
            embedding.append(encoded.embedding)
            if encoded.failure:
                failures.append((name, encoded.failure))
        if not ids:
            raise _no_readable_video([error for _, error in failures])
        return Embedded(ids, spans, torch.cat(visual), torch.cat(embedding), failures)

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the embeddings f_t of n texts, (n, D) float32, unit norm; ModelError without a text tower."""
        check_text_tower(self.engine.model)
        return embed_texts(self.engine.model, _list_texts("texts", texts))

    def classify(
        self,
        videos: Videos,
        classes: Sequence[str],
        *,
        templates: Sequence[str] = ("{}",),
        clips: int = CLIPS,
        windows: Windows | None = None,
    ) -> Classified:
        """Classify videos zero-shot, by the nearest class name (Appendix C).

        Args:
            videos, clips, windows: see `embed_videos`.
            classes: class names.
            templates: prompts that contain ``{}`` for the class name; embeddings are averaged.

        Raises:
            CrosspairError: ``classes`` is empty, or a template does not contain ``{}``.
            ModelError: the model's text tower is untrained.
            TextError: the model knows no word of a class name.
        """
        check_text_tower(self.engine.model)
        classes, templates = _list_texts("classes", classes), _list_texts("templates", templates)
        if not classes:
            raise CrosspairError("classes must be a list of at least one class name")
        invalid = [template for template in templates if "{}" not in template]
        if invalid or not templates:
            raise CrosspairError(f"templates must contain {{}} for the class name: {invalid}")
        check_text_tower(self.engine.model, map(class_phrase, classes))
        names = class_embeddings(self.engine.model, classes, templates)
        embedded = self.embed_videos(videos, clips=clips, windows=windows)
        cosines = embedded.embedding @ names.T
        temperature = self.engine.model.temperature
        return Classified(embedded.ids, embedded.spans, list(classes), cosines, embedded.failures, temperature)

    def encode(
        self, videos: Videos, *, clips: int = CLIPS, windows: Windows | None = None
    ) -> Iterator[tuple[str, WindowFeatures]]:
        """Yield the id and features of one video at a time, files before arrays; arguments as `embed_videos`."""
        check_counts(clips=clips)
        if isinstance(videos, Manifest):
            yield from self._encode_files(videos, clips, windows)
            return
        given: Any = videos
        several = isinstance(given, Iterable) and not isinstance(given, str | bytes | os.PathLike | np.ndarray)
        inputs = list(given) if several else [given]
        for each in inputs:
            if not isinstance(each, str | os.PathLike | np.ndarray):
                raise CrosspairError(f"videos must be files, URLs, folders, manifests or arrays, not {each!r}")
        arrays = [each for each in inputs if isinstance(each, np.ndarray)]
        files = [each for each in inputs if not isinstance(each, np.ndarray)]
        if files:
            yield from self._encode_files(collect_videos(files), clips, windows)
        if arrays:
            yield from self._encode_arrays(arrays, clips, windows)

    def _encode_files(
        self, manifest: Manifest, clips: int, windows: Windows | None
    ) -> Iterator[tuple[str, WindowFeatures]]:
        """Yield (pair_id, features) of each video of a manifest."""
        ids = manifest.column("pair_id")
        with delayed_progress("encoding", "clips") as progress:
            if windows:
                encoded = encode_windows(self.engine, probe_missing(manifest), windows, progress=progress)
            else:
                encoded = encode_whole_videos(self.engine, manifest, clips, progress)
            for features in encoded:
                yield ids[features.row], features

    def _encode_arrays(
        self, arrays: Sequence[np.ndarray], clips: int, windows: Windows | None
    ) -> Iterator[tuple[str, WindowFeatures]]:
        """Yield (name, features) of each array, named "array 0", "array 1", …."""
        config = self.engine.model.clip
        plans = []
        for row, frames in enumerate(arrays):
            check_frame_array(frames, f"array {row}")
            length = len(frames) / REFERENCE_FPS
            plans.append(windows.plan(row, frames, length, config) if windows else whole_video_plan(row, frames, clips))
        # Without worker processes, to which the arrays would have to be copied.
        engine = replace(self.engine, workers=0)
        for features in encode_features(engine, plans):
            yield f"array {features.row}", features


@dataclass(frozen=True)
class Embedded:
    """Embeddings of videos or of their windows.

    Attributes:
        ids: (n,) the path of each video, its ``pair_id`` in a manifest, or "array 0" for the first
            array.
        spans: (n,) start and end in s; None where it is that of the file.
        visual: (n, F) float32, visual feature before the projection head.
        embedding: (n, D) float32, f_v, unit norm; its dot product with f_t is their cosine.
        failures: (id, error) of each video that could not be read, entirely or in part. If no part
            could be read, it has no rows.
    """

    ids: list[str]
    spans: list[tuple[float | None, float | None]]
    visual: torch.Tensor
    embedding: torch.Tensor
    failures: list[tuple[str, str]]


@dataclass(frozen=True)
class Classified:
    """Similarities of videos, or of their windows, with class names.

    Attributes:
        ids, spans, failures: see `Embedded`.
        classes: C class names.
        cosines: (n, C) float32, cosine of video and class name, -1 to 1.
        temperature: see `CPD`.
    """

    ids: list[str]
    spans: list[tuple[float | None, float | None]]
    classes: list[str]
    cosines: torch.Tensor
    failures: list[tuple[str, str]]
    temperature: float = ObjectiveConfig.temperature

    @property
    def scores(self) -> torch.Tensor:
        """(n, C) float32, softmax over these classes of the cosines / temperature (Equation 3)."""
        return torch.softmax(self.cosines / self.temperature, dim=1)

    def videos(self) -> Iterator[tuple[str, list[tuple[str, float]], list[TimelineSegment]]]:
        """Yield each video's id, its classes with scores in descending order, and its timeline.

        With windows, the score of a video is that of its mean cosine. Without windows, the
        timeline is empty for a whole file and has one segment for a clip with start and end.
        """
        scores = self.scores
        for name, members in groupby(range(len(self.ids)), key=self.ids.__getitem__):
            rows = list(members)
            mean = torch.softmax(self.cosines[rows].mean(dim=0) / self.temperature, dim=0)
            ranked = [(self.classes[i], float(mean[i])) for i in mean.argsort(descending=True, stable=True).tolist()]
            spans = [(start, end) for start, end in map(self.spans.__getitem__, rows)
                     if start is not None and end is not None]  # fmt: skip
            whole = len(spans) < len(rows)
            yield name, ranked, [] if whole else timeline(spans, scores[rows], self.classes)


def _list_texts(name: str, texts: Iterable[str]) -> list[str]:
    found = list(texts) if isinstance(texts, Iterable) and not isinstance(texts, str) else [None]
    if not all(isinstance(text, str) for text in found):
        raise CrosspairError(f"{name} must be a list of texts; pass [text] for a single text")
    return cast("list[str]", found)


def _no_readable_video(errors: Sequence[str]) -> VideoError:
    if not errors:
        return VideoError("no videos given")
    return VideoError(f"0 of {len(errors)} videos can be read; first error: {errors[0]}")


@dataclass(frozen=True)
class TimelineSegment:
    """A time range of a video, in s, with one class and the mean score of its windows, 0 to 1."""

    start: float
    end: float
    label: str
    score: float


def timeline(
    spans: Sequence[tuple[float, float]], scores: torch.Tensor, classes: Sequence[str]
) -> list[TimelineSegment]:
    """Merge consecutive windows with the same best class.

    Args:
        spans: start and end of each window in s, ascending; windows may overlap.
        scores: (n, C), score of each window and class.
        classes: C class names.

    Returns:
        Segments in order of time. Where windows of two classes overlap, the later one begins the
        next segment. Gaps between windows, which could not be read, are not covered.

    >>> scores = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    >>> first, second = timeline([(0, 4), (2, 6), (4, 8)], scores, ["dog", "cat"])
    >>> first, second.start
    (TimelineSegment(start=0, end=4, label='dog', score=1.0), 4)
    """
    best = scores.argmax(dim=1).tolist()
    after_gap = (start > end for (_, end), (start, _) in pairwise(spans))
    gaps = list(accumulate(after_gap, initial=0))  # number of gaps before each window
    segments = []
    for (_, label), members in groupby(range(len(spans)), key=lambda i: (gaps[i], best[i])):
        rows = list(members)
        following = rows[-1] + 1
        end = spans[rows[-1]][1]
        if following < len(spans):
            end = min(end, spans[following][0])
        score = float(scores[rows, label].mean())
        segments.append(TimelineSegment(spans[rows[0]][0], end, classes[label], score))
    return segments


def write_embeddings(
    path: Path, encoded: Iterable[tuple[str, WindowFeatures]], metadata: Mapping[str, Any]
) -> tuple[int, dict[str, str]]:
    """Write embeddings to a Parquet file, atomically, with one row per video or window.

    The columns are ``video``, ``start`` and ``end`` (s; null where they are those of the file),
    ``visual``, ``embedding`` (float32) and ``error``. Each failure is a row without features.

    Args:
        path: output file.
        encoded: ids and features of videos, see `Model.encode`.
        metadata: saved as JSON in the file's metadata, under ``crosspair``.

    Returns:
        The number of rows with features, and the errors by video.

    Raises:
        VideoError: no video can be read; the file is not written.
        RunError: the file exists and is not a file of embeddings.
    """
    check_output(path, "a file of embeddings")
    count, failures, rows = 0, dict[str, str](), list[dict[str, Any]]()
    with atomic_write(path) as partial, ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for name, features in encoded:
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(partial, _embedding_schema(features, metadata)))
            values = zip(features.spans, features.visual.numpy(), features.embedding.numpy(), strict=True)
            for (start, end), visual, embedding in values:
                rows.append({"video": name, "start": start, "end": end, "visual": visual, "embedding": embedding})
            count += len(features.spans)
            if features.failure:
                rows.append({"video": name, "error": features.failure})
                failures[name] = features.failure
            if len(rows) >= ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema=writer.schema))
                rows = []
        if not count:
            raise _no_readable_video(list(failures.values()))
        assert writer is not None
        writer.write_table(pa.Table.from_pylist(rows, schema=writer.schema))
    return count, failures


def _embedding_schema(features: WindowFeatures, metadata: Mapping[str, Any]) -> pa.Schema:
    columns = {"video": pa.string(), "start": pa.float64(), "end": pa.float64()}
    for name in ("visual", "embedding"):
        columns[name] = pa.list_(pa.float32(), getattr(features, name).shape[1])
    return pa.schema([*columns.items(), ("error", pa.string())], {"crosspair": json.dumps(metadata)})
