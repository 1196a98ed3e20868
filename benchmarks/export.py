"""Compare exported video towers with their PyTorch models: difference, size, latency.

    python -m benchmarks.export [--rounds 10] [--scale 1]

ResNet-18 on 8 frames of 112×112 and ResNet-50 on 8 frames of 224×224, random weights, one clip at
a time on one thread: PyTorch in float32, and in bfloat16 if the processor supports it; ONNX
Runtime; torch.export. The implementations run in turns; times are CPU seconds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import compare_times, print_comparison, run_in_turns, write_results
from crosspair.device import autocast, dtype_for
from crosspair.models import CPD, WordAverage
from crosspair.models.export import export
from crosspair.recipes import recipe_of

RESULTS = Path(__file__).parent / "results" / "export.json"
NETWORKS = {18: 112, 50: 224}  # depth: side of the clips in pixels
BASE = "PyTorch, float32"
CPU = torch.device("cpu")


def main() -> None:
    """Run the benchmark, print tables and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="repetitions (default: 10)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the clips' side (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and clips (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        f"ResNet-{depth}": benchmark_network(depth, round(options.scale * size), options)
        for depth, size in NETWORKS.items()
    }
    show(results)
    settings = {"rounds": options.rounds, "scale": options.scale, "frames": 8, "threads": 1}
    write_results(
        options.out, {"settings": settings, "results": results},
        seed=options.seed, packages=["torch", "onnx", "onnxruntime", "onnxscript"],
    )  # fmt: skip


def benchmark_network(depth: int, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Export a network and compare size, outputs and latency of the files."""
    recipe = recipe_of({"video.depth": depth, "clip.size": size})
    torch.manual_seed(options.seed)
    words = WordAverage(["video"], torch.zeros(1, 1))
    model = CPD(words, recipe.clip, recipe.video, recipe.text, recipe.head).eval()
    model.untrained = ("text_encoder", "text_head")  # only the video tower is exported
    clip = torch.randint(0, 256, (1, 3, 8, size, size), dtype=torch.uint8)
    ways: dict[str, Callable[[torch.Tensor], object]] = {BASE: torch_runner(model, "fp32")}
    if dtype_for(CPU, "auto") == torch.bfloat16:
        ways["PyTorch, bfloat16"] = torch_runner(model, "bf16")
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, form, suffix, load in (
            ("ONNX Runtime", "onnx", ".onnx", onnx_runner),
            ("torch.export", "torch", ".pt2", program_runner),
        ):
            (file,) = export(model, Path(folder) / f"model{suffix}", form)
            files[name] = {
                "MiB": file.path.stat().st_size / 2**20,
                "largest_difference": max(file.differences.values()),
            }
            ways[name] = load(file.path)
    seconds = run_in_turns(ways, [clip], options.rounds)
    return {"size": size, "files": files, "latency": compare_times(seconds, BASE)}


def torch_runner(model: CPD, precision: str) -> Callable[[torch.Tensor], object]:
    """Return a function that runs the PyTorch model."""

    def run(clip: torch.Tensor) -> object:
        with torch.inference_mode(), autocast(CPU, precision):
            return model.encode_video(clip)

    return run


def onnx_runner(path: Path) -> Callable[[torch.Tensor], object]:
    """Return a function that runs the ONNX file on one thread."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return lambda clip: session.run(None, {"clips": clip.numpy()})


def program_runner(path: Path) -> Callable[[torch.Tensor], object]:
    """Return a function that runs the torch.export file."""
    module = torch.export.load(path).module()

    def run(clip: torch.Tensor) -> object:
        with torch.inference_mode():
            return module(clip)

    return run


def show(results: dict[str, Any]) -> None:
    """Print file sizes, differences and latencies."""
    table = Table("network", "file", box=None, header_style="bold")
    for column in ("MiB", "largest difference"):
        table.add_column(column, justify="right")
    for network, result in results.items():
        for name, file in result["files"].items():
            table.add_row(network, name, f"{file['MiB']:.1f}", f"{file['largest_difference']:.1e}")
    Console().print(table)
    for network, result in results.items():
        size = result["size"]
        print_comparison(f"{network}, 8 frames of {size}×{size}", result["latency"])


if __name__ == "__main__":
    main()
