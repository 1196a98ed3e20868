"""The video network beside the common way: training and inference, and what the machine could do.

    python -m benchmarks.network [--rounds 4] [--scale 1]

ResNet-18 and -34 on 8 frames of 112×112 and ResNet-50 on 8 frames of 224×224, random weights and
clips in memory. A training step is forward, backward and SGD. The common way is 3D convolutions in
float32 and PyTorch's usual layout; between it and crosspair's stands what two changes give:
bfloat16 and channels_last_3d. Times are of the clock, on all cores, in turns. The machine's rate is
the larger of those of a large matrix product and of a large convolution. A network's share of it
counts the operations of its convolutions, and with them the zeros around small images, which
convolutions leave out: of a network that is as fast as the machine it is above 1.
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

from benchmarks.measuring import compared, print_comparison, rounds_of_turns, write_results
from crosspair.config import Depth, OptimizerConfig
from crosspair.isolation import cores
from crosspair.models import ResNet3d
from crosspair.models.inference import FoldedResNet3d
from crosspair.precision import autocast, dtype_for
from crosspair.training.optimizer import optimizer_of

RESULTS = Path(__file__).parent / "results" / "network.json"
NETWORKS: dict[Depth, tuple[int, int]] = {18: (112, 8), 34: (112, 8), 50: (224, 2)}
FRAMES = 8
BASE = "float32, 3D convolutions"
HALFWAY = "bfloat16, channels_last_3d"
OURS = "crosspair"
CPU = torch.device("cpu")
LAYOUT = torch.channels_last_3d
SGD = OptimizerConfig(lr=1e-3)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=4, help="in turns (default: 4)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the clips' sides (default: 1)")
    parser.add_argument("--depths", type=int, nargs="+", default=list(NETWORKS), metavar="DEPTH")
    parser.add_argument("--seed", type=int, default=0, help="of weights and clips (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(cores())
    torch.manual_seed(options.seed)
    rates = machine_rates(options.rounds, round(options.scale * 2048))
    settings = {"frames": FRAMES, "rounds": options.rounds, "scale": options.scale,
                "threads": torch.get_num_threads(), "GFLOP_per_s": rates}  # fmt: skip
    results: dict[str, Any] = {}
    for depth in options.depths:
        results[f"ResNet-{depth}"] = measured(depth, options.rounds, options.scale, rates)
        content = {"settings": settings, "results": results}
        write_results(options.out, content, seed=options.seed, packages=["torch"])


def machine_rates(rounds: int, size: int) -> dict[str, dict[str, float]]:
    """GFLOP/s of a matrix product and of a convolution, the best of some rounds, by format."""
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
            name: operations(job) / min(seconds_of(job) for _ in range(rounds + 1)) / 1e9
            for name, job in jobs.items()
        }
    for dtype_name, of in rates.items():
        told = ", ".join(f"{name} {rate:.0f}" for name, rate in of.items())
        Console().print(f"{dtype_name}, GFLOP/s: {told}")
    return rates


def measured(
    depth: Depth, rounds: int, scale: float, rates: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Both comparisons of a network, and its share of the machine's rate."""
    size, batch = NETWORKS[depth]
    size = round(size * scale)
    clips = torch.randn(batch, 3, FRAMES, size, size)
    common = ResNet3d(depth)
    halfway, ours = laid_out(common, LAYOUT), laid_out(common, LAYOUT)
    found: dict[str, Any] = {"size": size, "batch": batch}
    fast = clips.contiguous(memory_format=LAYOUT)
    trained = {
        BASE: training(common, clips, "fp32", usual_sgd(common)),
        HALFWAY: training(halfway, fast, "auto", usual_sgd(halfway)),
        OURS: training(ours, fast, "auto", optimizer_of({"rest": ours.parameters()}, SGD)),
    }
    used = {
        BASE: inferring(common, clips, "fp32"),
        HALFWAY: inferring(halfway, fast, "auto"),
        OURS: inferring(ours, fast, "auto", folded=True),
    }
    for doing, ways in (("training", trained), ("inference", used)):
        needed = operations(lambda run=ways[BASE]: run(None)) / batch
        times = compared(rounds_of_turns(ways, [None], rounds, time.perf_counter), BASE)
        peak = max(rates[str(dtype_for(CPU, "auto")).removeprefix("torch.")].values())
        rate = needed * batch / times[OURS]["ms"]["median"] / 1e6
        found[doing] = {
            "ways": times, "GFLOP_a_clip": needed / 1e9,
            "clips_per_s": {name: 1e3 * batch / way["ms"]["median"] for name, way in times.items()},
            "share_of_the_rate": rate / peak,
        }  # fmt: skip
        print_comparison(f"ResNet-{depth}, {batch} clips of {FRAMES}×{size}², {doing}", times)
        Console().print(f"{needed / 1e9:.1f} GFLOP a clip: {rate / peak:.0%} of the machine's rate")
    return found


def laid_out(network: ResNet3d, layout: torch.memory_format) -> ResNet3d:
    """The same network, its kernels in a layout."""
    copied = copy.deepcopy(network)
    for parameter in copied.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.contiguous(memory_format=layout)
    return copied


def usual_sgd(network: ResNet3d) -> torch.optim.SGD:
    """As most code has it."""
    return torch.optim.SGD(
        network.parameters(), SGD.lr, SGD.momentum, weight_decay=SGD.weight_decay
    )


def training(
    network: ResNet3d, clips: torch.Tensor, precision: str, optimizer: torch.optim.Optimizer
) -> Callable[[None], None]:
    """A step of training."""

    def step(_: None) -> None:
        network.train()
        with autocast(CPU, precision):
            features = network(clips)
        features.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inferring(
    network: ResNet3d, clips: torch.Tensor, precision: str, *, folded: bool = False
) -> Callable[[None], None]:
    """Inference; ``folded``: in crosspair's form for it, made once as for a whole corpus."""

    def run(_: None) -> None:
        network.eval()
        with torch.no_grad(), autocast(CPU, precision):
            network(clips)

    if folded and dtype_for(CPU, precision) == torch.bfloat16:
        network.eval().folded = FoldedResNet3d(network, torch.bfloat16)
    return run


def operations(job: Callable[[], object]) -> float:
    """Floating-point operations, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter:
        job()
    return float(counter.get_total_flops())


def seconds_of(job: Callable[[], object]) -> float:
    """Of the clock."""
    begun = time.perf_counter()
    job()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
