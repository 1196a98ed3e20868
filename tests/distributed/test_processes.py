"""Two processes do what one does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("one_step.py")


def run(processes: int, *arguments: str) -> None:
    command = [sys.executable, str(SCRIPT), *arguments]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *launcher, str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("noise", ["batch", "pair"])
def test_losses_gradients_and_bank_of_two_processes_are_those_of_one(tmp_path, noise) -> None:
    run(1, str(tmp_path / "one"), noise)
    run(2, str(tmp_path / "two"), noise)
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two"))
    for name in ("losses", "bank", "log_z"):
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-5, msg=name)
    torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-4, atol=1e-4)
    for of_one, of_two in zip(one["gradients"], two["gradients"], strict=True):
        largest = max(float(gradient.abs().max()) for gradient in of_one)
        torch.testing.assert_close(of_two, of_one, rtol=1e-4, atol=3e-6 * largest)
    assert one["losses"][0] != one["losses"][1]
    assert max(float(gradient.abs().max()) for gradient in one["gradients"][0]) > 1e-3
