"""ImageNet's networks as they are: features of frames, the frozen baseline of Section 4.2."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import torch

from crosspair.config import ClipConfig, HeadConfig, TextConfig
from crosspair.errors import ModelError
from crosspair.models.cpd import CPD, PARTS
from crosspair.models.foreign.encoder import IMAGENET_MEAN, IMAGENET_STD, inflate
from crosspair.models.words import WordAverage
from crosspair.video.pixels import MEAN, STD, normalize

IMAGENET = "imagenet:"  # before a file, where a model is asked for


class FrameModel(CPD):
    """A 2D ResNet whose visual feature of a clip is the mean over its frames' features.

    It serves wherever a `CPD` is asked for visual features. Its heads and its text encoder are
    untrained: embeddings mean nothing, and protocols that need them refuse it.
    """

    def encode_video(self, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `CPD.encode_video`; the network sees pixels as ImageNet's are normalised.

        Inflated weights that took in the difference would see another colour beyond the border.
        """
        mean, std = (
            torch.tensor(each, device=clips.device).view(3, 1, 1, 1)
            for each in (IMAGENET_MEAN, IMAGENET_STD)
        )
        return super().encode_video((normalize(clips) * STD + MEAN - mean) / std)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> NoReturn:
        """Refused: as a model folder it would get this package's pixels.

        Raises:
            ModelError: always.
        """
        raise ModelError(f"{folder}: a 2D network is not kept as a model folder; keep its own file")


def imagenet_model(file: str | Path, clip: ClipConfig | None = None) -> FrameModel:
    """Read a 2D ResNet to encode frames with.

    Args:
        file: see `crosspair.models.foreign.encoder.inflate`, as for the errors.
        clip: how videos are looked at; 8 frames of 224×224 if none is given.
    """
    video, state = inflate(file, as_trained=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        words = WordAverage(["video"], torch.zeros(1, TextConfig.dimensions))
        model = FrameModel(words, clip or ClipConfig(size=224), video, TextConfig(), HeadConfig())
    model.video_encoder.load_state_dict(state)
    model.untrained = PARTS[1:]
    return model.eval()


def frozen_model(source: str) -> CPD:
    """The model to take features from: a model folder or hub name, or "imagenet:FILE".

    Raises:
        ModelError: there is none, or it does not do.
    """
    if source.startswith(IMAGENET):
        return imagenet_model(source.removeprefix(IMAGENET))
    return CPD.from_pretrained(source)
