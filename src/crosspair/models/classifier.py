"""The network that fine-tuning trains: the video encoder and a layer of classes (Section 4.2)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Self

import torch
from torch import nn

from crosspair.config import ClassifierConfig, ClipConfig, FinetuneRecipe, VideoConfig
from crosspair.device import full_precision
from crosspair.errors import ModelError
from crosspair.models.hub import (
    CLASSIFIER_TYPE,
    CONFIG_FILE,
    load_weights,
    local_folder,
    read_config,
    read_sections,
    save_folder,
    weights_hash,
)
from crosspair.models.resnet3d import ResNet3d
from crosspair.video.pixels import normalize

CLASSIFIER_SECTIONS = (
    "clip",
    "video",
    "classifier",
)  # of a recipe: what a classifier is built from


class Classifier(nn.Module):
    """A video encoder, dropout, and a fully connected layer in the mapping layer's place.

    Args:
        classes: their names; a class is its position.
        clip: the form of clips that it is meant for; kept for those who use it.
        video: the video encoder's architecture.
        classifier: dropout, and whether batch normalisation stays as it is.
    """

    def __init__(
        self,
        classes: Sequence[str],
        clip: ClipConfig,
        video: VideoConfig,
        classifier: ClassifierConfig,
    ) -> None:
        super().__init__()
        self.classes = list(classes)
        self.clip, self.video, self.classifier = clip, video, classifier
        self.video_encoder = ResNet3d(video.depth, video.width, video.shortcut)
        self.dropout = nn.Dropout(classifier.dropout)
        self.fc = nn.Linear(self.video_encoder.features, len(self.classes))
        nn.init.normal_(self.fc.weight, std=0.01)  # small: at first all classes are as likely
        nn.init.zeros_(self.fc.bias)
        if classifier.frozen_norm:
            for norm in self._norms():
                norm.requires_grad_(False)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Classify clips.

        Args:
            clips: (B, 3, T, H, W), RGB; uint8 is normalised inside, float is taken as normalised.

        Returns:
            (B, classes) float32, before the softmax.
        """
        pixels = normalize(clips).contiguous(memory_format=torch.channels_last_3d)
        features = self.video_encoder(pixels)
        with full_precision(features.device):
            logits: torch.Tensor = self.fc(self.dropout(features))
        return logits

    def train(self, mode: bool = True) -> Self:
        """As of any module, but frozen batch normalisation goes on with its running statistics."""
        super().train(mode)
        if self.classifier.frozen_norm:
            for norm in self._norms():
                norm.eval()
        return self

    @property
    def hash(self) -> str:
        """12 hex digits that tell weights apart, wherever and however they are stored."""
        return weights_hash(self.state_dict())

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that `from_pretrained` reads, in place of what it may hold already."""
        sections = {name: dataclasses.asdict(getattr(self, name)) for name in CLASSIFIER_SECTIONS}
        config = {"model_type": CLASSIFIER_TYPE, **sections, "classes": self.classes}
        save_folder(folder, self, config)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str]) -> Classifier:
        """Load a classifier from a folder of `save_pretrained`, or by its name on the hub.

        Raises:
            ModelError: there is no such folder, or it does not hold a whole classifier.
        """
        folder = local_folder(source)
        config = read_config(folder, CLASSIFIER_TYPE)
        recipe = read_sections(FinetuneRecipe, config, folder, *CLASSIFIER_SECTIONS)
        classes = config.get("classes")
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ModelError(f"{folder / CONFIG_FILE}: its classes are no list of names")
        model = cls(classes, recipe.clip, recipe.video, recipe.classifier)
        load_weights(model, folder)
        return model.eval()

    def _norms(self) -> list[nn.Module]:
        kind = nn.modules.batchnorm._BatchNorm
        return [module for module in self.modules() if isinstance(module, kind)]
