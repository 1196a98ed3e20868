"""CPD: a video tower and a text tower with a common embedding space (Figure 1, Section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from crosspair.config import ClipConfig, HeadConfig, Recipe, TextConfig, VideoConfig
from crosspair.device import full_precision
from crosspair.models.hub import CPD_TYPE, WEIGHTS_FILE, HubModel, read_sections
from crosspair.models.resnet3d import ResNet3d
from crosspair.models.text import TextEncoder, TransformerAverage, WordAverage, build_text_encoder
from crosspair.video.pixels import normalize

PARTS = ("video_encoder", "video_head", "text_encoder", "text_head")


class CPD(HubModel):
    """Video and text towers.

    Args:
        text_encoder: see `build_text_encoder`.
        clip: clip format that the model was trained on; stored for inference.
        video: architecture of the video encoder.
        text: configuration of the text encoder; stored to rebuild it.
        head: sizes of the projection heads.

    Attributes:
        untrained: members of `PARTS` with random weights, e.g. in models imported without text.
    """

    model_type = CPD_TYPE
    sections = ("clip", "video", "text", "head")

    def __init__(
        self, text_encoder: TextEncoder, clip: ClipConfig, video: VideoConfig, text: TextConfig, head: HeadConfig
    ) -> None:
        super().__init__()
        self.clip, self.video, self.text, self.head = clip, video, text, head
        self.untrained: tuple[str, ...] = ()
        self.video_encoder = ResNet3d(video.depth, video.width, video.shortcut)
        self.video_head = nn.Linear(self.video_encoder.features, head.embedding)
        self.text_encoder = text_encoder
        self.text_head = nn.Sequential(
            nn.Linear(text_encoder.features, head.hidden),
            nn.BatchNorm1d(head.hidden),
            nn.ReLU(inplace=True),
            nn.Linear(head.hidden, head.embedding),
        )

    def encode_video(self, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode clips.

        Args:
            clips: (B, 3, T, H, W) RGB; uint8 (normalised inside) or normalised float.

        Returns:
            The visual feature (B, F), and the embedding f_v (B, D) of unit norm.
        """
        pixels = normalize(clips).contiguous(memory_format=torch.channels_last_3d)
        features = self.video_encoder(pixels)
        with full_precision(features.device):
            return features, F.normalize(self.video_head(features), dim=1)

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Encode texts to embeddings f_t (B, D) of unit norm."""
        features = self.text_encoder(texts)
        with full_precision(features.device):
            return F.normalize(self.text_head(features), dim=1)

    def forward(self, clips: torch.Tensor, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings f_v and f_t (B, D) of B pairs."""
        return self.encode_video(clips)[1], self.encode_text(texts)

    @classmethod
    def _from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        """Build the architecture with the saved vocabulary or tokenizer; weights are not loaded."""
        recipe = read_sections(Recipe, config, folder, *cls.sections)
        encoder: TextEncoder = (
            WordAverage.load(folder, (folder / WEIGHTS_FILE).stat().st_size)
            if recipe.text.encoder == "words"
            else TransformerAverage.load(folder, recipe.text.max_tokens)
        )
        model = cls(encoder, recipe.clip, recipe.video, recipe.text, recipe.head)
        model.untrained = tuple(part for part in PARTS if part in config.get("untrained", ()))
        return model

    def _extra_config(self) -> dict[str, Any]:
        """Return the names of the untrained parts, which ``config.json`` stores."""
        return {"untrained": list(self.untrained)}

    def _save_extra_files(self, folder: Path) -> None:
        self.text_encoder.save(folder)


def build_model(recipe: Recipe, titles: Sequence[str]) -> CPD:
    """Build a model with random weights and learned or loaded text weights; the caller seeds torch.

    Args:
        recipe: the architecture.
        titles: titles of the training split; used to learn word vectors.
    """
    encoder = build_text_encoder(recipe.text, titles, recipe.training.seed)
    return CPD(encoder, recipe.clip, recipe.video, recipe.text, recipe.head)
