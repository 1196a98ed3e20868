"""Time training and inference of the video network, compared with the common way and the machine.

    python -m benchmarks.network [--rounds 4] [--scale 1]

ResNet-18 and -34 on 8 frames of 112×112 and ResNet-50 on 8 frames of 224×224, random weights and
clips in memory. A training step is forward, backward and SGD. The common way is 3D convolutions in
float32 and contiguous layout. An intermediate way adds only bfloat16 and channels_last_3d. The ways
run in turns; times are wall-clock, on all cores. The machine's rate is the larger of those of a
large matrix product and of a large convolution. The fraction of the rate counts the operations of
the convolutions, including the zero padding that convolutions skip, so it can exceed 1.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import compare_times, print_comparison, run_in_turns, write_results
from crosspair.config import Depth, OptimizerConfig
from crosspair.device import autocast, dtype_for
from crosspair.models import ResNet3d
from crosspair.models.resnet3d import FoldedResNet3d
from crosspair.training.schedule import build_grouped_optimizer
from crosspair.workers import cpu_count

RESULTS = Path(__file__).parent / "results" / "network.json"
NETWORKS: dict[Depth, tuple[int, int]] = {18: (112, 8), 34: (112, 8), 50: (224, 2)}
FRAMES = 8
BASE = "float32, 3D convolutions"
INTERMEDIATE = "bfloat16, channels_last_3d"
OURS = "crosspair"
CPU = torch.device("cpu")
LAYOUT = torch.channels_last_3d
SGD = OptimizerConfig(lr=1e-3)


def main() -> None:
    """Run the benchmark, print tables and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=4, help="repetitions (default: 4)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the clips' side (default: 1)")
    parser.add_argument("--depths", type=int, nargs="+", default=list(NETWORKS), metavar="DEPTH")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and clips (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(cpu_count())
    torch.manual_seed(options.seed)
    rates = machine_rates(options.rounds, round(options.scale * 2048))
    settings = {"frames": FRAMES, "rounds": options.rounds, "scale": options.scale,
                "threads": torch.get_num_threads(), "GFLOP_per_s": rates}  # fmt: skip
    results: dict[str, Any] = {}
    for depth in options.depths:
        results[f"ResNet-{depth}"] = benchmark_network(depth, options.rounds, options.scale, rates)
        content = {"settings": settings, "results": results}
        write_results(options.out, content, seed=options.seed, packages=["torch"])


def machine_rates(rounds: int, size: int) -> dict[str, dict[str, float]]:
    """Measure the best GFLOP/s of a matrix product and of a convolution, by number format."""
    rates: dict[str, dict[str, float]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.randn(size, size).to(dtype)
        images = torch.randn(64, 256, size // 64, size // 64).to(dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        kernel = torch.randn(256, 256, 3, 3).to(dtype)
        jobs: dict[str, Callable[[], torch.Tensor]] = {
            "matrix product": lambda square=square: square @ square,
            "convolution": lambda images=images, kernel=kernel: F.conv2d(images, kernel, padding=1),
        }
        rates[str(dtype).removeprefix("torch.")] = {
            name: count_flops(job) / min(time_call(job) for _ in range(rounds + 1)) / 1e9 for name, job in jobs.items()
        }
    for dtype_name, dtype_rates in rates.items():
        line = ", ".join(f"{name} {rate:.0f}" for name, rate in dtype_rates.items())
        Console().print(f"{dtype_name}, GFLOP/s: {line}")
    return rates


def benchmark_network(depth: Depth, rounds: int, scale: float, rates: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Compare training and inference of a network, and relate them to the machine's rate."""
    size, batch = NETWORKS[depth]
    size = round(size * scale)
    clips = torch.randn(batch, 3, FRAMES, size, size)
    common = ResNet3d(depth)
    intermediate, ours = copy_with_layout(common, LAYOUT), copy_with_layout(common, LAYOUT)
    results: dict[str, Any] = {"size": size, "batch": batch}
    fast = clips.contiguous(memory_format=LAYOUT)
    training_ways = {
        BASE: training_step(common, clips, "fp32", plain_sgd(common)),
        INTERMEDIATE: training_step(intermediate, fast, "auto", plain_sgd(intermediate)),
        OURS: training_step(ours, fast, "auto", build_grouped_optimizer({"rest": ours.parameters()}, SGD)),
    }
    inference_ways = {
        BASE: inference_step(common, clips, "fp32"),
        INTERMEDIATE: inference_step(intermediate, fast, "auto"),
        OURS: inference_step(ours, fast, "auto", folded=True),
    }
    for mode, ways in (("training", training_ways), ("inference", inference_ways)):
        flops = count_flops(lambda run=ways[BASE]: run(None)) / batch
        times = compare_times(run_in_turns(ways, [None], rounds, time.perf_counter), BASE)
        peak = max(rates[str(dtype_for(CPU, "auto")).removeprefix("torch.")].values())
        rate = flops * batch / times[OURS]["ms"]["median"] / 1e6
        results[mode] = {
            "ways": times, "GFLOP_a_clip": flops / 1e9,
            "clips_per_s": {name: 1e3 * batch / way["ms"]["median"] for name, way in times.items()},
            "share_of_the_rate": rate / peak,
        }  # fmt: skip
        print_comparison(f"ResNet-{depth}, {batch} clips of {FRAMES}×{size}², {mode}", times)
        Console().print(f"{flops / 1e9:.1f} GFLOP per clip: {rate / peak:.0%} of the machine's rate")
    return results


def copy_with_layout(network: ResNet3d, layout: torch.memory_format) -> ResNet3d:
    """Copy a network with its kernels in the given memory format."""
    result = copy.deepcopy(network)
    for parameter in result.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.contiguous(memory_format=layout)
    return result


def plain_sgd(network: ResNet3d) -> torch.optim.SGD:
    """Return PyTorch's default, unfused SGD."""
    return torch.optim.SGD(network.parameters(), SGD.lr, SGD.momentum, weight_decay=SGD.weight_decay)


def training_step(
    network: ResNet3d, clips: torch.Tensor, precision: str, optimizer: torch.optim.Optimizer
) -> Callable[[None], None]:
    """Return a function that runs a training step."""

    def step(_: None) -> None:
        network.train()
        with autocast(CPU, precision):
            features = network(clips)
        features.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference_step(
    network: ResNet3d, clips: torch.Tensor, precision: str, *, folded: bool = False
) -> Callable[[None], None]:
    """Return a function that runs inference; ``folded`` uses crosspair's fused network."""

    def run(_: None) -> None:
        network.eval()
        with torch.no_grad(), autocast(CPU, precision):
            network(clips)

    if folded and dtype_for(CPU, precision) == torch.bfloat16:
        network.eval().folded = FoldedResNet3d(network, torch.bfloat16)
    return run


def count_flops(job: Callable[[], object]) -> float:
    """Count floating-point operations; a multiply-add counts as two."""
    with FlopCounterMode(display=False) as counter:
        job()
    return float(counter.get_total_flops())


def time_call(job: Callable[[], object]) -> float:
    """Return the wall-clock seconds of a call."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
