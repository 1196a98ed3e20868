"""A trained model put to use in a few lines: embed videos and texts, classify videos.

import crosspair

model = crosspair.load("runs/mine/model")
found = model.embed_videos(["holiday.mp4", "videos/"])
ranked = model.classify("videos/", ["surfing", "playing guitar"])
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from crosspair.corpora.build import class_phrase
from crosspair.corpora.inputs import collect_videos, probe_missing
from crosspair.corpora.manifest import Manifest
from crosspair.errors import CrosspairError, VideoError
from crosspair.evaluation.encode import (
    CLIPS,
    InferenceEngine,
    WindowFeatures,
    check_text_tower,
    encode_features,
    encode_whole_videos,
    encode_windows,
    load_engine,
)
from crosspair.evaluation.features import embed_texts
from crosspair.evaluation.windows import Windows, whole_video_plan
from crosspair.evaluation.zeroshot import class_embeddings
from crosspair.files import atomic_write
from crosspair.library.search import TimelineSegment, timeline
from crosspair.progress import delayed_progress
from crosspair.video.decode import REFERENCE_FPS, check_frame_array

Video = str | os.PathLike[str] | np.ndarray
Videos = Video | Manifest | Sequence[Video]

TEMPERATURE = 0.07  # τ of Equation 3


@dataclass(frozen=True)
class Embedded:
    """What a model makes of videos: a row for each, or for each of its windows.

    Attributes:
        ids: (n,) the videos' paths, the ``pair_id`` of a manifest's, "array 0" of the first array.
        spans: (n,) start and end in s; None where they are the file's own.
        visual: (n, F) float32, the visual feature (before the mapping layer).
        embedding: (n, D) float32, f_v, of unit norm: cosine with a text's is their product.
        failures: (id, message) of each video that could not be read, all of it or a part; the
            former have no row.
    """

    ids: list[str]
    spans: list[tuple[float | None, float | None]]
    visual: np.ndarray
    embedding: np.ndarray
    failures: list[tuple[str, str]]


@dataclass(frozen=True)
class Classified:
    """How near videos, or their windows, are to classes.

    Attributes:
        ids, spans, failures: see `Embedded`.
        classes: C names.
        cosines: (n, C) float32, of video and class, -1 to 1.
    """

    ids: list[str]
    spans: list[tuple[float | None, float | None]]
    classes: list[str]
    cosines: np.ndarray
    failures: list[tuple[str, str]]

    @property
    def scores(self) -> np.ndarray:
        """(n, C) float32, 0 to 1: cosines as shares of 1 among these classes (Equation 3)."""
        return _shares(self.cosines)

    def videos(self) -> Iterator[tuple[str, list[tuple[str, float]], list[TimelineSegment]]]:
        """Each video's id, all classes with their scores, best first, and a timeline.

        The score of a video in windows is that of its mean cosine. Without windows, the timeline
        of a whole file is empty; a part whose start and end a manifest gives is one stretch.
        """
        for name, members in groupby(range(len(self.ids)), key=self.ids.__getitem__):
            rows = list(members)
            (scores,) = _shares(self.cosines[rows].mean(axis=0, keepdims=True))
            ranked = [(self.classes[i], float(scores[i])) for i in np.argsort(-scores)]
            spans = [(start, end) for start, end in (self.spans[row] for row in rows)
                     if start is not None and end is not None]  # fmt: skip
            whole = len(spans) < len(rows)
            yield name, ranked, [] if whole else timeline(spans, self.scores[rows], self.classes)


class Model:
    """A pre-trained model, ready for use.

    Args:
        engine: the model, and where it computes.

    Attributes:
        engine: as given; ``engine.model`` is the `crosspair.models.CPD`.
    """

    def __init__(self, engine: InferenceEngine) -> None:
        self.engine = engine

    def __repr__(self) -> str:
        video = self.engine.model.video
        return f"Model(ResNet-{video.depth}, {self.engine.device}, {self.engine.precision})"

    def embed_videos(
        self, videos: Videos, *, clips: int = CLIPS, windows: Windows | None = None
    ) -> Embedded:
        """Embed videos.

        Args:
            videos: one or many: files, URLs, folders, manifests (``.parquet``), arrays
                (T, H, W, 3) uint8, RGB, of 30 frames a second. What is named twice counts once.
            clips: uniformly spread clips of a video, whose mean is taken (Section 4.2).
            windows: give a row for each of these instead of one for a video.

        Raises:
            VideoError: none of the videos can be read, or an array is no video.
            ManifestError: a folder holds no video, or a manifest does not do.
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
            reason = failures[0][1] if failures else "none are named"
            raise VideoError(f"none of the {len(failures)} videos can be read: {reason}")
        return Embedded(
            ids, spans, torch.cat(visual).numpy(), torch.cat(embedding).numpy(), failures
        )

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, D) float32, f_t, of unit norm.

        Raises:
            ModelError: the model's text tower is untrained.
        """
        check_text_tower(self.engine.model)
        if isinstance(texts, str):
            raise CrosspairError("embed_texts takes a list of texts; give [text] for one")
        embedded: np.ndarray = embed_texts(self.engine.model, list(texts)).numpy()
        return embedded

    def classify(
        self,
        videos: Videos,
        classes: Sequence[str],
        *,
        templates: Sequence[str] = ("{}",),
        clips: int = CLIPS,
        windows: Windows | None = None,
    ) -> Classified:
        """Classify videos by the nearest class name (Appendix C), without having seen any.

        Args:
            videos: see `embed_videos`, as for ``clips`` and ``windows``.
            classes: their names.
            templates: texts with ``{}`` where the name goes; what they give is averaged.

        Raises:
            CrosspairError: there are no classes, or a template lacks ``{}``.
            ModelError: the model's text tower is untrained.
            TextError: the model knows no word of a class's name.
        """
        check_text_tower(self.engine.model)
        if isinstance(classes, str) or not classes:
            raise CrosspairError("classify takes a list of class names, at least one")
        lacking = [template for template in templates if "{}" not in template]
        if lacking or not templates:
            raise CrosspairError(f"a template holds {{}} where the class name goes: {lacking}")
        check_text_tower(self.engine.model, map(class_phrase, classes))
        names = class_embeddings(self.engine.model, classes, templates).numpy()
        found = self.embed_videos(videos, clips=clips, windows=windows)
        return Classified(
            found.ids, found.spans, list(classes), found.embedding @ names.T, found.failures
        )

    def encode(
        self, videos: Videos, *, clips: int = CLIPS, windows: Windows | None = None
    ) -> Iterator[tuple[str, WindowFeatures]]:
        """The same as `embed_videos`, a video at a time: its id, and what came of it."""
        if isinstance(videos, Manifest):
            yield from self._encode_files(videos, clips, windows)
            return
        given = [videos] if isinstance(videos, str | os.PathLike | np.ndarray) else list(videos)
        arrays = [each for each in given if isinstance(each, np.ndarray)]
        named = [each for each in given if not isinstance(each, np.ndarray)]
        if named:
            yield from self._encode_files(collect_videos(named), clips, windows)
        if arrays:
            yield from self._encode_arrays(arrays, clips, windows)

    def _encode_files(
        self, manifest: Manifest, clips: int, windows: Windows | None
    ) -> Iterator[tuple[str, WindowFeatures]]:
        ids = manifest.column("pair_id")
        with delayed_progress("encoding", "clips") as progress:
            if windows:
                encoded = encode_windows(
                    self.engine, probe_missing(manifest), windows, progress=progress
                )
            else:
                encoded = encode_whole_videos(self.engine, manifest, clips, progress)
            for each in encoded:
                yield ids[each.row], each

    def _encode_arrays(
        self, arrays: Sequence[np.ndarray], clips: int, windows: Windows | None
    ) -> Iterator[tuple[str, WindowFeatures]]:
        config = self.engine.model.clip
        plans = []
        for row, frames in enumerate(arrays):
            check_frame_array(frames, f"array {row}")
            length = len(frames) / REFERENCE_FPS
            plans.append(
                windows.plan(row, frames, length, config)
                if windows
                else whole_video_plan(row, frames, clips)
            )
        # Here, not in other processes, which would need copies.
        here = replace(self.engine, workers=0)
        for each in encode_features(here, plans):
            yield f"array {each.row}", each


def _shares(cosines: np.ndarray) -> np.ndarray:
    shares: np.ndarray = torch.softmax(torch.from_numpy(cosines) / TEMPERATURE, 1).numpy()
    return shares


def load(
    source: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 32,
    workers: int | None = None,
) -> Model:
    """Load a model from a folder, or by its name on the hub, to use it.

    Args:
        source: what `crosspair pretrain` made (its ``model`` folder), or a name on the hub.
        device: as PyTorch calls it; "auto": the first GPU, or else the processor.
        precision: "bf16", "fp32", or "auto": bf16 where the device computes in it.
        batch_size: clips that go through the network at a time, at most.
        workers: decoding processes; None: one a core, 8 at most.

    Raises:
        ModelError: there is no such model, or no such device.
    """
    return Model(
        load_engine(
            source, device=device, precision=precision, batch_size=batch_size, workers=workers
        )
    )


GROUP = 4096  # rows that are held before they are written


def write_embeddings(
    path: Path, encoded: Iterable[tuple[str, WindowFeatures]], about: Mapping[str, Any]
) -> tuple[int, dict[str, str]]:
    """Write a row a video or a window, in one step.

    The columns: ``video``, ``start`` and ``end`` (s; null where they are the file's own),
    ``visual``, ``embedding`` (float32), ``error``. What could not be read is a row, too, with
    neither feature.

    Args:
        path: of the file.
        encoded: ids of videos, and what came of them.
        about: goes to the file's metadata as JSON, under ``crosspair``.

    Returns:
        How many rows have features, and the errors by video.

    Raises:
        VideoError: no video could be read; nothing is written then.
        RunError: the file cannot be written.
    """
    count, failures = 0, dict[str, str]()
    with atomic_write(path) as partial:
        writer: pq.ParquetWriter | None = None
        try:
            held: list[dict[str, Any]] = []
            for name, each in encoded:
                held += _rows(name, each)
                count += len(each.spans)
                if each.failure:
                    failures[name] = each.failure
                schema = _schema(each, about)
                writer = writer or pq.ParquetWriter(partial, schema)
                if len(held) >= GROUP:
                    writer.write_table(pa.Table.from_pylist(held, schema=schema))
                    held = []
            if not count:
                reason = next(iter(failures.values()), "none are named")
                raise VideoError(f"none of the {len(failures)} videos can be read: {reason}")
            assert writer is not None
            writer.write_table(pa.Table.from_pylist(held, schema=schema))
        finally:
            if writer is not None:
                writer.close()
    return count, failures


def _rows(name: str, each: WindowFeatures) -> Iterable[dict[str, Any]]:
    both = zip(each.spans, each.visual.numpy(), each.embedding.numpy(), strict=True)
    for (start, end), visual, embedding in both:
        yield {
            "video": name,
            "start": start,
            "end": end,
            "visual": visual,
            "embedding": embedding,
        }
    if each.failure:
        yield {"video": name, "error": each.failure}


def _schema(each: WindowFeatures, about: Mapping[str, Any]) -> pa.Schema:
    features, dimensions = each.visual.shape[1], each.embedding.shape[1]
    return pa.schema(
        [
            ("video", pa.string()),
            ("start", pa.float64()),
            ("end", pa.float64()),
            ("visual", pa.list_(pa.float32(), features)),
            ("embedding", pa.list_(pa.float32(), dimensions)),
            ("error", pa.string()),
        ],
        {"crosspair": json.dumps(about)},
    )
