"""CPD: a video tower and a text tower with a common embedding space (Figure 1, Section 3.3)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from crosspair.config import ClipConfig, HeadConfig, Recipe, TextConfig, VideoConfig
from crosspair.device import full_precision
from crosspair.errors import ModelError, RecipeError
from crosspair.models.hub import CPD_TYPE, WEIGHTS_FILE, read_config, read_sections, resolve_model_folder
from crosspair.models.pretrained import FAMILIES, PretrainedEncoder, load_towers
from crosspair.models.text import TextEncoder, TextTower, TransformerAverage, WordAverage, build_text_encoder
from crosspair.models.video import VideoModel, load_pretrained_encoder

PARTS = ("video_encoder", "video_head", "text_encoder", "text_head")


class CPD(VideoModel):
    """Video and text towers.

    Args:
        text_encoder: see `build_text_encoder`.
        clip: clip format that the model was trained on; stored for inference.
        video: architecture of the video encoder.
        text: configuration of the text encoder; stored to rebuild it.
        head: sizes of the projection heads.
        video_encoder: encoder to use; None: a `ResNet3d` of ``video``.

    Attributes:
        untrained: members of `PARTS` with random weights, e.g. in models imported without text.

    Raises:
        RecipeError: the encoder does not take clips of this format, or has other features than the embedding without
            heads.
    """

    model_type = CPD_TYPE
    sections = ("clip", "video", "text", "head")

    def __init__(
        self,
        text_encoder: TextEncoder,
        clip: ClipConfig,
        video: VideoConfig,
        text: TextConfig,
        head: HeadConfig,
        video_encoder: PretrainedEncoder | None = None,
    ) -> None:
        super().__init__(clip, video, video_encoder)
        self.text, self.head = text, head
        self.untrained: tuple[str, ...] = ()
        if head.projection == "none":
            for features in (self.video_encoder.features, text_encoder.features):
                if head.embedding != features:
                    raise RecipeError(
                        f"head.embedding is {head.embedding}; with head.projection=none it must be the {features} "
                        "dimensions of both encoders"
                    )
            self.video_head: nn.Module = nn.Identity()
            self.text_encoder = text_encoder
            self.text_head: nn.Module = nn.Identity()
            return
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
        features = self.visual_features(clips)
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
    def from_pretrained(cls, source: str | os.PathLike[str]) -> Self:
        """Load a model, in eval mode, from a folder or the Hugging Face Hub: of crosspair, or one of `FAMILIES`.

        A model of another project with a text tower needs no training. Without one, its embedding is its feature.

        Raises:
            ModelError: the folder does not exist or is not a complete model of this type.
            TextError: the language model cannot be loaded.
        """
        folder = resolve_model_folder(source)
        if read_config(folder, cls.model_type, *FAMILIES)["model_type"] == cls.model_type:
            return super().from_pretrained(folder)
        encoder, tower = load_towers(folder)
        name = folder.name if Path(source).is_dir() else os.fspath(source)  # cards with the name are published
        video = VideoConfig(encoder="pretrained", source=name)
        text = TextConfig(encoder="pretrained", source=name) if tower else TextConfig()
        head = HeadConfig(embedding=encoder.features, projection="none")
        words = WordAverage(["video"], torch.zeros(1, encoder.features))  # a placeholder
        model = cls(tower or words, encoder.clip, video, text, head, encoder)
        model.untrained = () if tower else ("text_encoder", "text_head")
        return model.eval()

    @classmethod
    def _from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        """Build the architecture with the saved vocabulary or tokenizer; weights are not loaded."""
        recipe = read_sections(Recipe, config, folder, *cls.sections)
        has_tower = recipe.text.encoder == "pretrained"
        video_encoder, tower = load_pretrained_encoder(recipe.video, folder, text=has_tower)
        encoder: TextEncoder
        if recipe.text.encoder == "words":
            encoder = WordAverage.load(folder, (folder / WEIGHTS_FILE).stat().st_size)
        elif recipe.text.encoder == "transformer":
            encoder = TransformerAverage.load(folder, recipe.text.max_tokens)
        else:
            encoder = _check_tower(tower, recipe.video)
        model = cls(encoder, recipe.clip, recipe.video, recipe.text, recipe.head, video_encoder)
        model.untrained = tuple(part for part in PARTS if part in config.get("untrained", ()))
        return model

    def _extra_config(self) -> dict[str, Any]:
        """Return the names of the untrained parts, which ``config.json`` stores."""
        return {"untrained": list(self.untrained)}

    def _save_extra_files(self, folder: Path) -> None:
        super()._save_extra_files(folder)
        self.text_encoder.save(folder)


def build_model(recipe: Recipe, titles: Sequence[str]) -> CPD:
    """Build a model with random weights, or those of pretrained encoders; the caller seeds torch.

    Args:
        recipe: the architecture.
        titles: titles of the training split; used to learn word vectors.
    """
    has_tower = recipe.text.encoder == "pretrained"
    video_encoder, tower = load_pretrained_encoder(recipe.video, text=has_tower)
    encoder: TextEncoder
    if has_tower:
        encoder = _check_tower(tower, recipe.video)
    else:
        encoder = build_text_encoder(recipe.text, titles, recipe.training.seed)
    return CPD(encoder, recipe.clip, recipe.video, recipe.text, recipe.head, video_encoder)


def _check_tower(tower: TextTower | None, video: VideoConfig) -> TextTower:
    if tower is None:
        raise ModelError(
            f"text.encoder=pretrained requires a video encoder with a text tower; {video.source} has none."
        )
    return tower
