"""How much memory steps and workers take: a GPU's own count, or what Linux tells of processes."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

MUCH = 0.9  # of all memory, that a plan may take


class Memory:
    """Peak memory of a process that trains.

    Args:
        device: where it computes; on a GPU the GPU's memory is looked at.

    Attributes:
        peak: highest of all `end`, bytes.
        available: bytes that may be taken.
        of_a_worker: bytes of the largest worker, shared pages by their share; 0 where the system
            does not tell.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak, self.of_a_worker = 0, 0
        self.available = int(MUCH * self._all())

    def begin(self) -> None:
        """From here on peaks count."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):  # elsewhere the peak is that of the whole life of the process
                Path("/proc/self/clear_refs").write_text("5")

    def end(self) -> int:
        """The peak since `begin`."""
        if self.device.type == "cuda":
            now = int(torch.cuda.max_memory_allocated(self.device))
        else:
            now = _told("/proc/self/status", "VmHWM") or _of_the_whole_life()
        self.peak = max(self.peak, now)
        return now

    def look_at_workers(self) -> None:
        """Take in what the processes that this one has started hold."""
        for worker in multiprocessing.active_children():
            held = _told(f"/proc/{worker.pid}/smaps_rollup", "Pss")
            self.of_a_worker = max(self.of_a_worker, held)

    def _all(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.get_device_properties(self.device).total_memory)
        with suppress(ValueError, OSError):
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return sys.maxsize


def _told(file: str, name: str) -> int:
    """A line of one of Linux's files about processes, in bytes; 0 where there is none."""
    with suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(file).read_text(), re.MULTILINE)
        if found:
            return 1024 * int(found[1])
    return 0


def _of_the_whole_life() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
