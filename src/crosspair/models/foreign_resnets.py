"""Files of tensors that other projects wrote, read without running what may be in them."""

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

_STATES = ("state_dict", "model_state", "model")  # where a checkpoint keeps its network
_WRAPPERS = ("module.", "model.")  # before every name
_CODE = re.compile(r"GLOBAL (\S+)")  # how PyTorch names what it refuses


@dataclass(frozen=True)
class TensorFile:
    """What a file holds.

    Attributes:
        weights: tensors by name, without the names of wrappers around the network.
        settings: the texts beside them, which may tell by what configuration it was trained.
    """

    weights: Weights
    settings: str = ""


def read_tensors(file: str | Path) -> TensorFile:
    """Read ``.safetensors``, or a state dict of PyTorch, bare or within a checkpoint.

    Raises:
        ModelError: the file cannot be read, or holds what may run code when it is read.
    """
    path = Path(file)
    if not path.is_file():
        raise ModelError(f"weights {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return TensorFile(_unwrapped(load_file(path)))
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a file that is none PyTorch raises whatever it stumbles over
        if code := _CODE.search(str(error)):
            raise ModelError(
                f"{path} holds more than tensors ({code[1]}), which may run code when it is read, "
                "so it is refused; save its state dict alone, best as .safetensors"
            ) from error
        # Of what it did not write, PyTorch tells how to read it with whatever code it holds.
        told = isinstance(error, (OSError, EOFError, SafetensorError, RuntimeError))
        reason = " ".join(str(error).split())[:100] if told else "PyTorch did not write it"
        reason = reason or "it is empty or cut"
        raise ModelError(f"{path}: not a readable file of weights ({reason})") from error
    settings = "\n".join(_texts(found))
    for key in _STATES:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping):
        raise ModelError(f"{path}: holds {type(found).__name__}, not a state dict")
    return TensorFile(_unwrapped(found), settings)


def _unwrapped(found: Mapping[Any, Any]) -> Weights:
    weights = {str(n): value for n, value in found.items() if isinstance(value, torch.Tensor)}
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in weights):
            weights = {name.removeprefix(wrapper): value for name, value in weights.items()}
    return weights


def _texts(found: Any) -> Iterator[str]:
    if isinstance(found, str):
        yield found
    elif isinstance(found, Mapping):
        for value in found.values():
            yield from _texts(value)


_CPD_CLIP = ClipConfig(size=224, frames=8, stride=4)
_SLOW_CLIP = ClipConfig(size=224, frames=8, stride=8)


@dataclass(frozen=True)
class WeightLayout:
    """The names of one project.

    Attributes:
        project: what it is called in messages.
        prefix: before all names of the video encoder.
        stem: names of the first convolution and its normalisation.
        block: of a residual block, by ``stage`` (2 to 5, as in res2), ``layer`` (1 to 4) and
            ``index`` (from 0).
        parts: of a block, from our names to theirs; those that are the same are left out.
        beside: how the names begin that may stand beside the encoder's.
        clip: the form of clips, where the file itself does not tell.
        imagenet_pixels: whether it was trained on pixels normalised as ImageNet's usually are.
        flat: whether it is a network of images, whose kernels get an extent in time.
    """

    project: str
    prefix: str
    stem: tuple[str, str]
    block: str
    parts: dict[str, str]
    beside: tuple[str, ...]
    clip: ClipConfig = _SLOW_CLIP
    imagenet_pixels: bool = False
    flat: bool = False

    def theirs(self, ours: str) -> str:
        """Their name of a weight of our `ResNet3d`.

        >>> PYSLOWFAST.theirs("res4.0.shortcut.1.bias"), PYTORCHVIDEO.theirs("stem.0.weight")
        ('s4.pathway0_res0.branch1_bn.bias', 'blocks.0.conv.weight')
        """
        module, _, key = ours.rpartition(".")
        if found := re.fullmatch(r"res(\d)\.(\d+)\.(.+)", module):
            part = self.parts.get(found[3], found[3])
            return f"{self.prefix}{self._block(int(found[1]), int(found[2]))}.{part}.{key}"
        return f"{self.prefix}{self.stem[int(module.removeprefix('stem.'))]}.{key}"

    def blocks(self, names: set[str]) -> tuple[int, ...]:
        """How many blocks each of res2 to res5 has."""
        counts = []
        for stage in range(2, 6):
            count = 0
            while self.theirs(f"res{stage}.{count}.conv1.weight") in names:
                count += 1
            counts.append(count)
        return tuple(counts)

    def _block(self, stage: int, index: int) -> str:
        return self.block.format(stage=stage, layer=stage - 1, index=index)


AUTHORS = WeightLayout(
    "the authors' code", "visual_encoder.", ("conv1", "bn1"), "layer{layer}.{index}", {},
    ("vis_emb.", "text_emb.", "textual_encoder.", "vis_memory", "text_memory", "Z_v", "Z_t"),
    _CPD_CLIP,
)  # fmt: skip
AUTHORS_CLASSIFIER = WeightLayout(  # fine-tuned by their code
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
IMAGES = WeightLayout(  # torchvision's and timm's names
    "a 2D ResNet", "", ("conv1", "bn1"), "layer{layer}.{index}",
    {"shortcut.0": "downsample.0", "shortcut.1": "downsample.1"}, ("fc.",),
    ClipConfig(size=224), imagenet_pixels=True, flat=True,
)  # fmt: skip
LAYOUTS = (AUTHORS, AUTHORS_CLASSIFIER, PYSLOWFAST, PYTORCHVIDEO, MMACTION2, IMAGES)


def detect_layout(file: TensorFile) -> WeightLayout | None:
    """Whose names the weights have; none where nobody's."""
    for layout in LAYOUTS:
        stem = file.weights.get(layout.theirs("stem.0.weight"))
        if stem is not None and stem.dim() == (4 if layout.flat else 5):
            return layout
    return None


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of R, G, B

_BOTTLENECKS = 50  # from this depth on, blocks are bottlenecks
_COUNTER = "num_batches_tracked"  # older files lack it
_SHOWN = 3  # names in a message
# What a configuration says of networks that have the same weights and compute something else.
_OTHERWISE = {
    r"STRIDE_1X1: [Tt]rue": "strides in 1×1 convolutions (RESNET.STRIDE_1X1)",
    r"SPATIAL_DILATIONS:\s*(?:- - 1\s*)*- - [2-9]": "dilated convolutions",
    r"style='caffe'": "strides in 1×1 convolutions (style='caffe')",
}
_CLIP = {  # how configurations of PySlowFast and mmaction2 tell the form of clips
    "frames": r"\b(?:NUM_FRAMES: |clip_len=)(\d+)",
    "stride": r"\b(?:SAMPLING_RATE: |frame_interval=)(\d+)",
    "size": r"\bTRAIN_CROP_SIZE: (\d+)",
}


def inflate(file: str | Path, *, as_trained: bool = False) -> tuple[VideoConfig, Weights]:
    """Read a 2D ResNet's weights as those of the video encoder (baseline of Sections 4.3, 4.4).

    Args:
        file: ``.safetensors``, or a state dict of PyTorch, with the names that torchvision and timm
            share (``conv1.weight``, ``layer1.0.conv1.weight``, …). It is taken as trained on RGB
            images normalised as ImageNet's usually are.
        as_trained: leave it to the caller to give it such pixels; otherwise the difference to this
            package's normalisation goes into the first layer.

    Returns:
        See `read_encoder`.

    Raises:
        ModelError: the file cannot be read, holds code, or is no ResNet of a depth there is here.
    """
    path = Path(file)
    found = read_tensors(path)
    if detect_layout(found) is not IMAGES:
        some = ", ".join(sorted(found.weights)[:_SHOWN]) or "nothing"
        raise ModelError(
            f"{path}: no 2D ResNet: there is no conv1.weight of one among its weights ({some}, …)"
        )
    layout = dataclasses.replace(IMAGES, imagenet_pixels=not as_trained)
    return read_encoder(found, layout, path)


def read_encoder(file: TensorFile, layout: WeightLayout, path: Path) -> tuple[VideoConfig, Weights]:
    """Take the video encoder out of a file.

    Args:
        file: what was read.
        layout: whose names it has.
        path: of the file, for messages.

    Returns:
        The architecture, as read from names and shapes, and the state of its `ResNet3d`.

    Raises:
        ModelError: it is no slow-only 3D ResNet of a depth there is here, or computes otherwise.
    """
    for pattern, what in _OTHERWISE.items():
        if re.search(pattern, file.settings):
            raise ModelError(
                f"{path}: its configuration tells of {what}, which the video encoder has not"
            )
    video = _architecture(file.weights, layout, path)
    with torch.device("meta"):
        expected = ResNet3d(video.depth, video.width, video.shortcut).state_dict()
    what = f"as a slow-only ResNet-{video.depth} of width {video.width} of {layout.project}"
    names = {ours: layout.theirs(ours) for ours in expected}
    found = {n: value for n, value in file.weights.items() if not n.startswith(layout.beside)}
    if layout.flat:
        found = _in_time(found, names, expected)
    state = match_state_dict(expected, names, found, what, path)
    if layout.imagenet_pixels:
        _renormalize(state)
    return video, state


def clip_form(file: TensorFile, layout: WeightLayout) -> ClipConfig:
    """The form of clips that a network was trained on, as the file tells, or as is usual."""
    told: dict[str, Any] = {
        field: int(found[1])
        for field, pattern in _CLIP.items()
        if (found := re.search(pattern, file.settings))
    }
    return dataclasses.replace(layout.clip, **told)


def match_state_dict(
    expected: Mapping[str, torch.Tensor],
    names: Mapping[str, str],
    found: Mapping[str, torch.Tensor],
    what: str,
    path: Path,
) -> Weights:
    """A state of our names out of weights of theirs, all there and nothing left over.

    Args:
        expected: a state of the right shapes, whatever its values.
        names: from ours to theirs.
        found: their weights.
        what: they are taken for, as "as a …", for messages.
        path: of the file, for messages.

    Raises:
        ModelError: weights are missing, left over or of other shapes; they are named.
    """
    missing = [n for n in names.values() if n not in found and not n.endswith(_COUNTER)]
    left = sorted(set(found) - set(names.values()))
    for fault, of in (("lacks", missing), ("has besides", left)):
        if of:
            more = ", …" if len(of) > _SHOWN else ""
            raise ModelError(
                f"{path}: {what} it {fault} {len(of)} weights: {', '.join(of[:_SHOWN])}{more}"
            )
    state = {}
    for ours, theirs in names.items():
        value = found.get(theirs, torch.tensor(0))  # of all, older files lack only the counters
        if value.shape != expected[ours].shape:
            raise ModelError(
                f"{path}: {what} its {theirs} should be {tuple(expected[ours].shape)}, "
                f"and is {tuple(value.shape)}"
            )
        state[ours] = value.to(expected[ours].dtype)
    return state


def _architecture(weights: Weights, layout: WeightLayout, path: Path) -> VideoConfig:
    names = set(weights)
    counts = layout.blocks(names)
    bottlenecks = layout.theirs("res2.0.conv3.weight") in names
    projects = layout.theirs("res3.0.shortcut.0.weight") in names
    for depth, blocks in BLOCKS.items():
        if blocks == counts and (depth >= _BOTTLENECKS) == bottlenecks:
            width = len(weights[layout.theirs("stem.0.weight")])
            return VideoConfig(depth=depth, width=width, shortcut="B" if projects else "A")
    raise ModelError(
        f"{path}: of {layout.project}, a ResNet of {', '.join(map(str, counts))} "
        f"{'bottlenecks' if bottlenecks else 'basic blocks'}; the depths here are "
        f"{', '.join(map(str, BLOCKS))}"
    )


def _in_time(
    flat: Weights, names: Mapping[str, str], expected: Mapping[str, torch.Tensor]
) -> Weights:
    """Weights of a network of images, with kernels that have the extent in time of ours.

    They get the 2D kernel in their middle and zeros around it, rather than a third of it at each
    instant: so the 3D network gives the mean of what the 2D network gives for each frame, at a
    clip's ends too, where zeros stand for frames beyond. What was learnt of images is there
    unchanged; frozen, it is the baseline of `crosspair.models.init`.

    Args:
        flat: its weights.
        names: from ours to its.
        expected: a state of our names, of the right shapes.
    """
    deep = dict(flat)
    for ours, theirs in names.items():
        shape = expected[ours].shape  # (out, in, kt, kh, kw) of a kernel
        if theirs in flat and (flat[theirs].dim(), len(shape)) == (4, 5):
            kernel = flat[theirs]
            deep[theirs] = torch.zeros(*kernel.shape[:2], shape[2], *kernel.shape[2:])
            deep[theirs][:, :, shape[2] // 2] = kernel
    return deep


def _renormalize(state: Weights) -> None:
    """Let the first layer take pixels as this package normalises them.

    A pixel x here is (x STD + MEAN - mean) / std there: the factor goes into the kernel, the shift
    into the mean that batch normalisation takes off. (At the border, where zeros stand for pixels,
    the colour that they stand for is this package's.)
    """
    mean, std = (torch.tensor(each).view(3, 1, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    kernel = state["stem.0.weight"]  # (width, 3, 1, 7, 7)
    state["stem.1.running_mean"] = state["stem.1.running_mean"] - (
        kernel * ((MEAN - mean) / std)
    ).sum(dim=(1, 2, 3, 4))
    state["stem.0.weight"] = kernel * (STD / std)
