"""CPD: a video tower and a text tower that end in one space (Figure 1, Section 3.3)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from crosspair.config import ClipConfig, HeadConfig, Recipe, TextConfig, VideoConfig
from crosspair.errors import ModelError, RecipeError, TextError
from crosspair.models.resnet3d import ResNet3d
from crosspair.models.transformer import TransformerAverage
from crosspair.models.words import WordAverage
from crosspair.precision import full_precision
from crosspair.recipes import recipe_of
from crosspair.video.pixels import normalize

TextEncoder = WordAverage | TransformerAverage

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
MODEL_TYPE = "crosspair-cpd"
SECTIONS = ("clip", "video", "text", "head")  # of a recipe: what a model is built from


class CPD(nn.Module):
    """Both towers.

    Args:
        text_encoder: the language model, see `crosspair.models.text_encoder`.
        clip: the form of clips that the video tower is meant for; kept for those who use it.
        video: the video encoder's architecture.
        text: what the text encoder is; kept to rebuild it.
        head: the common space.
    """

    def __init__(
        self,
        text_encoder: TextEncoder,
        clip: ClipConfig,
        video: VideoConfig,
        text: TextConfig,
        head: HeadConfig,
    ) -> None:
        super().__init__()
        self.clip, self.video, self.text, self.head = clip, video, text, head
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
            clips: (B, 3, T, H, W), RGB; uint8 is normalised inside, float is taken as normalised.

        Returns:
            The visual feature (B, F) and the embedding f_v (B, D) of unit norm.
        """
        pixels = normalize(clips).contiguous(memory_format=torch.channels_last_3d)
        features = self.video_encoder(pixels)
        with full_precision(features.device):
            return features, F.normalize(self.video_head(features), dim=1)

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Encode texts.

        Returns:
            The embedding f_t (B, D) of unit norm.
        """
        features = self.text_encoder(texts)
        with full_precision(features.device):
            return F.normalize(self.text_head(features), dim=1)

    def forward(
        self, clips: torch.Tensor, texts: Sequence[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings f_v and f_t (B, D) of B pairs: what the objective takes."""
        return self.encode_video(clips)[1], self.encode_text(texts)

    @property
    def hash(self) -> str:
        """12 hex digits that tell weights apart, wherever and however they are stored."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that `from_pretrained` reads, in place of what it may hold already."""
        folder = Path(folder).absolute()
        partial = folder.with_name(f".{folder.name}.partial")
        replaced = folder.with_name(f".{folder.name}.replaced")
        if folder.exists() and not _may_be_replaced(folder):
            raise ModelError(f"{folder} is there already and no model folder; give another name")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            sections = {name: dataclasses.asdict(getattr(self, name)) for name in SECTIONS}
            text = json.dumps({"model_type": MODEL_TYPE, **sections}, indent=2)
            (partial / CONFIG_FILE).write_text(text, encoding="utf-8")
            self.text_encoder.save(partial)
            weights = {name: value.contiguous() for name, value in self.state_dict().items()}
            save_file(weights, partial / WEIGHTS_FILE, metadata={"format": "pt"})
            if folder.exists():
                folder.rename(replaced)
            partial.rename(folder)
            shutil.rmtree(replaced, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            if replaced.exists() and not folder.exists():
                replaced.rename(folder)
            raise ModelError(f"model folder {folder} cannot be written: {error}") from error

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str]) -> CPD:
        """Load a model from a folder of `save_pretrained`, or by its name on the hub.

        Raises:
            ModelError: there is no such folder, or it does not hold a whole model.
        """
        folder = _local(source)
        recipe = _read_config(folder)
        try:
            encoder: TextEncoder = (
                WordAverage.load(folder)
                if recipe.text.encoder == "words"
                else TransformerAverage.load(folder, recipe.text.max_tokens)
            )
        except TextError as error:
            raise ModelError(str(error)) from error
        model = cls(encoder, recipe.clip, recipe.video, recipe.text, recipe.head)
        try:
            model.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{folder / WEIGHTS_FILE}: cannot be read ({error})") from error
        except RuntimeError as error:
            raise ModelError(
                f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE} beside it: {_fault(error)}"
            ) from error
        return model.eval()


def _may_be_replaced(folder: Path) -> bool:
    return folder.is_dir() and ((folder / CONFIG_FILE).is_file() or not any(folder.iterdir()))


def _local(source: str | os.PathLike[str]) -> Path:
    if Path(source).is_dir():
        return Path(source)
    name = os.fspath(source)
    looks_like_hub = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if not looks_like_hub:
        raise ModelError(f"model folder {name} does not exist")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{name}: neither a folder nor a model on the hub ({reason})") from error


def _read_config(folder: Path) -> Recipe:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} holds no model: no readable {CONFIG_FILE}") from error
    if not isinstance(config, dict) or config.pop("model_type", None) != MODEL_TYPE:
        raise ModelError(f"{folder / CONFIG_FILE}: not a configuration of crosspair")
    try:
        return recipe_of(
            {f"{s}.{key}": value for s in SECTIONS for key, value in config[s].items()}
        )
    except (KeyError, AttributeError) as error:
        raise ModelError(f"{folder / CONFIG_FILE}: a section is missing ({error})") from error
    except RecipeError as error:
        raise ModelError(f"{folder / CONFIG_FILE}: {error}") from error


def _fault(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else lines[0]
