"""Load trained models, frozen ImageNet models, and initial weights for training."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from crosspair.config import ClipConfig, FinetuneRecipe, HeadConfig, TextConfig, VideoConfig
from crosspair.errors import ModelError
from crosspair.models.classifier import Classifier
from crosspair.models.cpd import CPD, PARTS
from crosspair.models.encoder import is_import_path
from crosspair.models.hub import (
    CLASSIFIER_TYPE,
    CPD_TYPE,
    MODEL_TYPES,
    load_weights,
    read_config,
    read_sections,
    read_weights,
    resolve_model_folder,
    weights_hash,
)
from crosspair.models.import_weights import IMAGENET_MEAN, IMAGENET_STD, inflate
from crosspair.models.pretrained import FAMILIES, load_towers
from crosspair.models.text import TransformerAverage, WordAverage

logger = logging.getLogger(__name__)

IMAGENET = "imagenet:"  # prefix of a file of 2D weights
RANDOM = "random"


def load_model(source: str | os.PathLike[str]) -> CPD | Classifier:
    """Load a CPD model or a classifier from a folder or from the Hugging Face Hub.

    Raises:
        ModelError: the folder does not exist or is not a complete model folder.
    """
    if is_import_path(source):
        return CPD.from_pretrained(source)
    folder = resolve_model_folder(source)
    is_classifier = read_config(folder, *MODEL_TYPES, *FAMILIES)["model_type"] == CLASSIFIER_TYPE
    return (Classifier if is_classifier else CPD).from_pretrained(source)


def load_frozen_model(source: str) -> CPD:
    """Load a CPD model for feature extraction, as `load_model`, or a 2D ResNet from "imagenet:FILE"."""
    if source.startswith(IMAGENET):
        return load_imagenet_model(source.removeprefix(IMAGENET))
    return CPD.from_pretrained(source)


class FrameAverageModel(CPD):
    """2D ResNet averaged over frames (frozen baseline of Section 4.2); its heads and text encoder are untrained."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Folding the normalisation into the first convolution would change the padding colour.
        self.video_encoder.mean, self.video_encoder.std = IMAGENET_MEAN, IMAGENET_STD

    def save_pretrained(self, folder: str | os.PathLike[str]) -> NoReturn:
        """Raise ModelError: a model folder does not store the pixel normalisation."""
        raise ModelError(f"{folder}: saving a 2D network is not supported. Keep its original file.")


def load_imagenet_model(file: str | Path, clip: ClipConfig | None = None) -> FrameAverageModel:
    """Load a 2D ResNet, see `inflate`, as a frame encoder in eval mode; the default clip is 8 frames of 224×224."""
    video, encoder = inflate(file, fold_normalization=False)
    words = WordAverage(["video"], torch.zeros(1, TextConfig.dimensions))
    with torch.random.fork_rng():
        torch.manual_seed(0)  # makes the untrained parts reproducible
        model = FrameAverageModel(words, clip or ClipConfig(size=224), video, TextConfig(), HeadConfig())
    model.video_encoder.load_state_dict(encoder)
    model.untrained = PARTS[1:]
    return model.eval()


@dataclass(frozen=True)
class InitWeights:
    """Initial weights of a training: a video encoder, and a classifier's class names and last layer.

    ``name`` is "random", or the origin with a hash of the weights, as "CPD 0123456789ab" or "ImageNet …".
    """

    name: str
    video: VideoConfig | None = None  # random weights
    encoder: dict[str, torch.Tensor] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    layer: dict[str, torch.Tensor] = field(default_factory=dict)

    def load_into(self, model: Classifier | CPD) -> None:
        """Copy the video encoder, and a classifier's last layer if its classes are the same; no-op if random.

        Raises:
            ModelError: the model has another architecture.
        """
        if self.video is None:
            return
        names = ("encoder",) if self.video.source else ("encoder", "depth", "width", "shortcut")
        if any(getattr(self.video, name) != getattr(model.video, name) for name in names):
            names = (*names, "source") if self.video.source else names
            settings = " ".join(f"video.{name}={getattr(self.video, name)}" for name in names)
            trust = ", if you trust this code" if is_import_path(self.video.source) else ""
            raise ModelError(
                f"the weights of {self.name} have another architecture than the recipe. Set {settings}{trust}."
            )
        message = f"the weights of {self.name} do not match their configuration"
        if self.video.source:
            message = f"the weights of {self.name} are not of the architecture of video.source={model.video.source}"
        load_weights(model.video_encoder, self.encoder, message)
        if isinstance(model, Classifier) and self.classes == model.classes:
            load_weights(model.fc, self.layer, message)


def load_init_weights(source: str) -> InitWeights:
    """Read initial weights.

    Args:
        source: "random"; a model folder or a name on the Hugging Face Hub, also of another project, see `load_towers`;
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
    config = read_config(folder, *MODEL_TYPES, *FAMILIES)
    if config["model_type"] in FAMILIES:
        encoder = load_towers(folder, text=False)[0].state_dict()
        video = VideoConfig(encoder="pretrained", source=source)
        return InitWeights(f"{config['model_type']} {weights_hash(encoder)}", video, encoder)
    weights = read_weights(folder)
    encoder, layer = (
        {n.removeprefix(prefix): value for n, value in weights.items() if n.startswith(prefix)}
        for prefix in ("video_encoder.", "fc.")
    )
    return InitWeights(
        f"{MODEL_TYPES[config['model_type']]} {weights_hash(weights)}",
        read_sections(FinetuneRecipe, config, folder, "video").video,
        encoder,
        config.get("classes", []),
        layer,
    )


def load_pretrained_towers(model: CPD, source: str) -> str:
    """Initialise a model from another one, part by part where they match, and return `InitWeights.name`.

    The video encoder must match. The heads are loaded if their sizes match, the text encoder if it has the same kind,
    sizes and vocabulary. The text head also requires the text encoder.

    Args:
        model: model to initialise.
        source: see `load_init_weights`.

    Raises:
        ModelError: the weights do not exist, or have another video encoder.
    """
    init = load_init_weights(source)
    init.load_into(model)
    if init.name == RANDOM:
        return init.name
    loaded = ["video_encoder"]
    if init.name.startswith(MODEL_TYPES[CPD_TYPE]):
        other = CPD.from_pretrained(source)
        for part in PARTS[1:]:
            ours, theirs = getattr(model, part), getattr(other, part)
            matches = part not in other.untrained and _signature(ours) == _signature(theirs)
            if matches and (part != "text_head" or "text_encoder" in loaded):
                if isinstance(theirs, TransformerAverage):
                    theirs.max_tokens = ours.max_tokens
                if part == "text_encoder":
                    model.text_encoder = theirs
                else:
                    ours.load_state_dict(theirs.state_dict())
                loaded.append(part)
    random = ", ".join(part for part in PARTS if part not in loaded) or "none"
    logger.info("initialised from %s: %s; random: %s", init.name, ", ".join(loaded), random)
    return init.name


def _signature(module: torch.nn.Module) -> list[object]:
    """Return the shapes of the weights, and the vocabulary of a text encoder, to compare two parts."""
    vocabulary: object = None
    if isinstance(module, WordAverage):
        vocabulary = module.words
    elif isinstance(module, TransformerAverage):
        vocabulary = module.tokenizer.get_vocab()
    return [{name: value.shape for name, value in module.state_dict().items()}, vocabulary]
