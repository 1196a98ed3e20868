"""The interface of video encoders, and those that a Python function of the user returns.

The other video encoders are `crosspair.models.resnet3d.ResNet3d` and `crosspair.models.pretrained.PretrainedEncoder`.
"""

from __future__ import annotations

import copy
import inspect
import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from math import inf
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import nn

from crosspair.config import ClipConfig
from crosspair.errors import ModelError, RecipeError, format_error
from crosspair.models.hub import allow_any_size
from crosspair.video.pixels import MEAN, STD, Color

FRAMES, FRAME_STRIDE = 2, 30  # of image encoders: with clips every 2 s, one frame per second
ENCODERS_VARIABLE = "CROSSPAIR_ENCODERS"  # import paths that model folders may name, separated by commas
_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class VideoEncoder(nn.Module):
    """A video encoder.

    Shapes:
        (B, 3, T, H, W) float, normalised with ``mean`` and ``std`` → (B, F), the *visual feature*.

    Attributes:
        features: F.
        frames, size: required number and size of the frames of a clip; None: any.
        mean, std: normalisation of the colours from 0 to 1: of all channels, or of each.
        image: whether the encoder runs on each frame, and averages over the frames.
        clip: default clip format.
        blocks: the consecutive blocks that ``video.train=last:N`` and ``optimizer.layer_decay`` count.
    """

    features: int
    frames: int | None = None
    size: int | None = None
    mean: Color = MEAN
    std: Color = STD
    image: bool = False
    clip: ClipConfig = ClipConfig()

    @property
    def blocks(self) -> list[nn.Module]:
        raise NotImplementedError

    def tokens(self, clips: torch.Tensor) -> torch.Tensor:
        """Return features by time or place, (B, N, F): by default of each frame for image encoders, else only one."""
        if not self.image:
            features: torch.Tensor = self(clips)
            return features.unsqueeze(1)
        frames = clips.transpose(1, 2).flatten(0, 1).unsqueeze(2)  # (B·T, 3, 1, H, W)
        features = self(frames)
        return features.view(len(clips), -1, self.features)

    @property
    def description(self) -> str:
        """What the features depend on other than the weights, to recognise features that were stored before."""
        return f"{self.mean} {self.std}\n{self}"

    def with_random_weights(self) -> Self:
        """Return an encoder of the same architecture with random weights."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the files that a model folder needs besides its configuration and weights; none by default."""

    def check_clip(self, clip: ClipConfig) -> None:
        """Raise RecipeError if the encoder does not take clips of this format."""
        for name in ("frames", "size"):
            required = getattr(self, name)
            if required not in (None, getattr(clip, name)):
                raise RecipeError(f"clip.{name} is {getattr(clip, name)}; this video encoder requires {required}")

    def iter_depths(self) -> Iterator[tuple[nn.Module, int]]:
        """Yield each submodule with the number of blocks after it, from ``len(blocks)`` for the first layers to 0."""
        blocks = set(self.blocks)
        after = len(blocks)

        def walk(module: nn.Module) -> Iterator[tuple[nn.Module, int]]:
            nonlocal after
            after -= module in blocks
            yield module, after
            # VideoPrism registers the norm of its output before its blocks.
            for _, child in sorted(module.named_children(), key=lambda item: item[0] == "layernorm2"):
                yield from walk(child)

        yield from walk(self)


class ModuleEncoder(VideoEncoder):
    """A module that a function of the user returns, as a video encoder.

    Args:
        source: import path ``package.module:function`` of a function without arguments. Its module takes and returns
            what a `VideoEncoder` does, or images (N, 3, H, W) → (N, F) if its attribute ``image`` is true.

    The module's attributes are those of `VideoEncoder`; ``image`` and ``blocks`` are optional. Default blocks are the
    members of its longest ModuleList or Sequential.

    Raises:
        ModelError: the import fails, an attribute is missing or invalid, or a test clip is not encoded to F features.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        try:
            with allow_any_size():
                self.model = _call(source).to("cpu")
        except (Exception, SystemExit) as error:  # of the user's code
            raise ModelError(f"video.source {source}: importing it failed ({format_error(error)}).") from error
        self.features = self._read("features", int)
        self.frames, self.size = (self._read(name, int, type(None)) for name in ("frames", "size"))
        self.mean, self.std = (self._read(name, float, int, tuple) for name in ("mean", "std"))
        self.image = bool(getattr(self.model, "image", False))
        self.clip = ClipConfig(
            size=self.size or 224,
            frames=self.frames or (FRAMES if self.image else ClipConfig.frames),
            stride=FRAME_STRIDE if self.image else ClipConfig.stride,
        )
        self._check_output()

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        if not self.image:
            features: torch.Tensor = self.model(clips)
            return features.float()
        return average_frames(self.model(clips.transpose(1, 2).flatten(0, 1)), clips.shape[2])

    @property
    def blocks(self) -> list[nn.Module]:
        if hasattr(self.model, "blocks"):
            return [*cast("nn.ModuleList", self.model.blocks)]
        lists = (module for module in self.model.modules() if isinstance(module, nn.ModuleList | nn.Sequential))
        members = ([block for block in blocks if any(True for _ in block.parameters())] for blocks in lists)
        return max(members, key=len, default=[])

    @property
    def description(self) -> str:
        code = Path(inspect.getsourcefile(type(self.model)) or "").read_text(encoding="utf-8", errors="replace")
        return f"{super().description}\n{self.source} {self.image}\n{code}"

    def with_random_weights(self) -> Self:
        """Return a copy in which all layers that define ``reset_parameters`` have random weights."""
        random = copy.deepcopy(self)
        for module in random.modules():
            reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
            if reset:
                reset()
        return random

    def _read(self, name: str, *types: type) -> Any:
        value = getattr(self.model, name, "missing")
        value = tuple(value) if isinstance(value, list) else value
        numbers = value if isinstance(value, tuple) else (value,)
        valid = all(number is None or (isinstance(number, int | float) and abs(number) < inf) for number in numbers)
        positive = name == "mean" or all(number is None or number > 0 for number in numbers if valid)
        if not isinstance(value, types) or not valid or not positive or len(numbers) not in (1, 3):
            names = {int: "int", float: "float", tuple: "3 of them", type(None): "None"}
            expected = " or ".join(names[kind] for kind in types)
            raise ModelError(f"video.source {self.source}: attribute {name} is {value}; it must be {expected}.")
        return value

    @torch.no_grad()
    def _check_output(self) -> None:
        """Encode two clips, of one frame if the module takes any number; raise ModelError unless it has F features."""
        clip = torch.zeros(2, 3, self.frames or 1, self.clip.size, self.clip.size)
        self.eval()
        try:
            shape = tuple(self(clip).shape)
        except Exception as error:  # of the user's code
            found = f"fails ({format_error(error)})"
        else:
            if shape == (2, self.features):
                return
            found = f"returns {shape}, not (2, {self.features})"
        raise ModelError(f"video.source {self.source}: encoding a clip of shape {tuple(clip.shape)} {found}.")


def average_frames(features: torch.Tensor, frames: int) -> torch.Tensor:
    """Average the features (B·T, F) of B clips of T frames to (B, F)."""
    return features.float().view(-1, frames, features.shape[-1]).mean(dim=1)


def is_import_path(source: str | os.PathLike[str]) -> bool:
    """Return whether a source has the form ``package.module:function``; existing folders take precedence."""
    return _IMPORT_PATH.fullmatch(os.fspath(source)) is not None and not Path(source).is_dir()


def allow_import(source: str) -> None:
    """Allow model folders to name an import path, in this process and those that it starts."""
    os.environ[ENCODERS_VARIABLE] = ",".join({**dict.fromkeys(_allowed_imports()), source: None})


def check_import(source: str, folder: Path) -> None:
    """Raise ModelError unless an import path, which a model folder names, is allowed: importing it runs its code."""
    if source not in _allowed_imports():
        raise ModelError(
            f"{folder} requires the Python code {source}. If you trust it, set {ENCODERS_VARIABLE}={source}"
        )


def _allowed_imports() -> list[str]:
    return [name.strip() for name in os.environ.get(ENCODERS_VARIABLE, "").split(",") if name.strip()]


def _call(source: str) -> nn.Module:
    """Import a function, also from the current folder, and return its module."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    module, _, name = source.partition(":")
    encoder = getattr(import_module(module), name)()
    if not isinstance(encoder, nn.Module):
        raise TypeError(f"{name}() returned {type(encoder).__name__}, not an nn.Module")
    return encoder
