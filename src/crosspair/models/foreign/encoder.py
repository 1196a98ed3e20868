"""The video encoder out of another project's file, by names and shapes, or refused by name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from crosspair.config import ClipConfig, VideoConfig
from crosspair.errors import ModelError
from crosspair.models.foreign.layout import IMAGES, Layout, layout_of
from crosspair.models.resnet3d import BLOCKS, ResNet3d
from crosspair.models.tensorfile import TensorFile, Weights, read_tensors
from crosspair.video.pixels import MEAN, STD

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
    if layout_of(found) is not IMAGES:
        some = ", ".join(sorted(found.weights)[:_SHOWN]) or "nothing"
        raise ModelError(
            f"{path}: no 2D ResNet: there is no conv1.weight of one among its weights ({some}, …)"
        )
    layout = dataclasses.replace(IMAGES, imagenet_pixels=not as_trained)
    return read_encoder(found, layout, path)


def read_encoder(file: TensorFile, layout: Layout, path: Path) -> tuple[VideoConfig, Weights]:
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
    state = fitted(expected, names, found, what, path)
    if layout.imagenet_pixels:
        _renormalize(state)
    return video, state


def clip_form(file: TensorFile, layout: Layout) -> ClipConfig:
    """The form of clips that a network was trained on, as the file tells, or as is usual."""
    told: dict[str, Any] = {
        field: int(found[1])
        for field, pattern in _CLIP.items()
        if (found := re.search(pattern, file.settings))
    }
    return dataclasses.replace(layout.clip, **told)


def fitted(
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


def _architecture(weights: Weights, layout: Layout, path: Path) -> VideoConfig:
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
    unchanged; frozen, it is the baseline of `crosspair.models.frames`.

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
