"""Devices and number formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from crosspair.errors import ModelError, RecipeError, format_error

PRECISIONS = ("auto", "bf16", "fp32")


def resolve_device(name: str) -> torch.device:
    """Return a device by name, with "auto" for the first GPU or the CPU; raise ModelError if it is not available."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {name!r} is not available: {format_error(error)}") from error


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy ``values`` to ``device`` without blocking the host.

    CPU tensors are pinned first, since a copy from pageable memory would synchronise with the
    device.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def dtype_for(device: torch.device, precision: str) -> torch.dtype:
    """Return the dtype of convolutions and matrix products.

    Args:
        device: on which they are computed.
        precision: "bf16", "fp32" or "auto" (bfloat16 if the device has instructions for it).

    Raises:
        RecipeError: the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise RecipeError(f"precision {precision!r} must be one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        return torch.bfloat16 if _supports_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context in which modules compute in the dtype of `dtype_for`."""
    dtype = dtype_for(device, precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def full_precision(device: torch.device) -> torch.autocast:
    """Return a context that disables an enclosing `autocast`."""
    return torch.autocast(device.type, enabled=False)


def check_frames(frames: int, device: torch.device, precision: str) -> None:
    """Reject the clip length for which oneDNN's gradient reads uninitialised memory.

    With 2 frames, bfloat16 and a temporal kernel of 3, the gradient of the kernel is arbitrary, up
    to NaN, although the loss is correct. All other lengths are correct.

    Raises:
        RecipeError: ``frames`` is 2, and the CPU computes in bfloat16.
    """
    if frames == 2 and device.type == "cpu" and dtype_for(device, precision) == torch.bfloat16:
        raise RecipeError(
            "clip.frames is 2, for which bfloat16 gradients on the CPU are wrong; set another "
            "number, or training.precision=fp32"
        )


def _supports_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    available: bool = torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return available


def get_rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of torch's default generators of the CPU and of a device."""
    state = {"rng": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda_rng"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(device: torch.device, state: Mapping[str, Any]) -> None:
    """Restore `get_rng_state`; the state may be that of another kind of device."""
    torch.set_rng_state(state["rng"])
    if device.type == "cuda" and "cuda_rng" in state:
        torch.cuda.set_rng_state(state["cuda_rng"])
