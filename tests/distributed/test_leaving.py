"""Processes leave cleanly, and report a lost process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from crosspair.distributed import init_distributed
from crosspair.errors import RunError
from tests.distributed.test_processes import launched, run

LEAVING = Path(__file__).with_name("leaving.py")


@pytest.mark.skipif(sys.platform != "linux", reason="threads have names on Linux")
def test_threads_of_the_process_group_end_with_it() -> None:
    run(LEAVING, 2, "0")


def test_remaining_process_reports_the_lost_one() -> None:
    done = subprocess.run(launched(LEAVING, 2, "2"), capture_output=True, text=True, timeout=300)
    assert done.returncode
    (message,) = [line for line in done.stderr.splitlines() if "RunError: " in line]
    assert " 0 of 2 " in message
    assert " by peer" in message


def test_sigterm_raises_run_error(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunError, match="SIGTERM"), init_distributed():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
