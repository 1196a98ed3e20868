"""Which number format a device computes in."""

from __future__ import annotations

import torch


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


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    available: bool = torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return available
