"""Models with a video encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch

from crosspair.config import ClipConfig, VideoConfig
from crosspair.errors import RecipeError
from crosspair.models.encoder import ModuleEncoder, VideoEncoder, allow_import, check_import, is_import_path
from crosspair.models.hub import HubModel, resolve_model_folder
from crosspair.models.pretrained import load_towers
from crosspair.models.resnet3d import ResNet3d
from crosspair.models.text import PRETRAINED_FOLDER, TextTower
from crosspair.recipes import AnyRecipe, make_recipe, read_settings
from crosspair.video.pixels import normalize

_CLIP_FORMAT = ("size", "frames", "stride", "test_scale")  # what a pretrained encoder determines


class VideoModel(HubModel):
    """Model with a video encoder, of which the layers are trained that ``video.train`` selects.

    Args:
        clip: clip format that the model was trained on; stored for inference.
        video: architecture of the video encoder.
        video_encoder: encoder to use; None: a `ResNet3d` of ``video``.

    Raises:
        RecipeError: the encoder does not take clips of this format, or has fewer blocks than are to be trained.
    """

    def __init__(self, clip: ClipConfig, video: VideoConfig, video_encoder: VideoEncoder | None = None) -> None:
        super().__init__()
        self.clip, self.video = clip, video
        self.video_encoder = video_encoder or ResNet3d(video.depth, video.width, video.shortcut)
        self.video_encoder.check_clip(clip)
        blocks = video.trained_blocks
        if blocks and blocks > len(self.video_encoder.blocks):
            raise RecipeError(
                f"video.train is {video.train}; this video encoder has {len(self.video_encoder.blocks)} blocks"
            )
        for module, after in self.video_encoder.iter_depths():
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(blocks is None or after < blocks)

    def visual_features(self, clips: torch.Tensor) -> torch.Tensor:
        """Return the visual features (B, F) of clips (B, 3, T, H, W), uint8 or normalised float RGB."""
        features: torch.Tensor = self.video_encoder(self._normalize(clips))
        return features

    def visual_tokens(self, clips: torch.Tensor) -> torch.Tensor:
        """Return visual features by time or place (B, N, F) of clips as for `visual_features`.

        Tokens are the positions of the feature map of the 3D ResNet, the frames of an image encoder, or the tokens of a
        video transformer; the pooled feature is the only one of other encoders.
        """
        return self.video_encoder.tokens(self._normalize(clips))

    def _normalize(self, clips: torch.Tensor) -> torch.Tensor:
        encoder = self.video_encoder
        return normalize(clips, encoder.mean, encoder.std).contiguous(memory_format=torch.channels_last_3d)

    def train(self, mode: bool = True) -> Self:
        """Set the mode. Layers of the video encoder that are not trained stay in eval mode."""
        super().train(mode)
        blocks = self.video.trained_blocks
        if mode and blocks is not None:
            for module, after in self.video_encoder.iter_depths():
                module.training = after < blocks
        return self

    def _save_extra_files(self, folder: Path) -> None:
        self.video_encoder.save(folder)


def read_resolved_recipe(kind: type[AnyRecipe], name: str, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read a recipe with `read_recipe`, and resolve its clip format with `resolve_recipe`."""
    return resolve_recipe(kind, read_settings(kind, name, overrides), name)


def resolve_recipe(kind: type[AnyRecipe], settings: Mapping[str, Any], name: str = "recipe") -> AnyRecipe:
    """Build a recipe, see `make_recipe`. A pretrained encoder determines the clip format that ``settings`` omit.

    Raises:
        RecipeError: a value is invalid, or the encoder does not take clips of this format.
        ModelError, TextError: see `load_pretrained_encoder`.
    """
    recipe = make_recipe(kind, settings, name)
    if recipe.video.encoder == "pretrained":
        encoder, _ = load_pretrained_encoder(recipe.video, weights=False)
        assert encoder
        omitted = [field for field in _CLIP_FORMAT if f"clip.{field}" not in settings]
        clip = replace(recipe.clip, **{field: getattr(encoder.clip, field) for field in omitted})
        encoder.check_clip(clip)
        recipe = replace(recipe, clip=clip)
    return recipe


def load_pretrained_encoder(
    video: VideoConfig, model_folder: Path | None = None, *, weights: bool = True, text: bool = False
) -> tuple[VideoEncoder | None, TextTower | None]:
    """Load the pretrained encoder of a configuration, and its text tower if it has one; None for `ResNet3d`.

    Args:
        video: the configuration.
        model_folder: build the architecture that is saved there, without its weights; None: load ``video.source``,
            which the user has chosen.
        text: load the text tower.
        weights: load the weights of ``video.source``; otherwise, those of a Hugging Face model are arbitrary.

    Raises:
        ModelError, TextError: see `load_towers` and `ModuleEncoder`; or the folder names code that is not allowed.
    """
    if video.encoder != "pretrained":
        return None, None
    if not is_import_path(video.source) or (model_folder and (model_folder / PRETRAINED_FOLDER).is_dir()):
        if model_folder:
            return load_towers(model_folder / PRETRAINED_FOLDER, weights=False, text=text)
        return load_towers(resolve_model_folder(video.source), weights=weights, text=text)
    if model_folder:
        check_import(video.source, model_folder)
    else:
        allow_import(video.source)
    return ModuleEncoder(video.source), None
