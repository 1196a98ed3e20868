"""Time the sections of training steps, and profile some steps: a trace for Perfetto and a summary page."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Self

import torch
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from crosspair.files import write_atomically
from crosspair.markdown import markdown_rows
from crosspair.provenance import current_machine
from crosspair.video.loader import Batch

logger = logging.getLogger(__name__)

FOLDER, TRACE, SUMMARY = "profile", "trace.json.gz", "summary.md"  # in the run folder
WARM_UP, STEPS = 5, 20
REST = "all else"
OPERATIONS = 10  # rows of the summary's second table

_timer: SectionTimer | None = None  # the active one of this process


def record_section(name: str) -> AbstractContextManager[None]:
    """Return a context for a section of a step, such as "forward", that an active `SectionTimer` times."""
    return nullcontext() if _timer is None else _timer.record(name)


class SectionTimer:
    """Add up the time of each section of a step inside a ``with`` block.

    Args:
        device: device of the network. On a GPU, times are between CUDA events: asynchronous work
            counts in the section that launched it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._spans: list[tuple[str, Any, Any]] = []  # name, begin, end

    def __enter__(self) -> Self:
        global _timer
        _timer, self._begin = self, self._timestamp()
        return self

    def __exit__(self, *_: object) -> None:
        global _timer
        _timer, self._end = None, self._timestamp()

    @contextmanager
    def record(self, name: str) -> Iterator[None]:
        """Record the block as a section, also in the trace of an active profiler."""
        begin = self._timestamp()
        with record_function(name):
            yield
        self._spans.append((name, begin, self._timestamp()))

    def milliseconds(self, steps: int) -> dict[str, float]:
        """Return the mean time of each section, and of the `REST` outside them, in ms per step; waits for the GPU."""
        sums: defaultdict[str, float] = defaultdict(float)
        for name, begin, end in self._spans:
            sums[name] += self._difference(begin, end)
        sums[REST] = self._difference(self._begin, self._end) - sum(sums.values())
        return {name: value / steps for name, value in sums.items()}

    def _timestamp(self) -> Any:
        """Return the time in seconds on a CPU, or a recorded CUDA event on a GPU."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _difference(self, begin: Any, end: Any) -> float:
        if self.device.type != "cuda":
            return 1000 * float(end - begin)
        end.synchronize()
        return float(begin.elapsed_time(end))


def profile_steps(batches: Iterable[Batch], run: Path, device: torch.device) -> Iterator[Batch]:
    """Pass on the batches, and profile the caller's work on `STEPS` of them (a step each) after `WARM_UP`.

    Writes ``profile/trace.json.gz`` and ``profile/summary.md`` to the run folder.

    Raises:
        RunError: the profile cannot be written.
    """
    source = iter(batches)
    yield from islice(source, WARM_UP)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no messages on the terminal
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    clips = []  # of each step
    with torch_profile(activities=activities) as profiler, SectionTimer(device) as timer:
        for _ in range(STEPS):
            with timer.record("data wait"):
                batch = next(source, None)
            if batch is None:
                break
            clips.append(len(batch.rows))
            yield batch
    if clips:
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / TRACE
            profiler.export_chrome_trace(str(trace))
            write_atomically(run / FOLDER / TRACE, trace.read_bytes())
        write_atomically(run / FOLDER / SUMMARY, _summary(timer.milliseconds(len(clips)), clips, profiler, device))
        logger.info("profile of %d steps: %s", len(clips), run / FOLDER / SUMMARY)
    else:
        logger.warning("no profile: the training ended within %d steps", WARM_UP)
    yield from source


def section_rows(milliseconds: dict[str, float]) -> list[tuple[str, str, str]]:
    """Format the result of `SectionTimer.milliseconds`: section, ms, fraction of the total, which is the last row."""
    total = sum(milliseconds.values())
    rows = {**milliseconds, "total": total}
    return [(name, f"{value:.2f}", f"{value / total:.1%}") for name, value in rows.items()]


def _summary(milliseconds: dict[str, float], clips: list[int], profiler: torch_profile, device: torch.device) -> str:
    """Return Markdown: ms per step of each section and of the slowest operations."""
    steps, rate = len(clips), 1000 * sum(clips) / len(clips) / sum(milliseconds.values())
    # Without nested operations.
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    operations = [
        event for event in profiler.key_averages() if event.key not in milliseconds and event.device_type.name == "CPU"
    ]
    slowest = sorted(operations, key=lambda event: -getattr(event, key))[:OPERATIONS]
    return "\n".join([
        "# Profile\n",
        f"{steps} steps after {WARM_UP} warm-up steps, {sum(clips) / steps:g} clips per step, on "
        f"{current_machine()}: {rate:.1f} clips/s. The profiler slows steps down, most of all those with "
        "many small operations; metrics.jsonl has the speed without it.\n",
        markdown_rows(("part", "ms per step", "fraction"), section_rows(milliseconds)),
        f"\nThe slowest operations. {TRACE} contains all of them; open it in https://ui.perfetto.dev (it stays on "
        "your machine).\n",
        markdown_rows(("operation", "calls per step", "ms per step"), [
            (f"`{event.key}`", f"{event.count / steps:g}", f"{getattr(event, key) / 1000 / steps:.2f}")
            for event in slowest
        ]),
        "",
    ])  # fmt: skip
