"""ImageNet's networks as the video encoder: 2D ResNets that get an extent in time.

The baseline of Sections 4.3 and 4.4. Kernels of 3 in time get the 2D kernel in their middle and
zeros around it, rather than a third of it at each instant: so the 3D network gives the mean of what
the 2D network gives for each frame, at a clip's ends too, where zeros stand for frames beyond. What
was learnt of images is there unchanged; frozen, it is the baseline of `crosspair.models.frames`.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from crosspair.config import VideoConfig
from crosspair.errors import ModelError
from crosspair.models.resnet3d import BLOCKS, ResNet3d
from crosspair.models.tensorfile import Weights, read_tensors
from crosspair.video.pixels import MEAN, STD

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of R, G, B
BOTTLENECKS = 50  # from this depth on, blocks are bottlenecks
COUNTER = "num_batches_tracked"  # older files lack it
_BLOCK = re.compile(r"layer(\d)\.(\d+)\.")
_NAMES = (("stem.0", "conv1"), ("stem.1", "bn1"), ("shortcut", "downsample"))
_SHOWN = 3  # names in a message


def inflate(file: str | Path, *, as_trained: bool = False) -> tuple[VideoConfig, Weights]:
    """Read a 2D ResNet's weights as those of the video encoder.

    Args:
        file: ``.safetensors``, or a state dict of PyTorch, with the names that torchvision and timm
            share (``conv1.weight``, ``layer1.0.conv1.weight``, …). It is taken as trained on RGB
            images normalised as ImageNet's usually are.
        as_trained: leave it to the caller to give it such pixels; otherwise the difference to this
            package's normalisation goes into the first layer.

    Returns:
        The architecture, as read from the shapes, and the state of its `ResNet3d`.

    Raises:
        ModelError: the file cannot be read, holds code, or is no ResNet of a depth there is here.
    """
    flat = read_tensors(file).weights
    video = _architecture(flat, file)
    with torch.device("meta"):
        expected = ResNet3d(video.depth, video.width, video.shortcut).state_dict()
    names = {ours: _theirs(ours) for ours in expected}
    missing = [n for n in names.values() if n not in flat and not n.endswith(COUNTER)]
    left = [n for n in flat if n not in names.values() and not n.startswith("fc.")]
    for what, found in (("lacks", missing), ("has besides", left)):
        if found:
            raise ModelError(
                f"{file}: as a ResNet-{video.depth} of width {video.width} it {what} "
                f"{len(found)} weights: {', '.join(found[:_SHOWN])}"
                + (", …" if len(found) > _SHOWN else "")
            )
    state = {
        ours: _inflated(flat.get(theirs, torch.tensor(0)), expected[ours].shape, theirs, file)
        for ours, theirs in names.items()
    }
    if not as_trained:
        renormalize(state)
    return video, state


def _architecture(flat: Weights, file: str | Path) -> VideoConfig:
    stem = flat.get("conv1.weight")
    blocks = {(int(m[1]), int(m[2])) for name in flat if (m := _BLOCK.match(name))}
    if stem is None or not blocks:
        some = ", ".join(sorted(flat)[:_SHOWN]) or "nothing"
        raise ModelError(
            f"{file}: no 2D ResNet: there is no {'conv1.weight' if stem is None else 'layer1.0'} "
            f"among its weights ({some}, …)"
        )
    counts = tuple(sum(layer == stage for layer, _ in blocks) for stage in (1, 2, 3, 4))
    bottlenecks = "layer1.0.conv3.weight" in flat
    for depth, blocks_of in BLOCKS.items():
        if blocks_of == counts and (depth >= BOTTLENECKS) == bottlenecks:
            return VideoConfig(depth=depth, width=len(stem))
    raise ModelError(
        f"{file}: a ResNet of {', '.join(map(str, counts))} "
        f"{'bottlenecks' if bottlenecks else 'basic blocks'}; the depths here are "
        f"{', '.join(map(str, BLOCKS))}"
    )


def _theirs(name: str) -> str:
    """Our name of a weight as torchvision and timm call it.

    >>> _theirs("res4.0.shortcut.1.bias"), _theirs("stem.0.weight")
    ('layer3.0.downsample.1.bias', 'conv1.weight')
    """
    for ours, theirs in _NAMES:
        name = name.replace(ours, theirs)
    return re.sub(r"^res(\d)", lambda found: f"layer{int(found[1]) - 1}", name)


def _inflated(value: torch.Tensor, shape: torch.Size, name: str, file: str | Path) -> torch.Tensor:
    expected = (*shape[:2], *shape[3:]) if len(shape) == 5 else tuple(shape)
    if tuple(value.shape) != expected:
        raise ModelError(f"{file}: {name} is {tuple(value.shape)}, expected {expected}")
    if len(shape) < 5:
        return value if name.endswith(COUNTER) else value.float()
    inflated = torch.zeros(shape)
    inflated[:, :, shape[2] // 2] = value  # (out, in, kt, kh, kw)
    return inflated


def renormalize(state: Weights) -> None:
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
