"""Values on their way to the device that computes."""

from __future__ import annotations

import torch


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values on ``device``, where its work goes on meanwhile.

    The host waits for nothing: a copy from memory that is not pinned would first let the device
    come to the end of all that it was told to do.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
