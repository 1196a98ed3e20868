"""Import models of other projects, without running pickled code.

Supported are the checkpoints of the paper's authors (both towers), slow-only 3D ResNets of PySlowFast, pytorchvideo and
mmaction2, and 2D ResNets with the names of torchvision and timm, which are inflated.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file

from crosspair.config import ClipConfig, HeadConfig, TextConfig, VideoConfig
from crosspair.errors import ModelError, format_error
from crosspair.models.cpd import CPD, PARTS
from crosspair.models.hub import check_finite, limit_parameters
from crosspair.models.resnet3d import BLOCKS, ResNet3d
from crosspair.models.text import TextEncoder, TransformerAverage, WordAverage
from crosspair.recipes import recipe_of
from crosspair.video.pixels import MEAN, STD

Weights = dict[str, torch.Tensor]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of R, G, B
MAX_TOKENS = 64  # length to which the authors truncate and pad titles

_SLOW_CLIP = ClipConfig(size=224, frames=8, stride=8)
_STATES = ("state_dict", "model_state", "model")  # keys of the state dict in a checkpoint
_WRAPPERS = ("module.", "model.")  # prefixes added by wrappers such as DistributedDataParallel
_REFUSED_CODE = re.compile(r"GLOBAL (\S+)")  # in PyTorch's error message
_COUNTER = "num_batches_tracked"  # missing in old files
_AUTHORS_PREFIXES = {"video_head": "vis_emb.", "text_encoder": "textual_encoder.", "text_head": "text_emb."}
_POSITION_IDS = "textual_encoder.embeddings.position_ids"  # stored by old versions of transformers
_BANK = "vis_memory"
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
class WeightLayout:
    """Weight names of one project.

    Names of blocks contain ``stage`` (2 to 5, as in res2), ``layer`` (1 to 4) and ``index`` (from 0), those of
    convolutions and norms ``number`` (1 to 3) or ``letter`` (a to c).
    """

    project: str  # name in messages
    prefix: str = ""  # of the video encoder's weights
    stem: tuple[str, str] = ("conv1", "bn1")
    block: str = "layer{layer}.{index}"
    convolution: str = "conv{number}"
    norm: str = "bn{number}"
    shortcut: tuple[str, str] = ("downsample.0", "downsample.1")
    ignored_prefixes: tuple[str, ...] = ("fc.",)  # of weights outside the video encoder
    clip: ClipConfig = _SLOW_CLIP  # if the file does not contain it
    imagenet_pixels: bool = False  # whether pixels were normalised with ImageNet's mean and deviation
    is_2d: bool = False  # whether kernels are to be inflated

    def foreign_name(self, name: str) -> str:
        """Return the project's name of a weight of `ResNet3d`.

        >>> PYSLOWFAST.foreign_name("res4.0.shortcut.1.bias")
        's4.pathway0_res0.branch1_bn.bias'
        """
        module, _, key = name.rpartition(".")
        match = re.fullmatch(r"res(\d)\.(\d+)\.(conv|bn|shortcut\.)(\d)", module)
        if match is None:
            return f"{self.prefix}{self.stem[int(module.removeprefix('stem.'))]}.{key}"
        stage, number = int(match[1]), int(match[4])
        block = self.block.format(stage=stage, layer=stage - 1, index=match[2])
        layers = {"conv": self.convolution, "bn": self.norm}
        layer = layers.get(match[3]) or self.shortcut[number]
        return f"{self.prefix}{block}.{layer.format(number=number, letter=' abc'[number])}.{key}"


# fmt: off
AUTHORS = WeightLayout(
    "the authors' code", prefix="visual_encoder.", clip=ClipConfig(size=224, frames=8, stride=4),
    ignored_prefixes=("vis_emb.", "text_emb.", "textual_encoder.", "vis_memory", "text_memory", "Z_v", "Z_t"),
)
AUTHORS_CLASSIFIER = WeightLayout("the authors' code, fine-tuned", clip=ClipConfig(size=224, frames=16, stride=4))
PYSLOWFAST = WeightLayout(
    "PySlowFast", stem=("s1.pathway0_stem.conv", "s1.pathway0_stem.bn"), block="s{stage}.pathway0_res{index}",
    convolution="branch2.{letter}", norm="branch2.{letter}_bn", shortcut=("branch1", "branch1_bn"),
    ignored_prefixes=("head.",),
)
PYTORCHVIDEO = WeightLayout(
    "pytorchvideo", stem=("blocks.0.conv", "blocks.0.norm"), block="blocks.{layer}.res_blocks.{index}",
    convolution="branch2.conv_{letter}", norm="branch2.norm_{letter}", shortcut=("branch1_conv", "branch1_norm"),
    ignored_prefixes=("blocks.5.",),
)
MMACTION2 = WeightLayout(
    "mmaction2", prefix="backbone.", stem=("conv1.conv", "conv1.bn"), convolution="conv{number}.conv",
    norm="conv{number}.bn", shortcut=("downsample.conv", "downsample.bn"), ignored_prefixes=("cls_head.",),
    imagenet_pixels=True,
)
RESNET_2D = WeightLayout("a 2D ResNet", clip=ClipConfig(size=224), imagenet_pixels=True, is_2d=True)
# fmt: on
LAYOUTS = (AUTHORS, AUTHORS_CLASSIFIER, PYSLOWFAST, PYTORCHVIDEO, MMACTION2, RESNET_2D)


@dataclass(frozen=True)
class ImportedModel:
    """A model of a project; ``skipped`` has one line for each part of the file that was not imported."""

    model: CPD
    project: str
    skipped: list[str]


def import_weights(
    file: str | Path, *, tokenizer: str | None = None, clip: Mapping[str, Any] | None = None
) -> ImportedModel:
    """Import a model of another project. The project and the architecture are detected.

    Args:
        file: PyTorch checkpoint or state dict, or ``.safetensors``.
        tokenizer: folder with configuration and tokenizer of the language model, for the authors'
            checkpoints; without it the text tower is skipped.
        clip: fields of `ClipConfig` that the network was trained with, as ``{"frames": 4}``; they
            override those in the file.

    Raises:
        ModelError: the file is unreadable, contains code, or has an unknown format.
        RecipeError: ``clip`` is invalid.
        TextError: ``tokenizer`` is not the folder of a language model.
    """
    content = WeightsFile.read(Path(file))
    layout, weights = content.layout, content.weights
    if layout is None:
        known = ", ".join(dict.fromkeys(layout.foreign_name("stem.0.weight") for layout in LAYOUTS))
        raise ModelError(
            f"{file}: unknown weight names ({_format_names(weights)}). Only slow-only networks are supported, "
            f"whose first convolution is one of {known}."
        )
    if tokenizer is not None and layout is not AUTHORS:
        raise ModelError(f"{file}: {layout.project} has no text tower. Omit --tokenizer.")
    video, encoder = content.read_encoder(layout)
    fields = {**dataclasses.asdict(layout.clip), **content.clip_settings(), **(clip or {})}
    recipe = recipe_of({f"clip.{key}": value for key, value in fields.items()}, "import-weights")
    head, text = HeadConfig(), TextConfig()
    parts: tuple[str, ...] = ()
    skipped: list[str] = []
    text_encoder: TextEncoder = WordAverage(["video"], torch.zeros(1, 1))  # a placeholder
    if layout is AUTHORS:
        parts, head = ("video_head",), content.head_config()
        if _BANK in weights:
            skipped.append(f"the memory banks ({len(weights[_BANK]):,} pairs of the authors' corpus)")
    elif classifier := [name for name in weights if name.startswith(layout.ignored_prefixes)]:
        skipped.append(f"the classifier ({', '.join(classifier)})")
    if tokenizer is not None:
        parts = PARTS[1:]
        text = TextConfig(encoder="transformer", source=tokenizer, max_tokens=MAX_TOKENS)
        with limit_parameters([value.numel() for value in weights.values()], f"{file} does not match {tokenizer}"):
            text_encoder = TransformerAverage(tokenizer, MAX_TOKENS, weights=False)
        text_encoder.attend_to_padding()  # as the authors' network
    elif layout is AUTHORS:
        skipped.append(
            "the text tower: the file does not contain its tokenizer. Pass a folder with DistilBERT's config.json "
            "and tokenizer files to --tokenizer."
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)  # makes untrained parts reproducible
        model = CPD(text_encoder, recipe.clip, video, text, head).eval()
    model.video_encoder.load_state_dict(encoder)
    for part in parts:
        module = getattr(model, part)
        module.load_state_dict(content.read_part(part, module.state_dict()))
    model.untrained = tuple(part for part in PARTS[1:] if part not in parts)
    return ImportedModel(model, layout.project, skipped)


def inflate(file: str | Path, *, fold_normalization: bool = True) -> tuple[VideoConfig, Weights]:
    """Read a 2D ResNet and inflate it to the video encoder (baseline of Appendix B, Table 4).

    Args:
        file: ``.safetensors`` or a PyTorch state dict, with the names of torchvision and timm (``conv1.weight``,
            ``layer1.0.conv1.weight``, …), trained on RGB images with ImageNet's normalisation.
        fold_normalization: fold the difference to this package's normalisation into the first layer; otherwise the
            caller provides pixels normalised as for ImageNet.

    Returns:
        The architecture, inferred from names and shapes, and the state dict of its `ResNet3d`.

    Raises:
        ModelError: the file is unreadable, contains code, or is not a ResNet of a supported depth.
    """
    content = WeightsFile.read(Path(file))
    if content.layout is not RESNET_2D:
        raise ModelError(f"{file} is not a 2D ResNet: it has no 4D conv1.weight ({_format_names(content.weights)}).")
    return content.read_encoder(dataclasses.replace(RESNET_2D, imagenet_pixels=fold_normalization))


@dataclass(frozen=True)
class WeightsFile:
    """A weights file of another project: tensors by name, and strings such as a training configuration."""

    path: Path
    weights: Weights
    settings: str = ""

    @classmethod
    def read(cls, path: Path) -> WeightsFile:
        """Read ``.safetensors``, or a PyTorch state dict, plain or in a checkpoint; code in it is not run."""
        if not path.is_file():
            raise ModelError(f"weights {path}: no such file.")
        try:
            content: Any = (
                load_file(path)
                if path.suffix == ".safetensors"
                else torch.load(path, map_location="cpu", weights_only=True)
            )
        except Exception as error:  # PyTorch raises many types for invalid files
            if code := _REFUSED_CODE.search(str(error)):
                raise ModelError(
                    f"{path} contains {code[1]}, which could run code when loaded. Save only its state dict."
                ) from error
            # For other pickles, PyTorch's message recommends to load them with code execution.
            expected = isinstance(error, (OSError, EOFError, SafetensorError, RuntimeError))
            reason = format_error(error)[:100] if expected else "not written by PyTorch"
            raise ModelError(f"{path} is not a readable weights file ({reason}).") from error
        settings = "\n".join(_iter_strings(content))
        for key in _STATES:
            if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
                content = content[key]
        if not isinstance(content, Mapping):
            raise ModelError(f"{path} contains {type(content).__name__}, not a state dict.")
        weights = {str(n): value for n, value in content.items() if isinstance(value, torch.Tensor)}
        for wrapper in _WRAPPERS:
            if all(name.startswith(wrapper) for name in weights):
                weights = {name.removeprefix(wrapper): value for name, value in weights.items()}
        return cls(path, weights, settings)

    @property
    def layout(self) -> WeightLayout | None:
        """The first of `LAYOUTS` with the name and dimensions of the first convolution, or None."""
        for layout in LAYOUTS:
            stem = self.weights.get(layout.foreign_name("stem.0.weight"))
            if stem is not None and stem.dim() == (4 if layout.is_2d else 5):
                return layout
        return None

    def clip_settings(self) -> dict[str, int]:
        """Return frames, stride and size, as far as the training configuration in the file sets them."""
        found = {key: re.search(pattern, self.settings) for key, pattern in _CLIP_SETTINGS.items()}
        return {key: int(match[1]) for key, match in found.items() if match}

    def read_encoder(self, layout: WeightLayout) -> tuple[VideoConfig, Weights]:
        """Convert the video encoder, inflating 2D kernels and folding ImageNet's normalisation; see `inflate`."""
        for pattern, feature in _UNSUPPORTED_SETTINGS.items():
            if re.search(pattern, self.settings):
                raise ModelError(f"{self.path}: {feature} are not supported.")
        video = self._infer_architecture(layout)
        with torch.device("meta"):
            expected = ResNet3d(video.depth, video.width, video.shortcut).state_dict()
        names = {name: layout.foreign_name(name) for name in expected}
        weights = {n: value for n, value in self.weights.items() if not n.startswith(layout.ignored_prefixes)}
        if layout.is_2d:
            _inflate_kernels(weights, names, expected)
        what = f"slow-only ResNet-{video.depth} of width {video.width} ({layout.project})"
        state = self.match(what, expected, names, weights)
        if layout.imagenet_pixels:
            _fold_normalization(state)
        return video, state

    def head_config(self) -> HeadConfig:
        """Return the sizes of the heads of an authors' checkpoint."""
        sizes = []
        for name in ("vis_emb.weight", "text_emb.0.weight"):
            if name not in self.weights or self.weights[name].dim() != 2:
                raise ModelError(f"{self.path}: {AUTHORS.project}: the matrix {name} is missing.")
            sizes.append(len(self.weights[name]))
        return HeadConfig(sizes[0], sizes[1])

    def read_part(self, part: str, expected: Mapping[str, torch.Tensor]) -> Weights:
        """Convert a head or the text encoder of an authors' checkpoint; see `match`."""
        prefix = _AUTHORS_PREFIXES[part]
        weights = {name: v for name, v in self.weights.items() if name.startswith(prefix)}
        weights.pop(_POSITION_IDS, None)
        names = {name: prefix + name.removeprefix("model.") for name in expected}
        return self.match(part, expected, names, weights)

    def _infer_architecture(self, layout: WeightLayout) -> VideoConfig:
        """Infer depth, width and shortcut from names and shapes; ModelError for an unsupported depth."""

        def has(name: str) -> bool:
            return layout.foreign_name(name) in self.weights

        counts = tuple(sum(has(f"res{stage}.{index}.conv1.weight") for index in range(99)) for stage in range(2, 6))
        bottlenecks = has("res2.0.conv3.weight")
        for depth, blocks in BLOCKS.items():
            if blocks == counts and (depth >= 50) == bottlenecks:
                width = len(self.weights[layout.foreign_name("stem.0.weight")])
                projections = has("res3.0.shortcut.0.weight")
                return VideoConfig(depth=depth, width=width, shortcut="B" if projections else "A")
        found = f"{', '.join(map(str, counts))} {'bottlenecks' if bottlenecks else 'basic blocks'} per stage"
        depths = ", ".join(map(str, BLOCKS))
        raise ModelError(f"{self.path}: {layout.project} with {found} is not supported; the depth must be in {depths}.")

    def match(
        self, what: str, expected: Mapping[str, torch.Tensor], names: Mapping[str, str], weights: Weights
    ) -> Weights:
        """Rename and cast weights to a state dict; all names and shapes but batch counters must match.

        Args:
            what: the network, for the error message.
            expected: state dict with the expected names and shapes.
            names: expected name to name in the file.
            weights: the weights in the file that belong to the network.
        """
        shapes = {foreign: tuple(expected[name].shape) for name, foreign in names.items()}
        found = {name: tuple(value.shape) for name, value in weights.items()}
        faults = [
            f"{name} is {found.get(name, 'missing')}, expected {shapes.get(name, 'none')}"
            for name in sorted({*shapes, *found})
            if found.get(name) != shapes.get(name) and not name.endswith(_COUNTER)
        ]
        if faults:
            raise ModelError(f"{self.path}: {what}: {len(faults)} weights do not match: {_format_names(faults)}.")
        check_finite(weights, self.path)
        return {name: weights.get(foreign, torch.tensor(0)).to(expected[name].dtype) for name, foreign in names.items()}


def _iter_strings(content: Any) -> Iterator[str]:
    """Yield all strings among the values of nested mappings; lists and keys are skipped."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _iter_strings(value)


def _inflate_kernels(weights: Weights, names: Mapping[str, str], expected: Mapping[str, torch.Tensor]) -> None:
    """Inflate 2D kernels to the temporal size of the 3D network, in place.

    The 2D kernel is placed at the central time step and the others are zero, rather than averaged
    over time. The 3D network then gives the mean of the 2D network's outputs for each frame, also
    at the ends of a clip, where frames are zero-padded.
    """
    for name, foreign in names.items():
        shape = expected[name].shape  # (out, in, kt, kh, kw) of a kernel
        if foreign in weights and (weights[foreign].dim(), len(shape)) == (4, 5):
            padding = (0, 0, 0, 0, shape[2] // 2, shape[2] // 2)
            weights[foreign] = F.pad(weights[foreign].unsqueeze(2), padding)


def _fold_normalization(state: Weights) -> None:
    """Change the first layer from ImageNet's pixel normalisation to this package's, in place.

    A pixel x here is (x STD + MEAN - mean) / std there: the factor is folded into the kernel, the
    shift into the running mean of the batch normalisation. Zero padding corresponds to this
    package's mean colour instead of ImageNet's.
    """
    mean, std = (torch.tensor(rgb).view(3, 1, 1, 1) for rgb in (IMAGENET_MEAN, IMAGENET_STD))
    kernel = state["stem.0.weight"]  # (width, 3, 1, 7, 7)
    state["stem.1.running_mean"] = state["stem.1.running_mean"] - (kernel * ((MEAN - mean) / std)).sum(dim=(1, 2, 3, 4))
    state["stem.0.weight"] = kernel * (STD / std)


def _format_names(names: Mapping[str, Any] | list[str]) -> str:
    """Join the first three names in sorted order, for an error message."""
    shown = ", ".join(sorted(names)[:3]) or "no weights"
    return f"{shown}, …" if len(names) > 3 else shown
