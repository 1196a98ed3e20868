"""Load trained models, frozen ImageNet models, and initial weights for training."""

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
from crosspair.models.cpd import CPD, PARTS
from crosspair.models.foreign_resnets import IMAGENET_MEAN, IMAGENET_STD, inflate
from crosspair.models.hub import (
    CLASSIFIER_TYPE,
    CPD_TYPE,
    read_config,
    read_sections,
    read_weights,
    resolve_model_folder,
    weights_hash,
)
from crosspair.models.text import TextEncoder, TransformerAverage, WordAverage
from crosspair.video.pixels import MEAN, STD, normalize

logger = logging.getLogger(__name__)

IMAGENET = "imagenet:"  # prefix of a file of 2D weights
RANDOM = "random"
_NAMES = {CPD_TYPE: "CPD", CLASSIFIER_TYPE: "classifier"}


def load_model(source: str | os.PathLike[str]) -> CPD | Classifier:
    """Load a CPD model or a classifier from a folder or from the Hugging Face Hub.

    Raises:
        ModelError: the folder does not exist or is not a complete model folder.
    """
    folder = resolve_model_folder(source)
    model_type = read_config(folder, CPD_TYPE, CLASSIFIER_TYPE)["model_type"]
    return (CPD if model_type == CPD_TYPE else Classifier).from_pretrained(folder)


def load_frozen_model(source: str) -> CPD:
    """Load a model for feature extraction.

    Args:
        source: a model folder, a name on the Hugging Face Hub, or "imagenet:FILE".

    Raises:
        ModelError: the model does not exist or is invalid.
    """
    if source.startswith(IMAGENET):
        return load_imagenet_model(source.removeprefix(IMAGENET))
    return CPD.from_pretrained(source)


class FrameAverageModel(CPD):
    """2D ResNet that averages the features of a clip's frames (frozen baseline of Section 4.2).

    Its heads and text encoder are untrained, so only its visual feature is meaningful.
    """

    def encode_video(self, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode clips as `CPD.encode_video`, with pixels normalised as for ImageNet.

        Folding the normalisation into the first convolution would change the padding colour.
        """
        mean, std = (
            torch.tensor(values, device=clips.device).view(3, 1, 1, 1)
            for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        return super().encode_video((normalize(clips) * STD + MEAN - mean) / std)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> NoReturn:
        """Raise ModelError: a model folder does not store the pixel normalisation."""
        raise ModelError(f"{folder}: saving a 2D network is not supported. Keep its original file.")


def load_imagenet_model(file: str | Path, clip: ClipConfig | None = None) -> FrameAverageModel:
    """Load a 2D ResNet as a frame encoder.

    Args:
        file: see `crosspair.models.foreign_resnets.inflate`.
        clip: clip format; 8 frames of 224×224 by default.

    Raises:
        ModelError: see `crosspair.models.foreign_resnets.inflate`.
    """
    video, state = inflate(file, fold_normalization=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        words = WordAverage(["video"], torch.zeros(1, TextConfig.dimensions))
        model = FrameAverageModel(
            words, clip or ClipConfig(size=224), video, TextConfig(), HeadConfig()
        )
    model.video_encoder.load_state_dict(state)
    model.untrained = PARTS[1:]
    return model.eval()


@dataclass(frozen=True)
class InitWeights:
    """Initial weights of a training.

    Attributes:
        name: "random", or the origin with a hash of the weights: "CPD 0123456789ab", "ImageNet …".
        video: architecture of the video encoder; None for random weights.
        encoder: state of the video encoder.
        classes: class names of a classifier, else empty.
        layer: state of a classifier's last layer, else empty.
    """

    name: str
    video: VideoConfig | None = None
    encoder: dict[str, torch.Tensor] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    layer: dict[str, torch.Tensor] = field(default_factory=dict)

    def load_into(self, model: Classifier | CPD) -> None:
        """Load the video encoder, and a classifier's last layer if its classes are the same.

        Raises:
            ModelError: the model has another architecture.
        """
        if self.video is None:
            return
        expected, found = (dataclasses.asdict(config) for config in (model.video, self.video))
        differences = [key for key in found if expected[key] != found[key]]
        if differences:
            raise ModelError(
                f"the weights of {self.name} have "
                + ", ".join(f"video.{k} {found[k]} (recipe: {expected[k]})" for k in differences)
                + f". Set {' '.join(f'video.{k}={found[k]}' for k in differences)}."
            )
        model.video_encoder.load_state_dict(self.encoder)
        if isinstance(model, Classifier) and self.classes == model.classes:
            model.fc.load_state_dict(self.layer)


def load_init_weights(source: str) -> InitWeights:
    """Read initial weights.

    Args:
        source: "random"; a folder or a name on the Hugging Face Hub of a CPD model or a classifier;
            or "imagenet:FILE", see `inflate`.

    Raises:
        ModelError: the weights do not exist or are invalid.
    """
    if source == RANDOM:
        return InitWeights(RANDOM)
    if source.startswith(IMAGENET):
        video, encoder = inflate(source.removeprefix(IMAGENET))
        return InitWeights(f"ImageNet {weights_hash(encoder)}", video, encoder)
    folder = resolve_model_folder(source)
    config = read_config(folder, CPD_TYPE, CLASSIFIER_TYPE)
    weights = read_weights(folder)
    return InitWeights(
        f"{_NAMES[config['model_type']]} {weights_hash(weights)}",
        read_sections(FinetuneRecipe, config, folder, "video").video,
        _select_prefix(weights, "video_encoder."),
        config.get("classes", []),
        _select_prefix(weights, "fc."),
    )


def load_pretrained_towers(model: CPD, source: str) -> str:
    """Initialise a model from another one, part by part where they match.

    The video encoder must match. The heads are loaded if their sizes match, the text encoder if it
    has the same kind, sizes and vocabulary. The text head also requires the text encoder.

    Args:
        model: model to initialise.
        source: see `load_init_weights`.

    Returns:
        The origin of the weights, see `InitWeights.name`.

    Raises:
        ModelError: the weights do not exist, or have another video encoder.
    """
    init = load_init_weights(source)
    init.load_into(model)
    if init.name != RANDOM:
        loaded = ["video_encoder"]
        if init.name.startswith("CPD"):
            loaded += _load_matching_parts(model, CPD.from_pretrained(source))
        random = ", ".join(part for part in PARTS if part not in loaded) or "none"
        logger.info("initialised from %s: %s; random: %s", init.name, ", ".join(loaded), random)
    return init.name


def _select_prefix(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }


def _load_matching_parts(model: CPD, other: CPD) -> list[str]:
    """Take the trained heads and text encoder of ``other`` that match; return their names."""
    loaded = []
    if _matches("video_head", model, other):
        loaded.append("video_head")
        model.video_head = other.video_head
    ours, theirs = model.text_encoder, other.text_encoder
    if _matches("text_encoder", model, other) and _vocabulary(ours) == _vocabulary(theirs):
        loaded.append("text_encoder")
        if isinstance(ours, TransformerAverage) and isinstance(theirs, TransformerAverage):
            theirs.max_tokens = ours.max_tokens
        model.text_encoder = theirs
        if _matches("text_head", model, other):
            loaded.append("text_head")
            model.text_head = other.text_head
    return loaded


def _matches(part: str, model: CPD, other: CPD) -> bool:
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
