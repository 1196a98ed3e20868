"""Measure networks, objectives and whole training steps on a GPU, and the limits of the GPU.

    PYTHONPATH=src python -m benchmarks.cuda

Needs only PyTorch (2.11 or later) and NumPy, and takes less than 8 minutes. Prints tables and
writes all repeats as JSON to $OUT/cuda.json, or to benchmarks/results/cuda.json if OUT is not set.
A failed measurement is reported in its row, and the others still run. `--device cpu --tiny` runs
every line without a GPU; its figures are meaningless.
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
    """Run all measurements, write the JSON file and print tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=7.0, help="start no part later than this")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes; the figures are meaningless")
    parser.add_argument("--only", default="", metavar="TEXT", help="only parts whose name contains this")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU; use --device cpu --tiny to test the benchmark")
    scale = Scale(4, 64, 2, 16) if options.tiny else Scale()
    start = time.monotonic()
    rows: list[dict[str, Any]] = []
    facts = cuda_device.device_info(device)
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    for part, way, job in jobs(device, scale):
        if options.only not in part:
            continue
        out_of_time = time.monotonic() - start > 60 * options.minutes
        row = {"part": part, "way": way, **({"skipped": "no time left"} if out_of_time else run_job(job))}
        rows.append(row)
        print(f"{time.monotonic() - start:6.1f} s  {part} | {way} | {format_row(row)}", flush=True)
        write(facts, rows, options.tiny)
    print_tables(rows)


def jobs(device: torch.device, scale: Scale) -> Iterator[Job]:
    """Yield the measurements, most important first."""
    for dtype in ("bf16", "tf32", "fp32"):
        yield "matrix product", dtype, lambda d=dtype: cuda_device.matrix_rate(d, device, scale)
    for kind in ("within", "pinned", "not pinned"):
        yield "copy", kind, lambda k=kind: cuda_device.copy_rate(k, device, scale)
    for dtype in ("fp32", "bf16"):
        name = f"bank in {dtype}"
        yield ("kernel and reference", name, lambda d=dtype: cuda_objectives.compare_kernel(d, device))
    for mode, settings in MODES.items():
        yield (
            "synchronisations in a step",
            mode,
            lambda s=settings: cuda_objectives.check_synchronisation(s, device, scale),
        )
    yield from _network_jobs(50, device, scale)
    for copies in ("pinned", "not pinned", "on the device"):
        for depth in (50, 34):
            yield (
                f"whole step, ResNet-{depth}",
                f"clips {copies}",
                lambda d=depth, c=copies: cuda_objectives.training_step_rate(d, c, device, scale),
            )
    for pairs in (10**4, 10**5, 10**6, 10**7):
        for mode, settings in MODES.items():
            for kernel in (True, False) if "noise" in settings else (True,):
                copied = ", rows copied" if not kernel else ""
                yield (
                    f"objective, N = {pairs:,}",
                    mode + copied,
                    lambda s=settings, n=pairs // scale.shrink, k=kernel: cuda_objectives.objective_step(
                        s, n, k, device, scale
                    ),
                )
    yield from _network_jobs(34, device, scale, eager=True)
    yield from _network_jobs(18, device, scale, eager=True)


def _network_jobs(depth: Any, device: torch.device, scale: Scale, *, eager: bool = False) -> Iterator[Job]:
    for name, ways, rate in (
        ("training", cuda_networks.TRAINING, cuda_networks.training_rate),
        ("inference", cuda_networks.INFERENCE, cuda_networks.inference_rate),
    ):
        for way in ways:
            if way.mode == "eager" or not eager:  # each compilation takes a minute
                yield (f"{name}, ResNet-{depth}", way.name, lambda w=way, r=rate: r(depth, w, device, scale))


def run_job(job: Callable[[], Values]) -> Values:
    """Run a job; return its values, or the error message if it fails."""
    try:
        return job()
    except Exception as error:  # the other jobs still run
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    finally:
        torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def format_row(row: dict[str, Any]) -> str:
    """Format a row's values: medians with quartiles."""
    parts = []
    for name, value in row.items():
        if name in UNITS:
            low, middle, high = statistics.quantiles(value, n=4, method="inclusive")
            parts.append(f"{middle:.4g} {UNITS[name]} ({low:.4g} to {high:.4g})")
        elif name not in {"part", "way"}:
            shown = f"{value:.4g}" if isinstance(value, float) else value
            parts.append(f"{name.replace('_', ' ')}: {shown}")
    return ", ".join(parts)


def write(facts: Values, rows: list[dict[str, Any]], tiny: bool) -> None:
    """Write all measurements so far, with machine and versions."""
    folder = Path(os.environ.get("OUT", HERE / "results"))
    folder.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
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
    """Print the parts as Markdown, with ratios to the first way and to the device's matrix rate."""
    peak = next((_median(row) for row in rows if row["way"] == "bf16" and "tflops" in row), None)
    for part in dict.fromkeys(row["part"] for row in rows):
        part_rows = [row for row in rows if row["part"] == part]
        first = _median(part_rows[0])
        print(f"\n### {part}\n\n| way | measured | × the first | of the bf16 matrix rate |")
        print("|---|---|---:|---:|")
        for row in part_rows:
            value = _median(row)
            ratio = value / first if value and first else None
            if ratio and "ms" in row:
                ratio = 1 / ratio
            fraction = row["network_tflops"] / peak if peak and "network_tflops" in row else None
            print(
                f"| {row['way']} | {format_row(row)} | {f'{ratio:.2f}' if ratio else ''} | "
                f"{f'{fraction:.1%}' if fraction else ''} |"
            )


def _median(row: dict[str, Any]) -> float | None:
    values = next((row[name] for name in ("clips_per_second", *UNITS) if name in row), None)
    return statistics.median(values) if isinstance(values, list) else None


if __name__ == "__main__":
    main()
