"""CPD: a video tower and a text tower with a common embedding space (Figure 1, Section 3.3)."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from crosspair.config import ClipConfig, HeadConfig, ObjectiveConfig, Recipe, TextConfig, VideoConfig
from crosspair.device import full_precision
from crosspair.errors import ModelError, RecipeError
from crosspair.models.encoder import VideoEncoder, is_import_path
from crosspair.models.hub import CONFIG_FILE, CPD_TYPE, WEIGHTS_FILE, read_config, read_sections, resolve_model_folder
from crosspair.models.pretrained import FAMILIES
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
        temperature: divisor of the cosines in the probabilities of classes: τ of Equation 3 (0.07), that of the
            pretrained model whose embeddings are used, or the learned one.

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
        video_encoder: VideoEncoder | None = None,
    ) -> None:
        super().__init__(clip, video, video_encoder)
        self.text, self.head = text, head
        self.untrained: tuple[str, ...] = ()
        self.temperature = ObjectiveConfig.temperature
        self.text_encoder = text_encoder
        if head.projection == "learned":
            features, embedding = self.video_encoder.features, head.embedding
            self.video_head = _build_head(features, head.video_hidden, embedding)
            self.video_head.requires_grad_(video.train != "none")
            self.text_head = _build_head(text_encoder.features, head.hidden, embedding)
            return
        features = self.video_encoder.features
        if text_encoder.features != features:
            raise RecipeError(
                f"with head.projection={head.projection}, video features have {features} dimensions and text features "
                f"{text_encoder.features}; set head.projection=learned, or text.encoder=same"
            )
        self.head = replace(head, embedding=features)
        if isinstance(text_encoder, TextTower) and text_encoder.scale:
            self.temperature = 1 / text_encoder.scale
        identity = head.projection == "identity"
        self.video_head = _identity_head(features) if identity else nn.Identity()
        self.video_head.requires_grad_(video.train != "none")
        self.text_head = _identity_head(features) if identity else nn.Identity()

    def encode_video(self, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode clips.

        Args:
            clips: (B, 3, T, H, W) RGB; uint8 (normalised inside) or normalised float.

        Returns:
            The visual feature (B, F), and the embedding f_v (B, D) of unit norm.
        """
        features = self.visual_features(clips)
        return features, self.project_video(features)

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Encode texts to embeddings f_t (B, D) of unit norm."""
        return self.project_text(self.text_encoder(texts))

    def project_video(self, features: torch.Tensor) -> torch.Tensor:
        """Map visual features (B, F) to embeddings f_v (B, D) of unit norm."""
        with full_precision(features.device):
            features = F.dropout(features, self.head.dropout, self.video_head.training)
            return F.normalize(self.video_head(features), dim=1)

    def project_text(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (B, E) of the text encoder to embeddings f_t (B, D) of unit norm."""
        with full_precision(features.device):
            return F.normalize(self.text_head(features), dim=1)

    def forward(self, clips: torch.Tensor, texts: Sequence[str] | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings f_v and f_t (B, D) of clips and texts; their numbers may differ.

        Args:
            clips: as for `encode_video`, or the visual features (B, F) that a frozen encoder computed before.
            texts: texts, or features (B, E) of the text encoder.
        """
        video = self.project_video(clips) if clips.dim() == 2 else self.encode_video(clips)[1]
        return video, self.project_text(texts) if isinstance(texts, torch.Tensor) else self.encode_text(texts)

    @contextmanager
    def interpolated(self, weight: float) -> Iterator[None]:
        """Replace the heads, for the duration of a block, by a mixture with those of the original model.

        Args:
            weight: of the trained heads, from 0 (``head.projection=identity`` before training) to 1, which changes
                nothing.
        """
        if weight == 1:
            yield
            return
        heads = (self.video_head, self.text_head)
        trained = [copy.deepcopy(head.state_dict()) for head in heads]
        original = _identity_head(self.head.embedding).to(trained[0]["weight"].device).state_dict()
        for head, state in zip(heads, trained, strict=True):
            head.load_state_dict({name: torch.lerp(original[name], state[name], weight) for name in state})
        try:
            yield
        finally:
            for head, state in zip(heads, trained, strict=True):
                head.load_state_dict(state)

    def train(self, mode: bool = True) -> Self:
        """Set the mode. Parts of the video tower that are not trained stay in eval mode."""
        super().train(mode)
        if self.video.train == "none":
            self.video_head.eval()
        return self

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str]) -> Self:
        """Load a model, in eval mode, from a folder or the Hugging Face Hub: of crosspair, or one of `FAMILIES`.

        A model of another project with a text tower needs no training. Without one, its embedding is its feature.
        An import path ``package.module:function`` is imported, see `ModuleEncoder`.

        Raises:
            ModelError: the folder does not exist or is not a complete model of this type.
            TextError: the language model cannot be loaded.
        """
        if not is_import_path(source):
            folder = resolve_model_folder(source)
            if read_config(folder, cls.model_type, *FAMILIES)["model_type"] == cls.model_type:
                return super().from_pretrained(folder)
        video = VideoConfig(encoder="pretrained", source=os.fspath(source))
        encoder, tower = load_pretrained_encoder(video, text=True)
        assert encoder
        if Path(source).is_dir():  # cards with the name are published
            video = replace(video, source=folder.name)
        text = TextConfig(encoder="same", source=video.source) if tower else TextConfig()
        head = HeadConfig(embedding=encoder.features, projection="none")
        words = WordAverage(["video"], torch.zeros(1, encoder.features))  # a placeholder
        model = cls(tower or words, encoder.clip, video, text, head, encoder)
        model.untrained = () if tower else ("text_encoder", "text_head")
        return model.eval()

    @classmethod
    def _from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        """Build the architecture with the saved vocabulary or tokenizer; weights are not loaded."""
        recipe = read_sections(Recipe, config, folder, *cls.sections)
        video_encoder, tower = load_pretrained_encoder(recipe.video, folder, text=recipe.text.encoder == "same")
        encoder: TextEncoder
        if recipe.text.encoder == "words":
            encoder = WordAverage.load(folder, (folder / WEIGHTS_FILE).stat().st_size)
        elif recipe.text.encoder == "transformer":
            encoder = TransformerAverage.load(folder, recipe.text.max_tokens)
        else:
            encoder = _check_tower(tower, recipe.video)
        model = cls(encoder, recipe.clip, recipe.video, recipe.text, recipe.head, video_encoder)
        model.untrained = tuple(part for part in PARTS if part in config.get("untrained", ()))
        model.temperature = config.get("temperature", model.temperature)
        if not isinstance(model.temperature, int | float) or not model.temperature > 0:
            raise ModelError(
                f"{folder / CONFIG_FILE}: temperature is {model.temperature}; it must be a number above 0."
            )
        return model

    def _extra_config(self) -> dict[str, Any]:
        """Return the names of the untrained parts and the temperature, which ``config.json`` stores."""
        return {"untrained": list(self.untrained), "temperature": self.temperature}

    def _save_extra_files(self, folder: Path) -> None:
        super()._save_extra_files(folder)
        self.text_encoder.save(folder)


def _build_head(features: int, hidden: int, embedding: int) -> nn.Module:
    """Build a projection head: linear, or with one hidden layer."""
    if not hidden:
        return nn.Linear(features, embedding)
    return nn.Sequential(
        nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, embedding)
    )


def _identity_head(features: int) -> nn.Linear:
    head = nn.Linear(features, features)
    nn.init.eye_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def build_model(recipe: Recipe, titles: Sequence[str]) -> CPD:
    """Build a model with random weights, or those of pretrained encoders; the caller seeds torch.

    Args:
        recipe: the architecture.
        titles: titles of the training split; used to learn word vectors.
    """
    video_encoder, tower = load_pretrained_encoder(recipe.video, text=recipe.text.encoder == "same")
    encoder: TextEncoder
    if recipe.text.encoder == "same":
        encoder = _check_tower(tower, recipe.video)
    else:
        encoder = build_text_encoder(recipe.text, titles, recipe.training.seed)
    return CPD(encoder, recipe.clip, recipe.video, recipe.text, recipe.head, video_encoder)


def _check_tower(tower: TextTower | None, video: VideoConfig) -> TextTower:
    if tower is None:
        raise ModelError(f"text.encoder=same requires a video encoder with a text tower; {video.source} has none.")
    return tower
