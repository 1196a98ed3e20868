"""Compute and count the memory of the memory bank and the traffic of a training step.

    python -m benchmarks.traffic

`benchmarks.formula` computes memory and traffic for the paper's batch size, dimensions and noise
samples, compared with the gradients of its video encoder. Two processes on this machine then run a
step of the same sizes, with 10⁴ and 10⁶ pairs, and count the bytes that they pass to collectives.
If the counts differ from the formula, nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.formula import Traffic, bank_memory, bank_traffic
from benchmarks.measuring import write_results
from crosspair.config import ObjectiveConfig
from crosspair.models import ResNet3d

RESULTS = Path(__file__).parent / "results" / "traffic.json"
PAIRS = (10**5, 10**6, 10**7, 10**8)
GPUS = (1, 2, 4, 8, 16, 32, 64)
BATCH, DIMENSIONS, SAMPLES, DEPTH = 256, 256, 4096, 50
COUNTED_SETTINGS = [{}, {"bank_precision": "bf16"}]
PROCESSES = 2


def main() -> None:
    """Compute and count the traffic, compare both and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    settings = {
        "batch": BATCH, "dimensions": DIMENSIONS, "noise_samples": SAMPLES, "network": DEPTH,
    }  # fmt: skip
    results = {"computed": compute_traffic(), "counted": count_traffic()}
    content = {"benchmark": "traffic", "settings": settings, "results": results}
    write_results(options.out, content, seed=0, packages=["torch"])
    print(json.dumps(results["counted"], indent=2))


def compute_traffic() -> dict[str, Any]:
    """Compute the bytes of the bank by N and GPUs, and of a step by GPUs."""
    memory = {
        precision: {
            str(pairs): {str(gpus): bank_memory(pairs, DIMENSIONS, gpus, precision) for gpus in GPUS} for pairs in PAIRS
        }
        for precision in ("fp32", "bf16")
    }
    with torch.device("meta"):
        weights = sum(each.numel() for each in ResNet3d(DEPTH, 64).parameters())
    sent = {
        str(gpus): {
            **{
                precision: _step_traffic(ObjectiveConfig(bank_precision=precision), gpus).sent(gpus)
                for precision in ("fp32", "bf16")
            },
            "gradients": Traffic(reduced=4 * weights).sent(gpus),
        }
        for gpus in GPUS[1:]
    }
    return {"memory": memory, "sent": sent}


def count_traffic() -> list[dict[str, Any]]:
    """Count the bytes that a process passes to collectives in a step, by settings and N.

    Raises:
        ValueError: the counts differ from the formula.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counted.json"
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
        arguments = [json.dumps(COUNTED_SETTINGS), *map(str, (BATCH, DIMENSIONS, SAMPLES))]
        script = ["-m", "benchmarks.counted", str(out), *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # otherwise torchrun warns
        subprocess.run([sys.executable, "-m", *launcher, *script], env=environment, check=True)
        counts = json.loads(out.read_text())
    rows = []
    for settings, pairs, parts in counts:
        step_bytes = {name: sum(part[name] for part in parts.values()) for name in parts["loss"]}
        formula = _step_traffic(ObjectiveConfig(**settings), PROCESSES)
        if step_bytes != {"all_reduce": formula.reduced, "all_gather": formula.gathered}:
            raise ValueError(f"{settings}, N = {pairs}: {step_bytes} bytes, not {formula}")
        rows.append({"settings": settings, "pairs": pairs, "processes": PROCESSES, **step_bytes})
    return rows


def _step_traffic(config: ObjectiveConfig, processes: int) -> Traffic:
    return sum(bank_traffic(config, BATCH, DIMENSIONS, processes).values(), Traffic())


if __name__ == "__main__":
    main()
