"""Queries that combine texts, images and videos: the normalised weighted sum of their embeddings."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
from PIL import Image, ImageOps

from crosspair.corpora.inputs import collect_videos
from crosspair.errors import VideoError, format_error
from crosspair.evaluation.encode import InferenceEngine, check_text_tower, encode_features, encode_whole_videos
from crosspair.evaluation.features import embed_texts
from crosspair.evaluation.windows import whole_video_plan
from crosspair.library.store import LibraryError

_WEIGHTED = re.compile(r"(\d+(?:\.\d+)?|\.\d+):(?!\d)(.*)", re.ASCII | re.DOTALL)
MAX_WEIGHT = 1e6
MIN_NORM = 1e-4  # of the sum relative to the weights; the direction of a shorter sum is a rounding error
MAX_ASPECT = 64  # of an image


@dataclass(frozen=True)
class QueryPart:
    """A text, an image file or a video, and its weight in a query."""

    value: str | Path
    kind: Literal["text", "image", "video"] = "text"
    weight: float = 1.0  # negative: find windows that are less similar to it

    def __post_init__(self) -> None:
        if self.kind == "text" and not isinstance(self.value, str):
            raise LibraryError(f"a text of a query must be a string, not {self.value!r}")
        if not 0 < abs(self.weight) <= MAX_WEIGHT:
            raise LibraryError(
                f"the weight of {str(self.value)!r} must be above 0 and at most {MAX_WEIGHT:,.0f}, not {self.weight:g}"
            )

    @classmethod
    def parse(cls, word: str, kind: Literal["text", "image", "video"] = "text", sign: int = 1) -> Self:
        """Parse "WEIGHT:VALUE" or "VALUE", whose weight is 1.

        A number and a colon are a weight unless a digit follows: "2:30 pm" is a text, "2: 30 pm" the text "30 pm".

        >>> QueryPart.parse("0.5:a dog", sign=-1)
        QueryPart(value='a dog', kind='text', weight=-0.5)
        >>> QueryPart.parse("2:30 pm").value, QueryPart.parse("note: a dog").value
        ('2:30 pm', 'note: a dog')
        """
        weighted = _WEIGHTED.fullmatch(word)
        weight, value = weighted.groups() if weighted else ("1", word)
        if not (value := value.strip()):
            raise LibraryError(f"{word!r} has a weight, but no {kind}")
        return cls(value, kind, sign * float(weight))


def embed_query(engine: InferenceEngine, parts: Sequence[QueryPart]) -> np.ndarray:
    """Return the normalised weighted sum of the unit embeddings of the parts of a query, (D,) float32.

    Raises:
        LibraryError: no part has a positive weight, the parts cancel out, or an image cannot be read.
        ModelError: a part is a text and the model's text tower is untrained.
        TextError: the model knows no word of a text.
        VideoError: a video cannot be read, or is not a single video.
    """
    if all(part.weight < 0 for part in parts):
        raise LibraryError("a query needs a text, image or video with a positive weight, not only what to avoid")
    texts = [str(part.value) for part in parts if part.kind == "text"]
    if texts:
        check_text_tower(engine.model, texts)
    total = np.sum([part.weight * _embed_part(engine, part) for part in parts], axis=0)  # (D,)
    norm = float(np.linalg.norm(total))
    if norm <= MIN_NORM * max(abs(part.weight) for part in parts):
        raise LibraryError("the parts of the query cancel each other out; change a weight")
    return np.asarray(total / norm, dtype=np.float32)


def _embed_part(engine: InferenceEngine, part: QueryPart) -> np.ndarray:
    """Return the unit embedding (D,) of a text, an image or a video."""
    if part.kind == "text":
        return embed_texts(engine.model, [str(part.value)])[0].double().numpy()
    if part.kind == "image":
        frames = read_image(part.value)[None]  # (1, H, W, 3), repeated in each clip
        (encoded,) = encode_features(replace(engine, workers=0), [whole_video_plan(0, frames, 1)])
    else:
        manifest = collect_videos([part.value])
        if len(manifest) != 1:
            raise VideoError(f"{part.value} contains {len(manifest)} videos; a query must be one video")
        (encoded,) = encode_whole_videos(engine, manifest)
    if encoded.failure:
        raise VideoError(encoded.failure)
    return encoded.embedding[0].double().numpy()


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB: upright, on white where it is transparent, the first frame of an animation.

    Raises:
        LibraryError: Pillow cannot read it, or its longer side is more than 64 times the shorter one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # more than 89 megapixels
            image: Image.Image = ImageOps.exif_transpose(Image.open(path))
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise ValueError(f"the longer side of {image.size} is more than {MAX_ASPECT} times the shorter one")
        if image.mode == "I" or image.mode.startswith("I;16"):  # 16 bits
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))
    except Exception as error:  # damaged files cause many types
        raise LibraryError(f"image {path} cannot be read: {format_error(error)}") from error
