"""ImageNet's networks as they are: features of frames, the frozen baseline of Section 4.2."""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch

from crosspair.config import ClipConfig, FinetuneRecipe, HeadConfig, TextConfig, VideoConfig
from crosspair.errors import ModelError
from crosspair.models.classifier import Classifier
from crosspair.models.cpd import CPD, PARTS, TextEncoder
from crosspair.models.foreign_resnets import IMAGENET_MEAN, IMAGENET_STD, inflate
from crosspair.models.hub import (
    CLASSIFIER_TYPE,
    CPD_TYPE,
    local_folder,
    read_config,
    read_sections,
    read_weights,
    weights_hash,
)
from crosspair.models.text import TransformerAverage, WordAverage
from crosspair.video.pixels import MEAN, STD, normalize

logger = logging.getLogger(__name__)

IMAGENET = "imagenet:"  # before a file, where a model is asked for


class FrameAverageModel(CPD):
    """A 2D ResNet whose visual feature of a clip is the mean over its frames' features.

    It serves wherever a `CPD` is asked for visual features. Its heads and its text encoder are
    untrained: embeddings mean nothing, and protocols that need them refuse it.
    """

    def encode_video(self, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `CPD.encode_video`; the network sees pixels as ImageNet's are normalised.

        Inflated weights that took in the difference would see another colour beyond the border.
        """
        mean, std = (
            torch.tensor(each, device=clips.device).view(3, 1, 1, 1)
            for each in (IMAGENET_MEAN, IMAGENET_STD)
        )
        return super().encode_video((normalize(clips) * STD + MEAN - mean) / std)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> NoReturn:
        """Refused: as a model folder it would get this package's pixels.

        Raises:
            ModelError: always.
        """
        raise ModelError(f"{folder}: a 2D network is not kept as a model folder; keep its own file")


def load_imagenet_model(file: str | Path, clip: ClipConfig | None = None) -> FrameAverageModel:
    """Read a 2D ResNet to encode frames with.

    Args:
        file: see `crosspair.models.foreign_resnets.inflate`, as for the errors.
        clip: how videos are looked at; 8 frames of 224×224 if none is given.
    """
    video, state = inflate(file, as_trained=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        words = WordAverage(["video"], torch.zeros(1, TextConfig.dimensions))
        model = FrameAverageModel(
            words, clip or ClipConfig(size=224), video, TextConfig(), HeadConfig()
        )
    model.video_encoder.load_state_dict(state)
    model.untrained = PARTS[1:]
    return model.eval()


def load_frozen_model(source: str) -> CPD:
    """The model to take features from: a model folder or hub name, or "imagenet:FILE".

    Raises:
        ModelError: there is none, or it does not do.
    """
    if source.startswith(IMAGENET):
        return load_imagenet_model(source.removeprefix(IMAGENET))
    return CPD.from_pretrained(source)


RANDOM = "random"
_ENCODER, _LAYER = "video_encoder.", "fc."
_SHORT = {CPD_TYPE: "CPD", CLASSIFIER_TYPE: "classifier"}


@dataclass(frozen=True)
class InitWeights:
    """Where a fine-tuning begins.

    Attributes:
        name: as "random", "CPD 0123456789ab" (the hash of its weights), "ImageNet …".
        video: the architecture of the weights; none where they are random.
        encoder: state of the video encoder.
        classes: of a classifier, else empty.
        layer: state of a classifier's last layer.
    """

    name: str
    video: VideoConfig | None = None
    encoder: dict[str, torch.Tensor] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    layer: dict[str, torch.Tensor] = field(default_factory=dict)

    def begin(self, model: Classifier | CPD) -> None:
        """Put the weights into a network; its last layer stays new unless the classes are the same.

        Raises:
            ModelError: they are of another architecture than the recipe's.
        """
        if self.video is None:
            return
        asked, given = (dataclasses.asdict(each) for each in (model.video, self.video))
        if asked != given:
            differences = ", ".join(
                f"video.{key} {given[key]} (the recipe: {asked[key]})"
                for key in given
                if asked[key] != given[key]
            )
            overrides = " ".join(f"video.{k}={v}" for k, v in given.items() if asked[k] != v)
            raise ModelError(f"the weights of {self.name} have {differences}; give {overrides}")
        model.video_encoder.load_state_dict(self.encoder)
        if isinstance(model, Classifier) and self.classes == model.classes:
            model.fc.load_state_dict(self.layer)


def load_init_weights(source: str) -> InitWeights:
    """Read the weights to begin with.

    Args:
        source: a model folder or hub name, of a CPD or a classifier; "random"; or
            "imagenet:FILE", see `inflate`.

    Raises:
        ModelError: there are none, or they do not do.
    """
    if source == RANDOM:
        return InitWeights(RANDOM)
    if source.startswith(IMAGENET):
        video, encoder = inflate(source.removeprefix(IMAGENET))
        return InitWeights(f"ImageNet {weights_hash(encoder)}", video, encoder)
    folder = local_folder(source)
    config = read_config(folder, CPD_TYPE, CLASSIFIER_TYPE)
    weights = read_weights(folder)
    return InitWeights(
        f"{_SHORT[config['model_type']]} {weights_hash(weights)}",
        read_sections(FinetuneRecipe, config, folder, "video").video,
        _part(weights, _ENCODER),
        config.get("classes", []),
        _part(weights, _LAYER),
    )


def load_pretrained_towers(model: CPD, source: str) -> str:
    """Let a fresh model begin with the weights of another, part by part, as far as they fit.

    The video encoder has to fit. A text encoder fits if it is of the same kind and reads texts by
    the same vocabulary, its head and the video head if their sizes are the same, too, and (the text
    head) the text encoder fits.

    Args:
        model: that begins.
        source: see `crosspair.models.read_start`.

    Returns:
        What was begun with, as `crosspair.models.Start.name`.

    Raises:
        ModelError: there are no such weights, or they are of another video encoder.
    """
    start = load_init_weights(source)
    start.begin(model)
    if start.name != RANDOM:
        taken = ["video_encoder"]
        if start.name.startswith("CPD"):
            taken += _take_rest(model, CPD.from_pretrained(source))
        new = ", ".join(part for part in PARTS if part not in taken) or "nothing"
        logger.info("begins with %s: %s; new: %s", start.name, ", ".join(taken), new)
    return start.name


def _part(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }


def _take_rest(model: CPD, other: CPD) -> list[str]:
    """What fits and was trained of the other's heads and text encoder; its names."""
    taken = []
    if _fits("video_head", model, other):
        taken.append("video_head")
        model.video_head = other.video_head
    ours, theirs = model.text_encoder, other.text_encoder
    if _fits("text_encoder", model, other) and _vocabulary(ours) == _vocabulary(theirs):
        taken.append("text_encoder")
        if isinstance(ours, TransformerAverage) and isinstance(theirs, TransformerAverage):
            theirs.max_tokens = ours.max_tokens
        model.text_encoder = theirs
        if _fits("text_head", model, other):
            taken.append("text_head")
            model.text_head = other.text_head
    return taken


def _fits(part: str, model: CPD, other: CPD) -> bool:
    ours, theirs = (
        {name: value.shape for name, value in getattr(each, part).state_dict().items()}
        for each in (model, other)
    )
    return part not in other.untrained and ours == theirs


def _vocabulary(encoder: TextEncoder) -> dict[str, int]:
    if isinstance(encoder, WordAverage):
        return {word: row for row, word in enumerate(encoder.words)}
    vocabulary: dict[str, int] = encoder.tokenizer.get_vocab()
    return vocabulary
