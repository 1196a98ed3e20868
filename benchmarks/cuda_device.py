"""Device information, peak rates, memory and timing for `benchmarks.cuda`."""

from __future__ import annotations

import gc
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Values = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """Sizes of the measurements: as in the paper, or tiny to test the benchmark."""

    width: int = 64  # of the networks
    matrix: int = 8192
    repeats: int = 5
    shrink: int = 1  # of sides, batches and banks


def device_info(device: torch.device) -> Values:
    """Return the device and the versions that affect its speed."""
    info: Values = {"torch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        info |= {
            "device": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "processors": properties.multi_processor_count,
            "capability": list(torch.cuda.get_device_capability(device)),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
        }
    try:
        import triton

        info["triton"] = triton.__version__
    except ImportError:
        info["triton"] = None
    return info


def matrix_rate(dtype: str, device: torch.device, scale: Scale) -> Values:
    """Measure the TFLOP/s of one large matrix product of random values."""
    with matmul_precision(dtype):
        kind = torch.bfloat16 if dtype == "bf16" else torch.float32
        a, b = torch.randn(2, scale.matrix, scale.matrix, device=device, dtype=kind)
        seconds = time_step(lambda: a @ b, device, scale)
    return to_rates(2 * scale.matrix**3 / 1e12, seconds, "tflops")


def copy_rate(kind: str, device: torch.device, scale: Scale) -> Values:
    """Measure GB/s of copies within the device, or from pinned or pageable host memory."""
    size = 2**30 // scale.shrink**2
    target = torch.empty(size, dtype=torch.uint8, device=device)
    source = torch.ones_like(target) if kind == "within" else torch.ones(size, dtype=torch.uint8)
    if kind == "pinned" and device.type == "cuda":
        source = source.pin_memory()
    seconds = time_step(lambda: target.copy_(source, non_blocking=True), device, scale)
    return to_rates((2 if kind == "within" else 1) * size / 1e9, seconds, "gb_per_s")


def time_step(step: Callable[[], object], device: torch.device, scale: Scale, together: int = 2) -> list[float]:
    """Time a step repeatedly. Each value is the mean of ``together`` consecutive steps, in s."""
    for _ in range(2):
        step()
    seconds = []
    for _ in range(scale.repeats):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(together):
            step()
        synchronize(device)
        seconds.append((time.perf_counter() - start) / together)
    return seconds


def to_rates(amount: float, seconds: list[float], unit: str) -> Values:
    return {unit: [amount / each for each in seconds]}


@contextmanager
def matmul_precision(dtype: str) -> Iterator[None]:
    allowed = dtype == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocated_memory(device: torch.device, *, reset: bool) -> int:
    if device.type != "cuda":
        return 0
    if reset:
        gc.collect()
        torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except OSError:
        return "unknown"
