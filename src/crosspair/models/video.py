"""Models with a video encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch

from crosspair.config import ClipConfig, VideoConfig
from crosspair.models.hub import HubModel, resolve_model_folder
from crosspair.models.pretrained import PretrainedEncoder, check_clip, load_towers
from crosspair.models.resnet3d import ResNet3d
from crosspair.models.text import PRETRAINED_FOLDER, TextTower
from crosspair.video.pixels import normalize


class VideoModel(HubModel):
    """Model with a video encoder, which is not trained if ``video.train`` is "head".

    Args:
        clip: clip format that the model was trained on; stored for inference.
        video: architecture of the video encoder.
        video_encoder: encoder to use; None: a `ResNet3d` of ``video``.

    Raises:
        RecipeError: the encoder does not take clips of this format.
    """

    def __init__(self, clip: ClipConfig, video: VideoConfig, video_encoder: PretrainedEncoder | None = None) -> None:
        super().__init__()
        self.clip, self.video = clip, video
        self.video_encoder = video_encoder or ResNet3d(video.depth, video.width, video.shortcut)
        check_clip(self.video_encoder, clip)
        self.video_encoder.requires_grad_(video.train == "all")

    def visual_features(self, clips: torch.Tensor) -> torch.Tensor:
        """Return the visual features (B, F) of clips (B, 3, T, H, W), uint8 or normalised float RGB."""
        encoder = self.video_encoder
        pixels = normalize(clips, encoder.mean, encoder.std).contiguous(memory_format=torch.channels_last_3d)
        features: torch.Tensor = encoder(pixels)
        return features

    def visual_tokens(self, clips: torch.Tensor) -> torch.Tensor:
        """Return visual features by time or place (B, N, F) of clips as for `visual_features`.

        Tokens are the positions of the feature map of the 3D ResNet, the frames of an image encoder, or the tokens of a
        video transformer; the pooled feature is the only one of other encoders.
        """
        encoder = self.video_encoder
        pixels = normalize(clips, encoder.mean, encoder.std).contiguous(memory_format=torch.channels_last_3d)
        encode = getattr(encoder, "tokens", None)
        tokens: torch.Tensor = encode(pixels) if encode else encoder(pixels).unsqueeze(1)
        return tokens

    def train(self, mode: bool = True) -> Self:
        """Set the mode. A video encoder that is not trained stays in eval mode."""
        super().train(mode)
        if self.video.train == "head":
            self.video_encoder.eval()
        return self

    def _save_extra_files(self, folder: Path) -> None:
        if isinstance(self.video_encoder, PretrainedEncoder):
            self.video_encoder.save(folder)


def load_pretrained_encoder(
    video: VideoConfig, model_folder: Path | None = None, *, text: bool = False
) -> tuple[PretrainedEncoder | None, TextTower | None]:
    """Load the pretrained encoder of a configuration, None for `ResNet3d`, and its text tower if required and present.

    Args:
        video: the configuration.
        model_folder: build the architecture that is saved there, without its weights; None: load ``video.source``.
        text: whether the text tower is required.

    Raises:
        ModelError, TextError: see `load_towers`.
    """
    if video.encoder != "pretrained":
        return None, None
    if model_folder:
        return load_towers(model_folder / PRETRAINED_FOLDER, weights=False, text=text)
    return load_towers(resolve_model_folder(video.source), text=text)
