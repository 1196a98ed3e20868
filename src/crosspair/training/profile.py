"""Profiling of training steps: a trace for Perfetto and a summary page."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from crosspair.distributed import World
from crosspair.files import write_atomically
from crosspair.markdown import markdown_rows
from crosspair.provenance import provenance
from crosspair.training.run import RunFolder
from crosspair.video.loader import Batch

logger = logging.getLogger(__name__)

FOLDER, TRACE, SUMMARY = "profile", "trace.json.gz", "summary.md"  # in the run folder
WARM_UP, STEPS = 5, 20
SECTIONS = (
    "data wait", "copy", "forward", "objective", "backward", "optimiser", "bank", "logging",
    "validation", "checkpoint",
)  # fmt: skip
OPERATIONS = 10  # rows of the summary's second table

Observer = Callable[[str], AbstractContextManager[Any]]

_observer: Observer | None = None  # of this process


def record_section(name: str) -> AbstractContextManager[Any]:
    """Return a context for one of `SECTIONS` of a step; a null context without an observer."""
    return nullcontext() if _observer is None else _observer(name)


@contextmanager
def observe_sections(observer: Observer) -> Iterator[None]:
    """Run every section of a step in the context that ``observer`` returns for its name."""
    global _observer
    _observer = observer
    try:
        yield
    finally:
        _observer = None


def profile_steps(batches: Iterable[Batch], run: RunFolder, world: World) -> Iterable[Batch]:
    """Pass on the batches and profile their steps in the main process."""
    return StepProfiler(run.path, world.device).profile(batches) if world.is_main else batches


class StepProfiler:
    """Profiles `STEPS` steps after `WARM_UP` steps.

    Args:
        run: run folder; receives ``profile/trace.json.gz`` and ``profile/summary.md``.
        device: device of the network. On a GPU, times are GPU times between CUDA events:
            asynchronous work counts in the section that launched it.
    """

    def __init__(self, run: Path, device: torch.device) -> None:
        self.folder, self.device = run / FOLDER, device
        self._clips: list[int] = []  # of each step
        self._spans: list[tuple[str, Any, Any]] = []  # name, begin, end

    def profile(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass on the batches, profile the caller's work on each (a step) and write trace and summary.

        Raises:
            RunError: the profile cannot be written.
        """
        source = iter(batches)
        yield from islice(source, WARM_UP)
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no messages on the terminal
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with torch_profile(activities=activities) as profiler:
            begin = self._timestamp()
            with observe_sections(self._section):
                for _ in range(STEPS):
                    with self._section("data wait"):
                        batch = next(source, None)
                    if batch is None:
                        break
                    self._clips.append(len(batch.rows))
                    yield batch
            end = self._timestamp()
        if self._clips:
            with tempfile.TemporaryDirectory() as folder:
                trace = Path(folder) / TRACE
                profiler.export_chrome_trace(str(trace))
                write_atomically(self.folder / TRACE, trace.read_bytes())
            summary = self._summary(profiler, self._seconds(begin, end))
            write_atomically(self.folder / SUMMARY, summary)
            logger.info("profile of %d steps: %s", len(self._clips), self.folder / SUMMARY)
        else:
            logger.warning("no profile: the training ended within %d steps", WARM_UP)
        yield from source

    @contextmanager
    def _section(self, name: str) -> Iterator[None]:
        """Record begin and end of the context under a name, for the summary and in the trace."""
        begin = self._timestamp()
        with record_function(name):
            yield
        self._spans.append((name, begin, self._timestamp()))

    def _timestamp(self) -> Any:
        """Return the time in seconds on a CPU, or a recorded CUDA event on a GPU; see `_seconds`."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _seconds(self, begin: Any, end: Any) -> float:
        """Return the seconds between two results of `_timestamp`; waits for the GPU."""
        if self.device.type != "cuda":
            return float(end - begin)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000

    def _summary(self, profiler: torch_profile, total: float) -> str:
        """Return Markdown: ms per step of each section and operation; ``total`` is in seconds."""
        steps = len(self._clips)
        seconds: defaultdict[str, float] = defaultdict(float)
        for name, begin, end in self._spans:
            seconds[name] += self._seconds(begin, end)
        rows = [(name, seconds[name]) for name in SECTIONS if name in seconds]
        rows += [("all else", total - sum(seconds.values())), ("total", total)]
        machine = provenance(recipe="", model="", manifest="", seed=0).machine
        return "\n".join([
            "# Profile\n",
            f"{steps} steps after {WARM_UP} warm-up steps, {sum(self._clips) / steps:g} clips per "
            f"step, on {machine.cpu if machine.device == 'cpu' else machine.device} with "
            f"{machine.cores} cores: {sum(self._clips) / total:.1f} clips/s. The profiler slows "
            "steps down, most of all those with many small operations; metrics.jsonl has the "
            "speed without it.\n",
            markdown_rows(("part", "ms per step", "fraction"), [
                (name, f"{1000 * value / steps:.2f}", f"{value / total:.1%}")
                for name, value in rows
            ]),
            f"\nThe slowest operations. {TRACE} contains all of them; open it in "
            "https://ui.perfetto.dev (it stays on your machine).\n",
            markdown_rows(("operation", "calls per step", "ms per step"), [
                (f"`{name}`", f"{calls / steps:g}", f"{1000 * value / steps:.2f}")
                for name, calls, value in self._slowest_operations(profiler)
            ]),
        ]) + "\n"  # fmt: skip

    def _slowest_operations(self, profiler: torch_profile) -> list[tuple[str, int, float]]:
        """Return name, calls and seconds (without nested operations) of the `OPERATIONS` slowest, sorted."""
        key = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        operations = [
            (event.key, event.count, getattr(event, key) / 1e6)
            for event in profiler.key_averages()
            if event.key not in SECTIONS and event.device_type.name == "CPU"
        ]
        return sorted(operations, key=lambda each: -each[2])[:OPERATIONS]
