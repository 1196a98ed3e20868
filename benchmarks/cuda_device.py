"""The device that `benchmarks.cuda` measures: its rates, its memory, how time is taken on it."""

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
    """How large all is: as in the paper, or tiny, to see that every line runs."""

    width: int = 64  # of the networks
    matrix: int = 8192
    repeats: int = 5
    shrink: int = 1  # of sides, batches and banks


def facts(device: torch.device) -> Values:
    """The device, and the versions that its speed hangs on."""
    found: Values = {"torch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
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

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = None
    return found


def matrix_rate(dtype: str, device: torch.device, scale: Scale) -> Values:
    """TFLOP/s of one large matrix product of random values."""
    with arithmetic(dtype):
        kind = torch.bfloat16 if dtype == "bf16" else torch.float32
        a, b = torch.randn(2, scale.matrix, scale.matrix, device=device, dtype=kind)
        seconds = timed(lambda: a @ b, device, scale)
    return rates(2 * scale.matrix**3 / 1e12, seconds, "tflops")


def copy_rate(kind: str, device: torch.device, scale: Scale) -> Values:
    """GB/s within the device (bytes read and written), and from pinned and from other memory."""
    size = 2**30 // scale.shrink**2
    there = torch.empty(size, dtype=torch.uint8, device=device)
    source = torch.ones_like(there) if kind == "within" else torch.ones(size, dtype=torch.uint8)
    if kind == "pinned" and device.type == "cuda":
        source = source.pin_memory()
    seconds = timed(lambda: there.copy_(source, non_blocking=True), device, scale)
    return rates((2 if kind == "within" else 1) * size / 1e9, seconds, "gb_per_s")


def timed(
    step: Callable[[], object], device: torch.device, scale: Scale, together: int = 2
) -> list[float]:
    """Seconds of a step, several times, each the mean of ``together`` in a row."""
    for _ in range(2):
        step()
    found = []
    for _ in range(scale.repeats):
        finish(device)
        begun = time.perf_counter()
        for _ in range(together):
            step()
        finish(device)
        found.append((time.perf_counter() - begun) / together)
    return found


def rates(amount: float, seconds: list[float], unit: str) -> Values:
    return {unit: [amount / each for each in seconds]}


@contextmanager
def arithmetic(dtype: str) -> Iterator[None]:
    allowed = dtype == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory(device: torch.device, *, reset: bool) -> int:
    if device.type != "cuda":
        return 0
    if reset:
        gc.collect()
        torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except OSError:
        return "unknown"
