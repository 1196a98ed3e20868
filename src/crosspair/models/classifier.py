"""Action classifier for fine-tuning: the video encoder and a linear layer (Section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from crosspair.config import ClassifierConfig, ClipConfig, FinetuneRecipe, VideoConfig
from crosspair.device import full_precision
from crosspair.errors import ModelError
from crosspair.models.encoder import VideoEncoder
from crosspair.models.hub import CLASSIFIER_TYPE, CONFIG_FILE, read_sections
from crosspair.models.video import VideoModel, load_pretrained_encoder


class Classifier(VideoModel):
    """Video encoder, dropout and a fully connected layer.

    Args:
        classes: names of the classes, in the order of the logits.
        clip: clip format that the model was trained on; stored for inference.
        video: architecture of the video encoder.
        classifier: dropout, and whether batch normalisation is frozen.
        video_encoder: see `VideoModel`.
    """

    model_type = CLASSIFIER_TYPE
    sections = ("clip", "video", "classifier")

    def __init__(
        self,
        classes: Sequence[str],
        clip: ClipConfig,
        video: VideoConfig,
        classifier: ClassifierConfig,
        video_encoder: VideoEncoder | None = None,
    ) -> None:
        super().__init__(clip, video, video_encoder)
        self.classes, self.classifier = list(classes), classifier
        self.dropout = nn.Dropout(classifier.dropout)
        self.fc = nn.Linear(self.video_encoder.features, len(self.classes))
        nn.init.normal_(self.fc.weight, std=0.01)  # initial predictions are almost uniform
        nn.init.zeros_(self.fc.bias)
        if classifier.frozen_norm:
            for norm in self._norms():
                norm.requires_grad_(False)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Classify clips.

        Args:
            clips: (B, 3, T, H, W) RGB; uint8 (normalised inside) or normalised float.

        Returns:
            Logits (B, classes), float32.
        """
        features = self.visual_features(clips)
        with full_precision(features.device):
            logits: torch.Tensor = self.fc(self.dropout(features))
        return logits

    def train(self, mode: bool = True) -> Self:
        """Set the mode. Frozen batch normalisation stays in eval mode."""
        super().train(mode)
        if self.classifier.frozen_norm:
            for norm in self._norms():
                norm.eval()
        return self

    @classmethod
    def _from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        recipe = read_sections(FinetuneRecipe, config, folder, *cls.sections)
        classes = config.get("classes")
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ModelError(f"{folder / CONFIG_FILE}: classes must be a list of names.")
        video_encoder, _ = load_pretrained_encoder(recipe.video, folder)
        return cls(classes, recipe.clip, recipe.video, recipe.classifier, video_encoder)

    def _extra_config(self) -> dict[str, Any]:
        """Return the class names, which ``config.json`` stores."""
        return {"classes": self.classes}

    def _norms(self) -> list[nn.Module]:
        """Return all batch normalisation layers."""
        norm_type = nn.modules.batchnorm._BatchNorm
        return [module for module in self.modules() if isinstance(module, norm_type)]
