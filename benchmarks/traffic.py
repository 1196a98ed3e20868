"""What the memory bank takes on each GPU, and what a training step sends: computed, and counted.

    python -m benchmarks.traffic

Memory and traffic are computed by `benchmarks.formula`, for the paper's batch, dimensions and
noise, beside the gradients of its video encoder. Two processes on this machine then train a step of
the same sizes, with 10⁴ pairs and with 10⁶, and count what they hand over to collectives. The
counts must be those of the formula, or nothing is written.
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
COUNTED, COUNTING = [{}, {"bank_precision": "bf16"}], 2  # settings, processes


def main() -> None:
    """Compute, count, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    settings = {
        "batch": BATCH, "dimensions": DIMENSIONS, "noise_samples": SAMPLES, "network": DEPTH,
    }  # fmt: skip
    results = {"computed": computed(), "counted": counted()}
    content = {"benchmark": "traffic", "settings": settings, "results": results}
    write_results(options.out, content, seed=0, packages=["torch"])
    print(json.dumps(results["counted"], indent=2))


def computed() -> dict[str, Any]:
    """Bytes by the formula: of the bank by N and GPUs, and of a step by GPUs."""
    memory = {
        precision: {
            str(pairs): {
                str(gpus): bank_memory(pairs, DIMENSIONS, gpus, precision) for gpus in GPUS
            }
            for pairs in PAIRS
        }
        for precision in ("fp32", "bf16")
    }
    with torch.device("meta"):
        weights = sum(each.numel() for each in ResNet3d(DEPTH, 64).parameters())
    sent = {
        str(gpus): {
            **{
                precision: _step(ObjectiveConfig(bank_precision=precision), gpus).sent(gpus)
                for precision in ("fp32", "bf16")
            },
            "gradients": Traffic(reduced=4 * weights).sent(gpus),
        }
        for gpus in GPUS[1:]
    }
    return {"memory": memory, "sent": sent}


def counted() -> list[dict[str, Any]]:
    """Bytes that a process handed over in a step, by settings and N.

    Raises:
        ValueError: they are not those of the formula.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counted.json"
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={COUNTING}"]
        what = [json.dumps(COUNTED), *map(str, (BATCH, DIMENSIONS, SAMPLES))]
        script = ["-m", "benchmarks.counted", str(out), *what]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # or the launcher tells of setting it
        subprocess.run([sys.executable, "-m", *launcher, *script], env=environment, check=True)
        found = json.loads(out.read_text())
    rows = []
    for settings, pairs, parts in found:
        of_step = {name: sum(part[name] for part in parts.values()) for name in parts["loss"]}
        formula = _step(ObjectiveConfig(**settings), COUNTING)
        if of_step != {"all_reduce": formula.reduced, "all_gather": formula.gathered}:
            raise ValueError(f"{settings}, N = {pairs}: {of_step} bytes, not {formula}")
        rows.append({"settings": settings, "pairs": pairs, "processes": COUNTING, **of_step})
    return rows


def _step(config: ObjectiveConfig, processes: int) -> Traffic:
    return sum(bank_traffic(config, BATCH, DIMENSIONS, processes).values(), Traffic())


if __name__ == "__main__":
    main()
