"""Outputs of a model for some videos: clips retrieved by texts, or predicted classes, with animated frames."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from crosspair.config import Clip, FinetuneRecipe, MultiviewConfig, Recipe
from crosspair.corpora.build import class_phrase
from crosspair.corpora.manifest import Manifest
from crosspair.distributed import World
from crosspair.errors import RunError, VideoError
from crosspair.evaluation.encode import usable_rows
from crosspair.evaluation.features import embed_texts, extract_features
from crosspair.evaluation.multiview import multiview_scores
from crosspair.models.classifier import Classifier
from crosspair.models.cpd import CPD
from crosspair.reporting.tables import format_value
from crosspair.training.finetune import select_labelled_videos
from crosspair.training.run import MODEL
from crosspair.video.decode import REFERENCE_FPS
from crosspair.video.views import PREVIEW_STRIDE, blank_preview, join_frames, read_preview
from crosspair.workers import cpu_count

_VIDEOS = 200  # maximum number of videos to choose examples from, one clip of each
_CPU_PIXELS = _VIDEOS * 8 * 112**2  # maximum number of pixels of these clips without a GPU: seconds
_QUERIES, _TILES = 4, 6  # queries or classes, and clips of each


@dataclass(frozen=True)
class SheetTile:
    """A clip of a video: 16 frames of its middle, 4/30 s apart, or one grey frame if it is unreadable."""

    caption: str
    score: float
    correct: bool
    frames: np.ndarray  # (T, H, W, 3) uint8
    error: str = ""  # why the video is unreadable

    def strip(self) -> Image.Image:
        """Return an image of four evenly spaced frames side by side, with white seams."""
        return join_frames(self.frames[np.linspace(0, len(self.frames) - 1, 4).round().astype(int)])

    def animation(self) -> bytes:
        """Encode the frames as a looping WebP animation at normal speed."""
        return _encode_webp(self.frames)

    def still(self) -> bytes:
        """Encode the middle frame as WebP, for print and for readers who prefer no motion."""
        return _encode_webp(self.frames[[len(self.frames) // 2]])


@dataclass(frozen=True)
class ContactSheet:
    """A query with its retrieved clips, best first, or a class with its predictions."""

    query: str
    tiles: Sequence[SheetTile]
    note: str = ""


@dataclass(frozen=True)
class Examples:
    """A section of the page with outputs of a model."""

    title: str
    sheets: Sequence[ContactSheet]
    caption: str


def load_tile(clip: Clip, caption: str, score: float, correct: bool) -> SheetTile:
    """Decode and scale a clip; a video that cannot be read becomes a grey frame with the error."""
    try:
        return SheetTile(caption, score, correct, read_preview(clip))
    except VideoError as error:
        return SheetTile(caption, score, correct, blank_preview(1), str(error))


def _encode_webp(frames: np.ndarray) -> bytes:
    first, *others = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    first.save(
        file, "WEBP", quality=70, save_all=bool(others), append_images=others, loop=0,
        duration=round(1000 * PREVIEW_STRIDE / REFERENCE_FPS),
    )  # fmt: skip
    return file.getvalue()


@torch.random.fork_rng(devices=[])  # loading a model draws its initial weights
def load_examples(run: Path, recipe: Recipe | FinetuneRecipe, inputs: Mapping[str, str]) -> Examples:
    """Encode validation videos with a run's model and select examples; random generators are left unchanged.

    Args:
        run: the run folder.
        recipe: of the run.
        inputs: of the run's ``manifest.json``.

    Raises:
        CrosspairError: model, manifest or videos are missing or unreadable.
    """
    folder, clip, training = run / MODEL, recipe.clip, recipe.training
    if not folder.is_dir():
        raise RunError("the training has not written a model yet")
    if not inputs.get("file"):
        raise RunError("the run folder does not contain the path of its manifest")
    manifest = Manifest.read(inputs["file"])
    if manifest.hash != inputs.get("manifest"):
        raise RunError(f"{manifest.path} has changed since the training")
    if isinstance(recipe, Recipe):
        videos = manifest.split("val")
    else:
        tested = inputs.get("tested", "test")
        videos = select_labelled_videos(manifest, recipe.labels, training.seed, tested).validation
    usable, _ = usable_rows(videos)
    if not usable:
        raise RunError("there are no validation videos")
    has_gpu = torch.cuda.is_available()
    limit = _VIDEOS if has_gpu else min(_VIDEOS, max(_TILES, _CPU_PIXELS // (clip.frames * clip.size**2)))
    videos = videos.take(usable[:: math.ceil(len(usable) / limit)])
    world = World(device=torch.device("cuda" if has_gpu else "cpu"))
    settings: dict[str, Any] = {
        "workers": min(training.workers, cpu_count()), "world": world, "precision": training.precision,
    }  # fmt: skip
    if isinstance(recipe, Recipe):
        model = CPD.from_pretrained(folder).to(world.device)
        features = extract_features(model, videos, clips=1, **settings)
        return retrieval_examples(model, videos, features.rows.tolist(), features.embedding)
    classifier = Classifier.from_pretrained(folder).to(world.device)
    rows, probabilities = multiview_scores(classifier, videos, MultiviewConfig(clips=1, crops=1), **settings)
    return prediction_examples(classifier.classes, videos, rows.tolist(), probabilities)


def retrieval_examples(model: CPD, manifest: Manifest, rows: Sequence[int], embedding: torch.Tensor) -> Examples:
    """Retrieve six videos for each of four queries, spaced evenly (not the best).

    Queries are class names in alphabetical order, if all videos have a label whose words the model
    knows; otherwise titles.

    Args:
        model: embeds the queries.
        manifest: the videos.
        rows: n rows of the manifest.
        embedding: (n, D), f_v of these rows.
    """
    labels, titles, clips = manifest.column("label"), manifest.column("title"), manifest.clips()
    texts, is_empty = manifest.column(model.text.column), model.text_encoder.is_empty
    known = [row for row in rows if texts[row] and not is_empty(texts[row])]
    queries = [(texts[row], [row == other for other in rows]) for row in _spread(known)]
    names = {class_phrase(label): label for label in sorted({labels[row] or "" for row in rows})}
    if all(names) and not any(map(is_empty, names)):
        queries = [(name, [labels[row] == names[name] for row in rows]) for name in _spread([*names])]
    sheets = []
    for (query, correct), text in zip(queries, embed_texts(model, [query for query, _ in queries]), strict=True):
        scores, order = (embedding @ text).sort(descending=True, stable=True)
        ranks = [rank for rank, index in enumerate(order.tolist(), start=1) if correct[index]]
        best = list(zip(order.tolist(), scores.tolist(), strict=True))[:_TILES]
        tiles = [load_tile(clips[rows[i]], f"{titles[rows[i]]}", score, correct[i]) for i, score in best]
        by_chance = (len(rows) + 1) / (len(ranks) + 1)
        note = f"first correct clip at rank {ranks[0]} of {len(rows)}; {by_chance:.0f} expected by chance"
        sheets.append(ContactSheet(query, tiles, note))
    caption = "The number is the cosine similarity of the embeddings of text and clip. Below is the clip's own title."
    return Examples("Text-to-video retrieval", sheets, caption)


def prediction_examples(
    classes: Sequence[str], manifest: Manifest, rows: Sequence[int], probabilities: torch.Tensor
) -> Examples:
    """Show the predictions for the first six videos of four classes, spaced evenly in the alphabet.

    Args:
        classes: C names.
        manifest: the videos, with labels.
        rows: n rows of the manifest.
        probabilities: (n, C), of these rows.
    """
    labels, clips = manifest.column("label"), manifest.clips()
    best, index = (values.tolist() for values in probabilities.max(dim=1))
    predicted = [(labels[row], row, classes[i], p) for row, i, p in zip(rows, index, best, strict=True)]
    sheets = []
    for label in _spread(sorted({label for label, *_ in predicted})):
        own = [(row, name, p) for true, row, name, p in predicted if true == label]
        tiles = [load_tile(clips[row], f"predicted: {name}", p, name == label) for row, name, p in own[:_TILES]]
        hits = sum(name == label for _, name, _ in own)
        note = f"{hits} of {len(own)} correct; {len(own) / len(classes):.1f} expected by chance"
        sheets.append(ContactSheet(label, tiles, note))
    accuracy = sum(label == name for label, _, name, _ in predicted) / len(predicted)
    caption = (
        f"The number is the probability of the predicted class. Of these {len(predicted)} validation videos, with one "
        f"clip each, {format_value(accuracy)} are classified correctly (chance {format_value(1 / len(classes))})."
    )
    return Examples("Predictions", sheets, caption)


def _spread(values: Sequence[Any]) -> Sequence[Any]:
    """Select four values, spaced evenly."""
    return values[:: max(1, len(values) // _QUERIES)][:_QUERIES]
