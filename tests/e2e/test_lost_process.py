"""One process of a training dies: the job ends with an error, and fewer processes resume it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crosspair.models import CPD
from tests.e2e.conftest import crosspair, pretrain_arguments

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--"]


def steps(run: Path) -> list[int]:
    try:
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        return [line["step"] for line in lines if line["kind"] == "train"]
    except (OSError, ValueError):  # no file yet, or an incomplete line
        return []


def newest(run: Path) -> Path:
    """Return the last checkpoint."""
    return max((run / "checkpoints").glob("step-*"))


def processes_of(launcher: int) -> dict[str, int]:
    """Return the process id of each rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    environments = {child: Path(f"/proc/{child}/environ").read_bytes() for child in children}
    return {
        variable.removeprefix(b"RANK=").decode(): int(child)
        for child, environment in environments.items()
        for variable in environment.split(b"\0")
        if variable.startswith(b"RANK=")
    }


def test_lost_process_ends_the_job_and_one_process_resumes(rendered, tmp_path) -> None:
    run = tmp_path / "run"
    arguments = pretrain_arguments(rendered.path, run, "--resume", "training.checkpoint_steps=2", "training.epochs=6")
    job = subprocess.Popen(
        [sys.executable, *LAUNCHER, "crosspair", *map(str, arguments)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while len(steps(run)) < 5:
            assert job.poll() is None, "the training ended before a process was killed"
            time.sleep(0.02)
        processes = processes_of(job.pid)
        assert set(processes) == {"0", "1"}
        os.kill(processes["1"], signal.SIGKILL)
        _, stderr = job.communicate(timeout=300)
    finally:
        job.terminate()
    assert job.returncode
    errors = [line for line in stderr.splitlines() if "crosspair: error: " in line]
    # Process 0 reports the lost one, or torchrun's SIGTERM if that arrives first.
    assert any("--resume" in line for line in errors)
    assert not Path(f"/proc/{processes['0']}").exists()
    assert not (run / "model").exists()
    saved = newest(run)

    done = crosspair(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"resumed at step {int(saved.name.removeprefix('step-'))}" in done.stderr
    assert steps(run) == list(range(1, max(steps(run)) + 1))
    assert [path.name for path in newest(run).glob("process-*")] == ["process-0.pt"]
    CPD.from_pretrained(run / "model")
