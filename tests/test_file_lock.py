"""File locks between processes."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crosspair.errors import ManifestError, RunError
from crosspair.files import file_lock

HOLD = """
import pathlib, sys
from crosspair.files import file_lock
with file_lock(pathlib.Path(sys.argv[1]), ""):
    print("locked", flush=True)
    sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "locked\n"
    return process


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"
    process = hold(path)
    with pytest.raises(ManifestError, match=f"^busy .*{process.pid}"), file_lock(path, "busy", ManifestError):
        pass
    process.kill()
    process.communicate()
    with file_lock(path, "busy"):
        assert path.read_text() == str(os.getpid())


def test_waiting_for_another_process(tmp_path: Path) -> None:
    process = hold(tmp_path / "lock")
    assert process.stdin
    process.stdin.close()
    with file_lock(tmp_path / "lock", "busy", timeout=60):
        pass
    process.wait()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    with file_lock(tmp_path / "lock", "busy"):
        pass


def test_a_lock_file_that_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file/lock"), file_lock(tmp_path / "file" / "lock", "busy"):
        pass
