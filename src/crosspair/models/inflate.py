"""ImageNet's networks as the video encoder: 2D ResNets that get an extent in time.

The baseline of Sections 4.3 and 4.4. Kernels of 3 in time get the 2D kernel in their middle and
zeros around it, rather than a third of it at each instant: so the 3D network gives the mean of what
the 2D network gives for each frame, at a clip's ends too, where zeros stand for frames beyond. What
was learnt of images is there unchanged; frozen, it is the baseline of `crosspair.models.frames`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from crosspair.models.tensorfile import Weights
from crosspair.video.pixels import MEAN, STD

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of R, G, B


def in_time(
    flat: Weights, names: Mapping[str, str], expected: Mapping[str, torch.Tensor]
) -> Weights:
    """Weights of a network of images, with kernels that have the extent in time of ours.

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
