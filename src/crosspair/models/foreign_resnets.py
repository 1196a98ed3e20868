"""Read ResNet weights of other projects as weights of `ResNet3d`, without running pickled code.

Supported are slow-only 3D ResNets of the paper's authors, PySlowFast, pytorchvideo and mmaction2,
and 2D ResNets with the names of torchvision and timm, which are inflated.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from crosspair.config import ClipConfig, VideoConfig
from crosspair.errors import ModelError
from crosspair.models.resnet3d import BLOCKS, ResNet3d
from crosspair.video.pixels import MEAN, STD

Weights = dict[str, torch.Tensor]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of R, G, B

_CPD_CLIP = ClipConfig(size=224, frames=8, stride=4)
_SLOW_CLIP = ClipConfig(size=224, frames=8, stride=8)
_STATES = ("state_dict", "model_state", "model")  # keys of the state dict in a checkpoint
_WRAPPERS = ("module.", "model.")  # prefixes added by wrappers such as DistributedDataParallel
_REFUSED_CODE = re.compile(r"GLOBAL (\S+)")  # in PyTorch's error message
_COUNTER = "num_batches_tracked"  # missing in old files
_SHOWN = 3  # names in an error message
_BOTTLENECK_DEPTH = 50  # networks of this depth and above have bottlenecks
# Configurations of networks with the same weights and a different computation.
_UNSUPPORTED_SETTINGS = {
    r"STRIDE_1X1: [Tt]rue": "strides in 1×1 convolutions (RESNET.STRIDE_1X1)",
    r"SPATIAL_DILATIONS:\s*(?:- - 1\s*)*- - [2-9]": "dilated convolutions",
    r"style='caffe'": "strides in 1×1 convolutions (style='caffe')",
}
# The clip format in configurations of PySlowFast and mmaction2.
_CLIP_SETTINGS = {
    "frames": r"\b(?:NUM_FRAMES: |clip_len=)(\d+)",
    "stride": r"\b(?:SAMPLING_RATE: |frame_interval=)(\d+)",
    "size": r"\bTRAIN_CROP_SIZE: (\d+)",
}


@dataclass(frozen=True)
class TensorFile:
    """Content of a weights file.

    Attributes:
        weights: tensors by name, without prefixes of wrappers.
        settings: strings stored with the weights, such as a training configuration.
    """

    weights: Weights
    settings: str = ""


@dataclass(frozen=True)
class WeightLayout:
    """Weight names of one project.

    Attributes:
        project: name in messages.
        prefix: prefix of the video encoder's weights.
        stem: names of the first convolution and its batch normalisation.
        block: name of a residual block, with ``stage`` (2 to 5, as in res2), ``layer`` (1 to 4)
            and ``index`` (from 0).
        module_names: modules of a block with other names than in `ResNet3d`.
        ignored_prefixes: prefixes of weights outside the video encoder.
        clip: default clip format, if the file does not contain it.
        imagenet_pixels: whether pixels were normalised with ImageNet's mean and deviation.
        is_2d: whether the network is 2D, so that its kernels are inflated.
    """

    project: str
    prefix: str
    stem: tuple[str, str]
    block: str
    module_names: dict[str, str]
    ignored_prefixes: tuple[str, ...]
    clip: ClipConfig = _SLOW_CLIP
    imagenet_pixels: bool = False
    is_2d: bool = False

    def foreign_name(self, name: str) -> str:
        """Return the project's name of a weight of `ResNet3d`.

        >>> PYSLOWFAST.foreign_name("res4.0.shortcut.1.bias")
        's4.pathway0_res0.branch1_bn.bias'
        >>> PYTORCHVIDEO.foreign_name("stem.0.weight")
        'blocks.0.conv.weight'
        """
        module, _, key = name.rpartition(".")
        if match := re.fullmatch(r"res(\d)\.(\d+)\.(.+)", module):
            stage, index = int(match[1]), int(match[2])
            block = self.block.format(stage=stage, layer=stage - 1, index=index)
            return f"{self.prefix}{block}.{self.module_names.get(match[3], match[3])}.{key}"
        return f"{self.prefix}{self.stem[int(module.removeprefix('stem.'))]}.{key}"


AUTHORS = WeightLayout(
    "the authors' code", "visual_encoder.", ("conv1", "bn1"), "layer{layer}.{index}", {},
    ("vis_emb.", "text_emb.", "textual_encoder.", "vis_memory", "text_memory", "Z_v", "Z_t"),
    _CPD_CLIP,
)  # fmt: skip
AUTHORS_CLASSIFIER = WeightLayout(
    "the authors' code, fine-tuned", "", ("conv1", "bn1"), "layer{layer}.{index}", {}, ("fc.",),
    ClipConfig(size=224, frames=16, stride=4),
)  # fmt: skip
PYSLOWFAST = WeightLayout(
    "PySlowFast", "", ("s1.pathway0_stem.conv", "s1.pathway0_stem.bn"),
    "s{stage}.pathway0_res{index}",
    {
        **{f"conv{i}": f"branch2.{letter}" for i, letter in enumerate("abc", start=1)},
        **{f"bn{i}": f"branch2.{letter}_bn" for i, letter in enumerate("abc", start=1)},
        "shortcut.0": "branch1", "shortcut.1": "branch1_bn",
    },
    ("head.",),
)  # fmt: skip
PYTORCHVIDEO = WeightLayout(
    "pytorchvideo", "", ("blocks.0.conv", "blocks.0.norm"), "blocks.{layer}.res_blocks.{index}",
    {
        **{f"conv{i}": f"branch2.conv_{letter}" for i, letter in enumerate("abc", start=1)},
        **{f"bn{i}": f"branch2.norm_{letter}" for i, letter in enumerate("abc", start=1)},
        "shortcut.0": "branch1_conv", "shortcut.1": "branch1_norm",
    },
    ("blocks.5.",),
)  # fmt: skip
MMACTION2 = WeightLayout(
    "mmaction2", "backbone.", ("conv1.conv", "conv1.bn"), "layer{layer}.{index}",
    {
        **{f"conv{i}": f"conv{i}.conv" for i in (1, 2, 3)},
        **{f"bn{i}": f"conv{i}.bn" for i in (1, 2, 3)},
        "shortcut.0": "downsample.conv", "shortcut.1": "downsample.bn",
    },
    ("cls_head.",), imagenet_pixels=True,
)  # fmt: skip
RESNET_2D = WeightLayout(  # names of torchvision and timm
    "a 2D ResNet", "", ("conv1", "bn1"), "layer{layer}.{index}",
    {"shortcut.0": "downsample.0", "shortcut.1": "downsample.1"}, ("fc.",),
    ClipConfig(size=224), imagenet_pixels=True, is_2d=True,
)  # fmt: skip
LAYOUTS = (AUTHORS, AUTHORS_CLASSIFIER, PYSLOWFAST, PYTORCHVIDEO, MMACTION2, RESNET_2D)


def inflate(file: str | Path, *, fold_normalization: bool = True) -> tuple[VideoConfig, Weights]:
    """Read a 2D ResNet and inflate it to the video encoder (baseline of Sections 4.3 and 4.4).

    Args:
        file: ``.safetensors`` or a PyTorch state dict, with the names of torchvision and timm
            (``conv1.weight``, ``layer1.0.conv1.weight``, …), trained on RGB images with ImageNet's
            normalisation.
        fold_normalization: fold the difference to this package's normalisation into the first
            layer; otherwise the caller provides pixels normalised as for ImageNet.

    Returns:
        See `read_encoder`.

    Raises:
        ModelError: the file is unreadable, contains code, or is not a ResNet of a supported depth.
    """
    path = Path(file)
    tensors = read_tensors(path)
    if detect_layout(tensors) is not RESNET_2D:
        raise ModelError(
            f"{path} is not a 2D ResNet: it has no 4D conv1.weight "
            f"({_format_names(tensors.weights)})."
        )
    layout = dataclasses.replace(RESNET_2D, imagenet_pixels=fold_normalization)
    return read_encoder(tensors, layout, path)


def read_encoder(file: TensorFile, layout: WeightLayout, path: Path) -> tuple[VideoConfig, Weights]:
    """Convert the video encoder of a file; ``path`` is used in error messages.

    Returns:
        The architecture, inferred from names and shapes, and the state dict of its `ResNet3d`.

    Raises:
        ModelError: the network is not a slow-only 3D ResNet of a supported depth and kind.
    """
    for pattern, feature in _UNSUPPORTED_SETTINGS.items():
        if re.search(pattern, file.settings):
            raise ModelError(f"{path}: {feature} are not supported.")
    video = _infer_architecture(file.weights, layout, path)
    with torch.device("meta"):
        expected = ResNet3d(video.depth, video.width, video.shortcut).state_dict()
    names = {name: layout.foreign_name(name) for name in expected}
    weights = {
        name: value
        for name, value in file.weights.items()
        if not name.startswith(layout.ignored_prefixes)
    }
    if layout.is_2d:
        weights = _inflate_kernels(weights, names, expected)
    what = f"slow-only ResNet-{video.depth} of width {video.width} ({layout.project})"
    state = match_state_dict(expected, names, weights, what, path)
    if layout.imagenet_pixels:
        _fold_normalization(state)
    return video, state


def read_clip_config(file: TensorFile, layout: WeightLayout) -> ClipConfig:
    """Return the clip format of a network: as configured in the file, or the layout's default."""
    settings: dict[str, Any] = {
        field: int(match[1])
        for field, pattern in _CLIP_SETTINGS.items()
        if (match := re.search(pattern, file.settings))
    }
    return dataclasses.replace(layout.clip, **settings)


def detect_layout(file: TensorFile) -> WeightLayout | None:
    """Return the layout of a file's weights, or None if it is unknown."""
    for layout in LAYOUTS:
        stem = file.weights.get(layout.foreign_name("stem.0.weight"))
        if stem is not None and stem.dim() == (4 if layout.is_2d else 5):
            return layout
    return None


def match_state_dict(
    expected: Mapping[str, torch.Tensor],
    names: Mapping[str, str],
    weights: Mapping[str, torch.Tensor],
    what: str,
    path: Path,
) -> Weights:
    """Rename foreign weights to a state dict, requiring an exact match.

    Args:
        expected: state dict with the expected names and shapes.
        names: expected name to foreign name.
        weights: foreign weights.
        what: description of the network, for error messages.
        path: path of the file, for error messages.

    Raises:
        ModelError: weights are missing, unexpected or of another shape.
    """
    missing = [n for n in names.values() if n not in weights and not n.endswith(_COUNTER)]
    unexpected = sorted(set(weights) - set(names.values()))
    for fault, faulty in (("missing", missing), ("unexpected", unexpected)):
        if faulty:
            raise ModelError(
                f"{path}: {what}: {len(faulty)} {fault} weights: {_format_names(faulty)}."
            )
    state = {}
    for name, foreign in names.items():
        value = weights.get(foreign, torch.tensor(0))  # only counters may be missing
        if value.shape != expected[name].shape:
            raise ModelError(
                f"{path}: {what}: {foreign} has shape {tuple(value.shape)}, expected "
                f"{tuple(expected[name].shape)}."
            )
        state[name] = value.to(expected[name].dtype)
    return state


def read_tensors(file: str | Path) -> TensorFile:
    """Read ``.safetensors``, or a PyTorch state dict, plain or in a checkpoint.

    Raises:
        ModelError: the file is unreadable, or contains objects that could run code.
    """
    path = Path(file)
    if not path.is_file():
        raise ModelError(f"weights {path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            return TensorFile(_strip_wrappers(load_file(path)))
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises many types for invalid files
        if code := _REFUSED_CODE.search(str(error)):
            raise ModelError(
                f"{path} contains {code[1]}, which could run code when loaded. Save only its state "
                "dict, preferably as .safetensors."
            ) from error
        # For other pickles, PyTorch's message recommends to load them with code execution.
        expected = isinstance(error, (OSError, EOFError, SafetensorError, RuntimeError))
        reason = " ".join(str(error).split())[:100] if expected else "not written by PyTorch"
        raise ModelError(
            f"{path} is not a readable weights file ({reason or 'empty or truncated'})."
        ) from error
    settings = "\n".join(_iter_strings(content))
    for key in _STATES:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} contains {type(content).__name__}, not a state dict.")
    return TensorFile(_strip_wrappers(content), settings)


def _strip_wrappers(content: Mapping[Any, Any]) -> Weights:
    weights = {str(n): value for n, value in content.items() if isinstance(value, torch.Tensor)}
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in weights):
            weights = {name.removeprefix(wrapper): value for name, value in weights.items()}
    return weights


def _iter_strings(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _iter_strings(value)


def _infer_architecture(weights: Weights, layout: WeightLayout, path: Path) -> VideoConfig:
    def has(name: str) -> bool:
        return layout.foreign_name(name) in weights

    counts = []
    for stage in range(2, 6):
        count = 0
        while has(f"res{stage}.{count}.conv1.weight"):
            count += 1
        counts.append(count)
    bottlenecks = has("res2.0.conv3.weight")
    for depth, blocks in BLOCKS.items():
        if blocks == tuple(counts) and (depth >= _BOTTLENECK_DEPTH) == bottlenecks:
            width = len(weights[layout.foreign_name("stem.0.weight")])
            projections = has("res3.0.shortcut.0.weight")
            return VideoConfig(depth=depth, width=width, shortcut="B" if projections else "A")
    raise ModelError(
        f"{path}: {layout.project} with {', '.join(map(str, counts))} "
        f"{'bottlenecks' if bottlenecks else 'basic blocks'} per stage is not supported. The depth "
        f"must be one of {', '.join(map(str, BLOCKS))}."
    )


def _inflate_kernels(
    weights: Weights, names: Mapping[str, str], expected: Mapping[str, torch.Tensor]
) -> Weights:
    """Inflate 2D kernels to the temporal size of the 3D network.

    The 2D kernel is placed at the central time step and the others are zero, rather than averaged
    over time. The 3D network then gives the mean of the 2D network's outputs for each frame, also
    at the ends of a clip, where frames are zero-padded.
    """
    inflated = dict(weights)
    for name, foreign in names.items():
        shape = expected[name].shape  # (out, in, kt, kh, kw) of a kernel
        if foreign in weights and (weights[foreign].dim(), len(shape)) == (4, 5):
            kernel = weights[foreign]
            inflated[foreign] = torch.zeros(*kernel.shape[:2], shape[2], *kernel.shape[2:])
            inflated[foreign][:, :, shape[2] // 2] = kernel
    return inflated


def _fold_normalization(state: Weights) -> None:
    """Change the first layer from ImageNet's pixel normalisation to this package's, in place.

    A pixel x here is (x STD + MEAN - mean) / std there: the factor is folded into the kernel, the
    shift into the running mean of the batch normalisation. Zero padding corresponds to this
    package's mean colour instead of ImageNet's.
    """
    mean, std = (torch.tensor(rgb).view(3, 1, 1, 1) for rgb in (IMAGENET_MEAN, IMAGENET_STD))
    kernel = state["stem.0.weight"]  # (width, 3, 1, 7, 7)
    state["stem.1.running_mean"] = state["stem.1.running_mean"] - (
        kernel * ((MEAN - mean) / std)
    ).sum(dim=(1, 2, 3, 4))
    state["stem.0.weight"] = kernel * (STD / std)


def _format_names(names: Mapping[str, Any] | list[str]) -> str:
    """Format the first few names for an error message."""
    shown = ", ".join(sorted(names)[:_SHOWN]) or "no weights"
    return f"{shown}, …" if len(names) > _SHOWN else shown
