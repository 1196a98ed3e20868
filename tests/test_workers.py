"""Jobs in worker processes: a crash, hang or out-of-memory error costs one job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspair.errors import CrosspairError
from crosspair.workers import WorkerFailure, extend_timeout, map_isolated
from tests.tasks import fail_to_unpickle, task

ROOT = Path(__file__).parents[1]


def results(*jobs: tuple[str, str], timeout: float = 30, **options: Any) -> list[Any]:
    """Results in the order of the jobs, each of which has exactly one."""
    found = list(map_isolated(task, jobs, timeout=timeout, **options))
    assert sorted(index for index, _ in found) == list(range(len(jobs)))
    return [result for _, result in sorted(found, key=lambda pair: pair[0])]


@pytest.mark.parametrize("workers", [1, 3])
def test_every_job_has_one_result(workers: int) -> None:
    jobs = [("echo", str(number)) for number in range(50)]
    assert results(*jobs, workers=workers) == [number for _, number in jobs]


def test_results_in_order_although_jobs_take_different_times() -> None:
    jobs = [("sleep", "0.5"), *[("echo", str(n)) for n in range(40)], ("exit", "3"), ("echo", "x")]
    found = list(map_isolated(task, jobs, timeout=30, workers=3, in_order=True))
    assert [index for index, _ in found] == list(range(len(jobs)))
    assert isinstance(found[-2][1], WorkerFailure)


def test_jobs_and_results_larger_than_a_pipe() -> None:
    jobs = [("echo", str(number) * 2**20) for number in range(8)]
    assert results(*jobs, workers=1) == [text for _, text in jobs]


def test_no_jobs() -> None:
    assert results() == []


@pytest.mark.parametrize(
    ("job", "detail"),
    [
        (("signal", str(int(signal.SIGSEGV))), "signal 11"),
        (("signal", str(int(signal.SIGABRT))), "signal 6"),
        (("signal", str(int(signal.SIGKILL))), "signal 9"),
        (("exit", "3"), "status 3"),
        (("exit", "0"), "status 0"),
        (("raise", "two\nlines"), "two"),
        (("memory", str(2**30)), "MemoryError"),
    ],
)
def test_a_failing_job_fails_alone(job: tuple[str, str], detail: str) -> None:
    first, failure, *others = results(("echo", "a"), job, ("echo", "b"), ("echo", "c"), workers=1, memory_limit=2**29)
    assert [first, *others] == ["a", "b", "c"]
    assert isinstance(failure, WorkerFailure)
    assert detail in failure.reason
    assert not failure.timed_out


def test_a_hanging_job_is_ended(capfd: pytest.CaptureFixture[str]) -> None:
    first, failure, last = results(("echo", "a"), ("hang", ""), ("echo", "b"), timeout=0.5, workers=1)
    assert (first, last) == ("a", "b")
    assert failure.timed_out
    assert capfd.readouterr() == ("", "")


def test_each_job_has_its_own_time_limit() -> None:
    assert results(*[("sleep", "0.5")] * 5, timeout=2, workers=1) == ["done"] * 5


def test_a_job_may_extend_its_time() -> None:
    assert results(("slow", "0.6"), ("echo", "a"), timeout=0.3) == ["done", "a"]


def test_extend_timeout_outside_a_worker_does_nothing() -> None:
    extend_timeout(5)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_job_that_crashes_once_is_repeated(tmp_path: Path) -> None:
    crashing = ("crash once", str(tmp_path / "crashed"))
    assert results(("echo", "a"), crashing, workers=1) == ["a", "done"]


@settings(max_examples=5, deadline=None)
@given(st.lists(st.sampled_from(["echo", "exit", "raise"]), max_size=12), st.integers(1, 3),
       st.booleans())  # fmt: skip
def test_any_sequence_of_jobs(names: list[str], workers: int, in_order: bool) -> None:
    found = results(*((name, "7") for name in names), workers=workers, in_order=in_order)
    assert [result == "7" for result in found] == [name == "echo" for name in names]


def test_decoding_does_not_import_torch() -> None:
    code = (
        "import sys, crosspair.video.integrity, crosspair.video.views, crosspair.corpora.prepare; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_script_needs_no_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from crosspair.workers import map_isolated\n"
        "from tests.tasks import task\n"
        "print(list(map_isolated(task, [('echo', 'a')], timeout=30)))\n"
    )
    path = os.pathsep.join([str(ROOT), *sys.path])
    found = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert (found.stdout, found.stderr) == ("[(0, 'a')]\n", "")


def test_a_process_that_ends_as_it_starts() -> None:
    with pytest.raises(CrosspairError, match=r"tests\.tasks"):
        list(map_isolated(fail_to_unpickle, [1], timeout=30))


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_caller(tmp_path: Path, number: int) -> None:
    file = tmp_path / "pid"
    code = (
        "from crosspair.workers import map_isolated; from tests.tasks import pid_then_hang; "
        f"list(map_isolated(pid_then_hang, [{str(file)!r}], timeout=60))"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, cwd=ROOT)
    wait_for(lambda: file.exists() and file.read_text())
    pid = int(file.read_text())
    assert is_running(pid)
    os.kill(caller.pid, number)
    caller.wait(timeout=60)
    wait_for(lambda: not is_running(pid))


@needs_proc
def test_processes_end_with_an_abandoned_iterator(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    iterator = map_isolated(task, [("pid", str(file)), ("hang", "")], timeout=60, workers=1)
    assert next(iterator)[0] == 0
    iterator.close()
    wait_for(lambda: not is_running(int(file.read_text())))
