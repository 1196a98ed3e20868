"""Pretrained image and video encoders of Hugging Face transformers, with the text tower of those that have one.

A folder of such a model contains its configuration, weights, preprocessing and, with a text tower, tokenizer.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from crosspair.config import ClipConfig
from crosspair.errors import CrosspairError, ModelError, format_error
from crosspair.files import read_json
from crosspair.models.encoder import FRAME_STRIDE, FRAMES, VideoEncoder, average_frames
from crosspair.models.hub import read_config
from crosspair.models.text import (
    PRETRAINED_FOLDER,
    TextTower,
    import_extra,
    load_transformers_config,
    silence_transformers,
)

logger = logging.getLogger(__name__)

PREPROCESSOR_FILES = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")
_UNUSED = ("logit", "predictor", "prompts", "text")  # beginnings of the names of modules that a video tower ignores

Encode = Callable[[Any, torch.Tensor], torch.Tensor]


def _image_tower(model: Any, frames: torch.Tensor) -> torch.Tensor:
    return F.normalize(model.get_image_features(frames).pooler_output.float(), dim=1)


def _naflex_tower(model: Any, frames: torch.Tensor) -> torch.Tensor:
    side = model.config.vision_config.patch_size
    rows, columns = frames.shape[2] // side, frames.shape[3] // side
    patches = frames.reshape(-1, 3, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
    patches = patches.reshape(-1, rows * columns, side * side * 3)
    mask = torch.ones(patches.shape[:2], dtype=torch.long, device=frames.device)
    shapes = torch.tensor([[rows, columns]], device=frames.device).expand(frames.shape[0], 2)
    return F.normalize(model.get_image_features(patches, mask, shapes).pooler_output.float(), dim=1)


def _video_tower(model: Any, clips: torch.Tensor) -> torch.Tensor:
    return model.get_video_features(clips).pooler_output.flatten(1)  # type: ignore[no-any-return]


def _pooled(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixels).pooler_output.flatten(1)  # type: ignore[no-any-return]


def _first_token(model: Any, clips: torch.Tensor) -> torch.Tensor:
    return model(clips).last_hidden_state[:, 0]  # type: ignore[no-any-return]


def _tokens(model: Any, clips: torch.Tensor) -> torch.Tensor:
    return model(clips).last_hidden_state  # type: ignore[no-any-return]


def _token_mean(model: Any, clips: torch.Tensor) -> torch.Tensor:
    mean = _tokens(model, clips).float().mean(dim=1)
    return model.fc_norm(mean) if hasattr(model, "fc_norm") else mean  # of a fine-tuned VideoMAE


def _vjepa_tokens(model: Any, clips: torch.Tensor) -> torch.Tensor:
    return model(clips, skip_predictor=True).last_hidden_state  # type: ignore[no-any-return]


def _vjepa(model: Any, clips: torch.Tensor) -> torch.Tensor:
    return _vjepa_tokens(model, clips).float().mean(dim=1)


@dataclass(frozen=True)
class Family:
    """How models of one architecture are used.

    Attributes:
        encode: from a model and its input, (N, 3, H, W) or (B, T, 3, H, W), to features (N, F) or (B, F).
        free: which of the frames and the size of a clip may differ from the model's configuration.
        stride: default distance between frames in 1/30 s; None: an image encoder, which runs on each frame.
        text: how texts are tokenized, see `TextTower`; None: no text tower.
        tokens: like ``encode``, to tokens (B, N, F); None: pooled features only.
    """

    encode: Encode
    free: frozenset[str] = frozenset()
    stride: int | None = None
    text: Mapping[str, bool] | None = None
    tokens: Encode | None = None


_FRAMES, _BOTH = frozenset({"frames"}), frozenset({"frames", "size"})
_MASKED: Mapping[str, bool] = {"padded": False, "masked": True}

FAMILIES: Mapping[str, Family] = {
    "clip": Family(_image_tower, _FRAMES, text=_MASKED),
    "metaclip_2": Family(_image_tower, _FRAMES, text=_MASKED),
    "siglip": Family(_image_tower, _FRAMES, text={"padded": True, "masked": False}),  # and SigLIP 2 of fixed resolution
    "siglip2": Family(_naflex_tower, _FRAMES, text={"padded": True, "masked": False}),  # NaFlex
    "dinov2": Family(_pooled, _BOTH),
    "vit": Family(_pooled, _FRAMES),
    "convnext": Family(_pooled, _BOTH),
    "resnet": Family(_pooled, _BOTH),
    "xclip": Family(_video_tower, stride=32, text=_MASKED),
    "videoprism": Family(_video_tower, stride=8, text={"padded": True, "masked": True}),
    "videoprism_vision_model": Family(_token_mean, stride=8, tokens=_tokens),
    "videomae": Family(_token_mean, stride=4, tokens=_tokens),
    "vivit": Family(_pooled, stride=2, tokens=_tokens),
    "timesformer": Family(_first_token, _FRAMES, stride=32, tokens=_tokens),
    "vjepa2": Family(_vjepa, _BOTH, stride=4, tokens=_vjepa_tokens),
}
"""By the ``model_type`` of the configuration."""


class PretrainedEncoder(VideoEncoder):
    """A transformers model as a video encoder; for shapes and attributes see `VideoEncoder`.

    Args:
        model: a model of one of `FAMILIES`.
        preprocessor: content of its preprocessor file.

    Raises:
        ModelError: the preprocessor's values are invalid.
    """

    def __init__(self, model: Any, preprocessor: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = _select(model, lambda name: not name.startswith(_UNUSED))
        self.preprocessor = dict(preprocessor)
        config = model.config
        vision = getattr(config, "vision_config", config)
        family = FAMILIES[config.model_type]
        self.image = family.stride is None
        self.features = (
            getattr(config, "projection_dim", None)
            or (getattr(vision, "hidden_sizes", None) or [vision.hidden_size])[-1]
        )
        # ViViT scales colours to [-1, 1] first: value = (255 * factor * colour - offset - mean) / std.
        scale = 255 * preprocessor.get("rescale_factor", 1 / 255)
        offset = 1.0 if preprocessor.get("offset") else 0.0
        normalized = preprocessor.get("do_normalize", True)
        try:
            mean, std = (
                (preprocessor["image_mean"], preprocessor["image_std"]) if normalized else ([0.0] * 3, [1.0] * 3)
            )
            self.mean = tuple((value + offset) / scale for value in mean)
            self.std = tuple(value / scale for value in std)
            if config.model_type == "siglip2":  # any shape of at most this number of patches; here, squares
                short_side = size = image_size = math.isqrt(vision.num_patches) * vision.patch_size
            else:
                short_side, size = _sides(preprocessor)
                image_size = getattr(vision, "image_size", size)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ModelError(f"{PREPROCESSOR_FILES[1]}: invalid values ({format_error(error)}).") from error
        frames = FRAMES
        if family.stride:
            frames = config.frames_per_clip if config.model_type == "vjepa2" else vision.num_frames
        self.frames = None if "frames" in family.free else frames
        self.size = None if "size" in family.free else _side(image_size)
        self.clip = ClipConfig(
            size=self.size or size,
            frames=frames,
            stride=family.stride or FRAME_STRIDE,
            test_scale=max(1.0, short_side / size),
        )

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        family = FAMILIES[self.model.config.model_type]
        frames = clips.transpose(1, 2)  # (B, T, 3, H, W)
        if self.image:
            return average_frames(family.encode(self.model, frames.flatten(0, 1)), clips.shape[2])
        return family.encode(self.model, frames).float()

    @property
    def blocks(self) -> list[nn.Module]:
        """The members of all lists of layers or stages that are not within another list."""
        lists = [name for name, module in self.named_modules() if isinstance(module, nn.ModuleList)]
        outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
        return [block for name in outer for block in self.get_submodule(name).children()]

    def tokens(self, clips: torch.Tensor) -> torch.Tensor:
        encode = FAMILIES[self.model.config.model_type].tokens
        return encode(self.model, clips.transpose(1, 2)).float() if encode else super().tokens(clips)

    @property
    def description(self) -> str:
        return f"{super().description}\n{self.model.config.to_json_string()}\n{self.preprocessor}"

    def with_random_weights(self) -> Self:
        """Return an encoder of the same architecture with random weights."""
        return type(self)(_build_network(self.model.config)[0], self.preprocessor)

    def save(self, folder: Path) -> None:
        """Write the configurations; the weights are part of the model's."""
        self.model.config.save_pretrained(folder / PRETRAINED_FOLDER)
        text = json.dumps(self.preprocessor, indent=2)
        (folder / PRETRAINED_FOLDER / PREPROCESSOR_FILES[1]).write_text(text, encoding="utf-8")


def load_towers(folder: Path, *, weights: bool = True, text: bool = True) -> tuple[PretrainedEncoder, TextTower | None]:
    """Load a video encoder, and its text tower if it has one, from a folder of a transformers model.

    Args:
        folder: contains the model.
        weights: load the weights; otherwise they are arbitrary, for the caller to load.
        text: load the text tower, which needs a tokenizer.

    Raises:
        ModelError: a file is missing or invalid, the architecture is not supported, or weights are missing or
            unexpected. Weights of other parts, such as a classifier, are ignored.
        TextError: the tokenizer is unusable.
    """
    transformers = import_extra("transformers")
    read_config(folder, *FAMILIES)
    try:
        config = load_transformers_config(str(folder))
        preprocessor = _read_preprocessor(folder)
        with nullcontext() if weights else import_extra("transformers.initialization").no_init_weights():
            model, info = _build_network(config, folder if weights else None)
        family = FAMILIES[config.model_type]
        settings = family.text if text else None
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False) if settings else None
    except CrosspairError:
        raise
    except Exception as error:  # tokenizers and safetensors define their own exceptions
        raise ModelError(f"{folder}: loading the model failed ({format_error(error)}).") from error
    own = {name for name, _ in model.named_children()}
    buffers = {name for name, _ in model.named_buffers()}  # which old versions saved
    unexpected = sorted(info["unexpected_keys"])
    foreign = [name for name in unexpected if name.removeprefix(f"{model.base_model_prefix}.").split(".")[0] not in own]
    faults = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": [name for name in unexpected if name not in buffers and name not in foreign],
        "of another shape": sorted(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]),
    }
    for fault, names in faults.items():
        if names:
            raise ModelError(
                f"{folder}: {len(names)} weights are {fault}, as of another model than that of config.json: "
                f"{', '.join(names[:3])}."
            )
    if foreign:
        logger.info("%s: ignored weights of other parts: %s", folder, ", ".join(foreign))
    encoder = PretrainedEncoder(model, preprocessor)
    if settings is None:
        return encoder, None
    tower = _select(model, lambda name: name.startswith("text"))
    scale = float(model.logit_scale.detach().exp()) if weights and hasattr(model, "logit_scale") else None
    return encoder, TextTower(tower, tokenizer, encoder.features, scale=scale, **settings)


def _build_network(config: Any, folder: Path | None = None) -> tuple[Any, dict[str, Any]]:
    """Load a network, or build one with random weights; return it with the names of weights that do not match."""
    transformers = import_extra("transformers")
    settings: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": False}
    info: dict[str, Any] = {"missing_keys": (), "unexpected_keys": (), "mismatched_keys": ()}
    # The normalisation of a fine-tuned VideoMAE belongs to its classifier.
    fine_tuned = config.architectures == ["VideoMAEForVideoClassification"] and config.use_mean_pooling
    kind = transformers.AutoModelForVideoClassification if fine_tuned else transformers.AutoModel
    with silence_transformers():
        if folder:
            settings |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
            model, info = kind.from_pretrained(folder, config=config, **settings)
        else:
            model = kind.from_config(config, **settings)
    if fine_tuned:
        model.videomae.fc_norm = model.fc_norm
        model = model.videomae
    return model, info


def _select(model: Any, keep: Callable[[str], bool]) -> Any:
    """Return a shallow copy of a model with some of its modules and parameters."""
    selected = copy.copy(model)
    selected._modules = {name: module for name, module in model._modules.items() if keep(name)}
    selected._parameters = {name: value for name, value in model._parameters.items() if keep(name)}
    return selected


def _read_preprocessor(folder: Path) -> dict[str, Any]:
    """Return the preprocessing of images or videos; ModelError if there is none."""
    file = next((folder / name for name in PREPROCESSOR_FILES if (folder / name).is_file()), None)
    if file is None:
        raise ModelError(f"{folder}: {PREPROCESSOR_FILES[1]} is missing.")
    content = read_json(file)
    for name in ("video_processor", "image_processor"):
        content = content.get(name, content)
    return dict(content)


def _sides(preprocessor: Mapping[str, Any]) -> tuple[int, int]:
    """Return the short side of the resized frames, and the size of their crop."""
    side = _side(preprocessor["size"])
    if preprocessor.get("do_center_crop", True) and preprocessor.get("crop_size"):
        return side, _side(preprocessor["crop_size"])
    if preprocessor.get("crop_pct") and side < 384:  # ConvNeXt and ResNet
        return round(side / preprocessor["crop_pct"]), side
    return side, side


def _side(size: Any) -> int:
    """Return the shorter side of a size: a number, a pair, or "shortest_edge" or "height" of a mapping."""
    if isinstance(size, Mapping):
        return int(size.get("shortest_edge") or size["height"])
    return int(size if isinstance(size, int) else min(size))
