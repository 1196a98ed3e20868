"""Where the time of a step goes: a trace of some steps for Perfetto, and a page that sums it up."""

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

FOLDER, TRACE, SUMMARY = "profile", "trace.json.gz", "summary.md"  # within the run's
WARM_UP, STEPS = 5, 20
PARTS = (
    "data wait", "copy", "forward", "objective", "backward", "optimiser", "bank", "logging",
    "validation", "checkpoint",
)  # fmt: skip
OPERATIONS = 10  # that the page names

Observer = Callable[[str], AbstractContextManager[Any]]

_observer: Observer | None = None  # of this process


def record_section(name: str) -> AbstractContextManager[Any]:
    """A context for one of `PARTS` of a step; it does nothing unless somebody observes them."""
    return nullcontext() if _observer is None else _observer(name)


@contextmanager
def observe_sections(observer: Observer) -> Iterator[None]:
    """Have every part of a step be within a context that ``observer`` makes of its name."""
    global _observer
    _observer = observer
    try:
        yield
    finally:
        _observer = None


def profile_steps(batches: Iterable[Batch], run: RunFolder, world: World) -> Iterable[Batch]:
    """The batches as they come, the steps made of them being profiled by the main process."""
    return StepProfiler(run.path, world.device).watch(batches) if world.is_main else batches


class StepProfiler:
    """Times the parts of `STEPS` steps, after `WARM_UP` others, and writes what it saw.

    Args:
        run: the run's folder; gets ``profile/trace.json.gz`` and ``profile/summary.md``.
        device: where the network computes. On a GPU times are the GPU's own: what it has not done
            yet when Python is past it counts where it is done.
    """

    def __init__(self, run: Path, device: torch.device) -> None:
        self.folder, self.device = run / FOLDER, device
        self.clips: list[int] = []  # of each step
        self._spans: list[tuple[str, Any, Any]] = []

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches as they come; what is done between two of them is a step.

        Raises:
            RunError: the profile cannot be written.
        """
        source = iter(batches)
        yield from islice(source, WARM_UP)
        with self._recording() as profiler:
            for _ in range(STEPS):
                with self.part("data wait"):
                    batch = next(source, None)
                if batch is None:
                    break
                self.clips.append(len(batch.rows))
                yield batch
        if self.clips:
            self._write(profiler)
        else:
            logger.warning("no profile: the training ended within %d steps", WARM_UP)
        yield from source

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """See the function of that name."""
        begun = self._moment()
        with record_function(name):
            yield
        self._spans.append((name, begun, self._moment()))

    @contextmanager
    def _recording(self) -> Iterator[torch_profile]:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it tells the terminal of itself
        on_gpu = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
        with torch_profile(activities=[ProfilerActivity.CPU, *on_gpu]) as profiler:
            self._begun = self._moment()
            with observe_sections(self.part):
                yield profiler
            self._ended = self._moment()

    def _moment(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _seconds(self, begun: Any, ended: Any) -> float:
        if self.device.type != "cuda":
            return float(ended - begun)
        ended.synchronize()
        return float(begun.elapsed_time(ended)) / 1000

    def _write(self, profiler: torch_profile) -> None:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / TRACE
            profiler.export_chrome_trace(str(made))
            write_atomically(self.folder / TRACE, made.read_bytes())
        write_atomically(self.folder / SUMMARY, self._page(profiler))
        logger.info("profile of %d steps: %s", len(self.clips), self.folder / SUMMARY)

    def _page(self, profiler: torch_profile) -> str:
        steps, whole = len(self.clips), self._seconds(self._begun, self._ended)
        of_parts: defaultdict[str, float] = defaultdict(float)
        for name, begun, ended in self._spans:
            of_parts[name] += self._seconds(begun, ended)
        rows = [(name, of_parts[name]) for name in PARTS if name in of_parts]
        rows += [("all else", whole - sum(of_parts.values())), ("a step", whole)]
        machine = provenance(recipe="", model="", manifest="", seed=0).machine
        where = machine.cpu if machine.device == "cpu" else machine.device
        lines = [
            "# Profile\n",
            f"{steps} steps, after {WARM_UP} others, of {sum(self.clips) / steps:g} clips on "
            f"{where} with {machine.cores} cores: {sum(self.clips) / whole:.1f} clips/s. Profiling "
            "has its own cost, and most where operations are small; the run's metrics.jsonl tells "
            "the speed without.\n",
            markdown_rows(("part", "ms a step", "share"), [
                (name, f"{1000 * seconds / steps:.2f}", f"{seconds / whole:.1%}")
                for name, seconds in rows
            ]),
            f"\nThe operations that took longest; all of them are in {TRACE}, which "
            "https://ui.perfetto.dev shows (it stays on your machine).\n",
            markdown_rows(("operation", "calls a step", "ms a step"), [
                (f"`{name}`", f"{calls / steps:g}", f"{1000 * seconds / steps:.2f}")
                for name, calls, seconds in self._operations(profiler)
            ]),
        ]  # fmt: skip
        return "\n".join(lines) + "\n"

    def _operations(self, profiler: torch_profile) -> list[tuple[str, int, float]]:
        """Name, calls and seconds of the operations that took longest, by their own time."""
        of = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        found = [
            (event.key, event.count, getattr(event, of) / 1e6)
            for event in profiler.key_averages()
            if event.key not in PARTS and event.device_type.name == "CPU"
        ]
        return sorted(found, key=lambda each: -each[2])[:OPERATIONS]
