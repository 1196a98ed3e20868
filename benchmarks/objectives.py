"""Time and memory of a step of each objective, compared with the authors' way, by number of pairs.

    python -m benchmarks.objectives [--pairs 10000 210000 …]

A step is the loss of 64 pairs in 256 dimensions with 4,096 noise samples, its gradient with respect
to both embeddings, and the update of the memory bank. At 210,000 pairs (Kinetics-210k), all other
objectives and the paper's batch size of 256 are measured too. The authors' way gathers separate
noise rows of both banks for each pair, (B, m + 1, D) values each. The ways run in turns; times are
wall-clock, on all cores. Memory is the peak of a step, excluding the bank. Banks that do not fit
into the free memory are skipped; banks of ten million pairs are in bfloat16.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.measuring import compare_times, run_in_turns, write_results
from crosspair import objectives
from crosspair.config import ObjectiveConfig
from crosspair.distributed import World
from crosspair.objectives import MemoryBank
from crosspair.workers import cpu_count

RESULTS = Path(__file__).parent / "results" / "objectives.json"
PAIRS = (10_000, 210_000, 1_000_000, 10_000_000)
ALL_AT = 210_000  # pairs of Kinetics-210k; every objective is measured at this size
BF16_FROM = 5_000_000  # pairs from which banks are stored in bfloat16
BATCH, PAPER_BATCH, DIMENSIONS = 64, 256, 256
BASE = "authors' way: rows of each pair gathered"
CROSS_PAIR = {
    "cross-pair, NCE, noise of each pair": ObjectiveConfig(noise="pair"),
    "cross-pair, NCE, noise of the batch": ObjectiveConfig(),
    "cross-pair, exact softmax": ObjectiveConfig(estimate="softmax"),
}
OTHERS = {
    "self-instance, NCE, noise of each pair": ObjectiveConfig(name="self_instance", noise="pair"),
    "self-instance, NCE, noise of the batch": ObjectiveConfig(name="self_instance"),
    "self-instance, exact softmax": ObjectiveConfig(name="self_instance", estimate="softmax"),
    "self-instance, learned classes, NCE": ObjectiveConfig(name="self_instance", instances="weights"),
    "self-instance, learned classes, exact softmax": ObjectiveConfig(
        name="self_instance", instances="weights", estimate="softmax"
    ),
    "in batch": ObjectiveConfig(name="in_batch"),
    "ranking": ObjectiveConfig(name="ranking"),
}
Step = Callable[[Any], None]


def main() -> None:
    """Run the benchmark, print tables and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=PAIRS, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(cpu_count())
    settings = {
        "dimensions": DIMENSIONS, "noise_samples": ObjectiveConfig.noise_samples,
        "rounds": options.rounds, "threads": torch.get_num_threads(),
    }  # fmt: skip
    results: dict[str, Any] = {}
    for pairs in options.pairs:
        dtype = torch.bfloat16 if pairs >= BF16_FROM else torch.float32
        needed = 2 * pairs * DIMENSIONS * dtype.itemsize
        if needed > 0.9 * free_memory():
            Console().print(f"skipping {pairs:,} pairs: the bank needs {needed / 2**30:.1f} GiB")
            continue
        results[str(pairs)] = benchmark_objectives(pairs, BATCH, dtype, options.rounds, options.seed)
        if pairs == ALL_AT:
            results[f"{pairs} in batches of {PAPER_BATCH}"] = benchmark_objectives(
                pairs, PAPER_BATCH, dtype, options.rounds, options.seed
            )
        content = {"settings": settings, "results": results}
        write_results(options.out, content, seed=options.seed, packages=["torch"])


def benchmark_objectives(pairs: int, batch: int, dtype: torch.dtype, rounds: int, seed: int) -> dict[str, Any]:
    """Measure time and memory of all ways for a number of pairs."""
    bank = MemoryBank(pairs, DIMENSIONS, ObjectiveConfig.bank_momentum, seed, World(), dtype)
    generator = torch.Generator().manual_seed(seed)
    embeddings = F.normalize(torch.randn(2, batch, DIMENSIONS, generator=generator), dim=2)
    index = torch.randperm(pairs, generator=generator)[:batch]
    configs = CROSS_PAIR | (OTHERS if (pairs, batch) == (ALL_AT, BATCH) else {})
    ways: dict[str, Step] = {BASE: authors_step(bank, embeddings, index)} | {
        name: our_step(config, bank, embeddings, index, seed) for name, config in configs.items()
    }
    times = compare_times(run_in_turns(ways, [None], rounds, time.perf_counter), BASE)
    memory = {name: peak_memory(way) for name, way in ways.items()}
    for name, way in times.items():
        way["MiB"] = memory[name] / 2**20
        way["share_of_memory"] = memory[name] / memory[BASE]
    show(f"{pairs:,} pairs, batches of {batch}", times)
    return {"pairs": pairs, "batch": batch, "bank": {"dtype": str(dtype).removeprefix("torch."),
                     "GiB": 2 * bank.video.nbytes / 2**30}, "ways": times}  # fmt: skip


def authors_step(bank: MemoryBank, embeddings: torch.Tensor, index: torch.Tensor) -> Step:
    """Return a step of NCE that gathers noise rows for each pair, in both directions."""
    m, temperature = ObjectiveConfig.noise_samples, ObjectiveConfig.temperature
    batch = len(index)
    log_zs: dict[int, torch.Tensor] = {}

    def step(_: object) -> None:
        samples = torch.randint(bank.pairs, (batch, m + 1))
        samples[:, 0] = index
        queries = [each.clone().requires_grad_() for each in embeddings]
        loss = torch.zeros(())
        for number, entries in enumerate((bank.text, bank.video)):
            rows = entries.index_select(0, samples.flatten()).view(batch, m + 1, -1).float()
            scores = torch.bmm(rows, queries[number].unsqueeze(2)).squeeze(2) / temperature
            p = scores.exp()
            z = log_zs.setdefault(number, p.detach().mean() * bank.pairs)
            p = p / z
            h = p / (p + m / bank.pairs)
            loss = loss - h[:, 0].log().mean() - (1 - h[:, 1:]).log().sum(dim=1).mean()
        loss.backward()
        for entries, new in zip((bank.video, bank.text), embeddings, strict=True):
            mixed = bank.momentum * entries.index_select(0, index) + (1 - bank.momentum) * new
            entries.index_copy_(0, index, F.normalize(mixed, dim=1).to(entries.dtype))

    return step


def our_step(
    config: ObjectiveConfig, bank: MemoryBank, embeddings: torch.Tensor, index: torch.Tensor, seed: int
) -> Step:
    """Return a step of one of crosspair's objectives."""
    objective: nn.Module = objectives.build_objective(config, bank.pairs, DIMENSIONS, seed, World())

    def step(_: object) -> None:
        video, text = (each.clone().requires_grad_() for each in embeddings)
        loss, _scalars = objective(video, text, index, bank)
        loss.backward()
        objective.zero_grad()
        bank.update(index, video.detach(), text.detach())

    return step


def peak_memory(step: Step) -> int:
    """Measure the peak memory of tensors allocated by a step, in bytes."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silence the profiler
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(None)
    events = [each for each in profiler.profiler.kineto_results.events() if each.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


def free_memory() -> int:
    """Return the free memory in bytes; unlimited if the system does not report it."""
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.exists() else []
    fields = dict(line.split(":") for line in lines)
    return 1024 * int(fields["MemAvailable"].split()[0]) if "MemAvailable" in fields else 1 << 62


def show(title: str, ways: dict[str, Any]) -> None:
    """Print times and memory."""
    table = Table("a step", title=title, box=None, header_style="bold")
    for column in ("ms", "quartiles", "times faster", "MiB", "of the memory"):
        table.add_column(column, justify="right")
    for name, way in ways.items():
        ms = way["ms"]
        table.add_row(
            name, f"{ms['median']:.1f}", f"{ms['low']:.1f} to {ms['high']:.1f}",
            f"{way['times_faster']['median']:.1f}", f"{way['MiB']:.1f}",
            f"1/{1 / way['share_of_memory']:.0f}" if way["share_of_memory"] < 0.5 else "",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
