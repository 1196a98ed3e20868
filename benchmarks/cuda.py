"""What a GPU does: networks, objectives and whole training steps, beside what it can do at most.

    PYTHONPATH=src python -m benchmarks.cuda

Needs PyTorch (2.11 or later) and NumPy, nothing else; under 8 minutes. Prints tables, and writes
all repeats as JSON to $OUT/cuda.json, or to benchmarks/results/cuda.json where that is not set.
What fails is told in its row, and the rest goes on. `--device cpu --tiny` runs every line without
a GPU; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.bare import allow_absent_packages

ABSENT = allow_absent_packages()

from benchmarks import cuda_device, cuda_networks, cuda_objectives  # noqa: E402
from benchmarks.cuda_device import Scale, Values  # noqa: E402

HERE = Path(__file__).parent
Job = tuple[str, str, Callable[[], Values]]
UNITS = {
    "tflops": "TFLOP/s", "gb_per_s": "GB/s", "clips_per_second": "clips/s", "ms": "ms",
}  # fmt: skip
MODES: dict[str, Values] = {
    "NCE, noise of the batch": {},
    "NCE, noise of each pair": {"noise": "pair"},
    "softmax": {"estimate": "softmax"},
}


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=7.0, help="no part begins after them")
    parser.add_argument("--tiny", action="store_true", help="sizes that mean nothing")
    parser.add_argument("--only", default="", metavar="TEXT", help="parts with this in their name")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --device cpu --tiny shows that the rest works")
    scale = Scale(4, 64, 2, 16) if options.tiny else Scale()
    begun = time.monotonic()
    rows: list[dict[str, Any]] = []
    facts = cuda_device.facts(device)
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    for part, way, job in jobs(device, scale):
        if options.only not in part:
            continue
        late = time.monotonic() - begun > 60 * options.minutes
        row = {"part": part, "way": way, **({"left out": "no time left"} if late else done(job))}
        rows.append(row)
        print(f"{time.monotonic() - begun:6.1f} s  {part} | {way} | {told(row)}", flush=True)
        write(facts, rows, options.tiny)
    print_tables(rows)


def jobs(device: torch.device, scale: Scale) -> Iterator[Job]:
    """What is measured, the most wanted first."""
    for dtype in ("bf16", "tf32", "fp32"):
        yield "matrix product", dtype, lambda d=dtype: cuda_device.matrix_rate(d, device, scale)
    for kind in ("within", "pinned", "not pinned"):
        yield "copy", kind, lambda k=kind: cuda_device.copy_rate(k, device, scale)
    for dtype in ("fp32", "bf16"):
        name = f"bank in {dtype}"
        yield "kernel and twin", name, lambda d=dtype: cuda_objectives.kernel_equality(d, device)
    for mode, settings in MODES.items():
        yield (
            "waits of a step",
            mode,
            lambda s=settings: cuda_objectives.waits_of_a_step(s, device, scale),
        )
    yield from _of_networks(50, device, scale)
    for copies in ("pinned", "not pinned", "on the device"):
        for depth in (50, 34):
            yield (
                f"whole step, ResNet-{depth}",
                f"clips {copies}",
                lambda d=depth, c=copies: cuda_objectives.whole_step(d, c, device, scale),
            )
    for pairs in (10**4, 10**5, 10**6, 10**7):
        for mode, settings in MODES.items():
            for kernel in (True, False) if "noise" in settings else (True,):
                copied = ", rows copied" if not kernel else ""
                yield (
                    f"objective, N = {pairs:,}",
                    mode + copied,
                    lambda s=settings, n=pairs // scale.shrink, k=kernel: (
                        cuda_objectives.objective_step(s, n, k, device, scale)
                    ),
                )
    yield from _of_networks(34, device, scale, eager=True)
    yield from _of_networks(18, device, scale, eager=True)


def _of_networks(
    depth: Any, device: torch.device, scale: Scale, *, eager: bool = False
) -> Iterator[Job]:
    for name, ways, rate in (
        ("training", cuda_networks.TRAINING, cuda_networks.training_rate),
        ("inference", cuda_networks.INFERENCE, cuda_networks.inference_rate),
    ):
        for way in ways:
            if way.by == "eager" or not eager:  # compiling takes a minute each time
                yield (
                    f"{name}, ResNet-{depth}",
                    way.name,
                    lambda w=way, r=rate: r(depth, w, device, scale),
                )


def done(job: Callable[[], Values]) -> Values:
    """What a job found, or the first line of why it failed."""
    try:
        return job()
    except Exception as error:  # whatever it is: the rest is to be measured
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    finally:
        torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def told(row: dict[str, Any]) -> str:
    """A row's values in a few words: medians, with quartiles."""
    words = []
    for name, value in row.items():
        if name in UNITS:
            low, middle, high = statistics.quantiles(value, n=4, method="inclusive")
            words.append(f"{middle:.4g} {UNITS[name]} ({low:.4g} to {high:.4g})")
        elif name not in {"part", "way"}:
            shown = f"{value:.4g}" if isinstance(value, float) else value
            words.append(f"{name.replace('_', ' ')}: {shown}")
    return ", ".join(words)


def write(facts: Values, rows: list[dict[str, Any]], tiny: bool) -> None:
    """All that was measured so far, with what it hangs on."""
    folder = Path(os.environ.get("OUT", HERE / "results"))
    folder.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    content = {
        "machine": facts,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "absent": ABSENT,
        "rows": rows,
    }
    name = "cuda-tiny.json" if tiny else "cuda.json"
    (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def print_tables(rows: list[dict[str, Any]]) -> None:
    """The parts as Markdown, with ratios: to the first way, and to the device's matrix rate."""
    peak = next((_median(row) for row in rows if row["way"] == "bf16" and "tflops" in row), None)
    for part in dict.fromkeys(row["part"] for row in rows):
        of_part = [row for row in rows if row["part"] == part]
        first = _median(of_part[0])
        print(f"\n### {part}\n\n| way | measured | × the first | of the bf16 matrix rate |")
        print("|---|---|---:|---:|")
        for row in of_part:
            now = _median(row)
            ratio = now / first if now and first else None
            if ratio and "ms" in row:
                ratio = 1 / ratio
            share = row["network_tflops"] / peak if peak and "network_tflops" in row else None
            print(
                f"| {row['way']} | {told(row)} | {f'{ratio:.2f}' if ratio else ''} | "
                f"{f'{share:.1%}' if share else ''} |"
            )


def _median(row: dict[str, Any]) -> float | None:
    values = next((row[name] for name in ("clips_per_second", *UNITS) if name in row), None)
    return statistics.median(values) if isinstance(values, list) else None


if __name__ == "__main__":
    main()
