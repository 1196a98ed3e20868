"""The weights that a fine-tuning begins with, and the video encoder of a pre-training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch

from crosspair.config import FinetuneRecipe, VideoConfig
from crosspair.errors import ModelError
from crosspair.models.classifier import Classifier
from crosspair.models.cpd import CPD
from crosspair.models.folder import (
    CLASSIFIER_TYPE,
    CPD_TYPE,
    local_folder,
    read_config,
    read_sections,
    read_weights,
    weights_hash,
)
from crosspair.models.foreign.encoder import inflate
from crosspair.models.frames import IMAGENET

RANDOM = "random"
_ENCODER, _LAYER = "video_encoder.", "fc."
_SHORT = {CPD_TYPE: "CPD", CLASSIFIER_TYPE: "classifier"}


@dataclass(frozen=True)
class Start:
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


def read_start(source: str) -> Start:
    """Read the weights to begin with.

    Args:
        source: a model folder or hub name, of a CPD or a classifier; "random"; or
            "imagenet:FILE", see `inflate`.

    Raises:
        ModelError: there are none, or they do not do.
    """
    if source == RANDOM:
        return Start(RANDOM)
    if source.startswith(IMAGENET):
        video, encoder = inflate(source.removeprefix(IMAGENET))
        return Start(f"ImageNet {weights_hash(encoder)}", video, encoder)
    folder = local_folder(source)
    config = read_config(folder, CPD_TYPE, CLASSIFIER_TYPE)
    weights = read_weights(folder)
    return Start(
        f"{_SHORT[config['model_type']]} {weights_hash(weights)}",
        read_sections(FinetuneRecipe, config, folder, "video").video,
        _part(weights, _ENCODER),
        config.get("classes", []),
        _part(weights, _LAYER),
    )


def _part(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }
