"""Values on their way to the device that computes."""

from __future__ import annotations

import torch

from crosspair.errors import RecipeError


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values on ``device``, where its work goes on meanwhile.

    The host waits for nothing: a copy from memory that is not pinned would first let the device
    come to the end of all that it was told to do.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def dtype_for(device: torch.device, precision: str) -> torch.dtype:
    """The format of convolutions and matrix products.

    Args:
        device: where they are computed.
        precision: "bf16", "fp32", or "auto": bfloat16 where the processor has instructions for it.
    """
    if precision == "auto":
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which modules compute in the format of `dtype_for`."""
    dtype = dtype_for(device, precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def full_precision(device: torch.device) -> torch.autocast:
    """A context, within `autocast`, in which modules compute in the format of their weights."""
    return torch.autocast(device.type, enabled=False)


def check_frames(frames: int, device: torch.device, precision: str) -> None:
    """Refuse to train on clips for which oneDNN's gradient reads memory that nobody wrote.

    With 2 frames, bfloat16 and a kernel of 3 in time, the gradient of the kernel comes out as
    anything up to NaN, while the loss looks well; any other number of frames is right.

    Raises:
        RecipeError: these are such clips.
    """
    if frames == 2 and device.type == "cpu" and dtype_for(device, precision) == torch.bfloat16:
        raise RecipeError(
            "clip.frames is 2, for which this processor's gradients in bfloat16 are wrong; give "
            "another number, or training.precision=fp32"
        )


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    available: bool = torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return available
