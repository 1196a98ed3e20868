"""Work in processes of its own: what becomes of a job that brings its process down."""

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

from crosspair import workers as isolation
from crosspair.errors import CrosspairError
from crosspair.workers import WorkerFailure, map_isolated

TASK = "tests.corpora.tasks:task"


def answers(*jobs: tuple[str, str], seconds: float = 30, **options: Any) -> list[Any]:
    """Answers in the order of the jobs, each of which has just one."""
    found = list(map_isolated(TASK, jobs, seconds=seconds, **options))
    assert sorted(index for index, _ in found) == list(range(len(jobs)))
    return [answer for _, answer in sorted(found, key=lambda each: each[0])]


@pytest.mark.parametrize("window", [1, 3, 100])
def test_every_job_is_answered_once(window: int) -> None:
    jobs = [("echo", str(number)) for number in range(50)]
    assert answers(*jobs, workers=2, window=window) == [number for _, number in jobs]


def test_jobs_and_answers_that_no_pipe_holds_pass_each_other() -> None:
    def over(*_: object) -> None:
        raise AssertionError("both wait for ever")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(60)
    try:
        jobs = [("echo", str(number) * 2**20) for number in range(8)]
        assert answers(*jobs, workers=1, window=4) == [text for _, text in jobs]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_no_jobs_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert answers() == []


@pytest.mark.parametrize(
    ("job", "lost"),
    [
        (("signal", str(int(signal.SIGSEGV))), "the decoder crashed (signal 11)"),
        (("signal", str(int(signal.SIGABRT))), "the decoder crashed (signal 6)"),
        (("signal", str(int(signal.SIGKILL))),
         "the decoder was killed (signal 9: no memory left?)"),
        (("exit", "3"), "the decoder ended its process (status 3)"),
        (("exit", "0"), "the decoder ended its process (status 0)"),
        (("raise", "two\nlines"), "ValueError: two lines"),
        (("memory", str(2**30)), "MemoryError:"),
    ],
)  # fmt: skip
def test_a_job_that_fails_is_lost_alone(job: tuple[str, str], lost: str) -> None:
    jobs = [("echo", "a"), job, ("echo", "b"), ("echo", "c")]
    found = answers(*jobs, workers=1, window=4, memory=2**29)
    assert found == ["a", WorkerFailure(lost), "b", "c"]


def test_a_job_that_hangs_is_ended(capfd: pytest.CaptureFixture[str]) -> None:
    found = answers(("echo", "a"), ("hang", ""), ("echo", "b"), seconds=0.5, workers=1, window=3)
    assert found == ["a", WorkerFailure("not done after 0.5 s", hung=True), "b"]
    assert capfd.readouterr() == ("", "")


def test_a_job_may_ask_for_more_time() -> None:
    assert answers(("slow", "0.6"), ("echo", "a"), seconds=0.3) == ["done", "a"]


def test_asking_for_time_outside_of_a_process_does_nothing() -> None:
    isolation.allow(5)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_job_that_crashes_once_is_answered(tmp_path: Path) -> None:
    crashing = ("crash once", str(tmp_path / "crashed"))
    assert answers(("echo", "a"), crashing, workers=1, window=2) == ["a", "done"]


@settings(max_examples=5)
@given(st.lists(st.sampled_from(["echo", "exit", "raise"]), max_size=12), st.integers(1, 3),
       st.integers(1, 5))  # fmt: skip
def test_any_order_of_jobs_is_answered(names: list[str], workers: int, window: int) -> None:
    found = answers(*((name, "7") for name in names), workers=workers, window=window)
    expected = {
        "echo": "7", "exit": WorkerFailure("the decoder ended its process (status 7)"),
        "raise": WorkerFailure("ValueError: 7"),
    }  # fmt: skip
    assert found == [expected[name] for name in names]


def test_the_decoder_is_imported_without_torch() -> None:
    job = ("a.mp4", [(None, None)], False)
    code = (
        "import sys; from crosspair.workers import _imported; "
        "inspect = _imported('crosspair.video.integrity').inspect_job; "
        f"inspect({job!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_task_that_cannot_be_imported(tmp_path: Path) -> None:
    message = r"^a process for decoding cannot be started: ModuleNotFoundError: No module .*none'$"
    with pytest.raises(CrosspairError, match=message):
        list(map_isolated("none.none:task", [1], seconds=5))


def test_processes_that_end_as_they_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_BOOT", "import os; os._exit(4)")
    message = r"ends as it begins \(the decoder ended its process \(status 4\)\); see whether"
    with pytest.raises(CrosspairError, match=message):
        answers(("echo", "a"))


def test_processes_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/python")
    with pytest.raises(CrosspairError, match=r"cannot be started: No such file or directory$"):
        answers(("echo", "a"))


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
    told = tmp_path / "pid"
    # After Ctrl-C they are ended; after the others, by the time limit of the job they are at.
    code = (
        "from crosspair.workers import isolated; "
        f"list(isolated('tests.corpora.tasks:pid_then_hang', [{str(told)!r}], seconds=2))"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    wait_for(lambda: told.exists() and told.read_text())
    pid = int(told.read_text())
    assert is_running(pid)
    os.kill(caller.pid, number)
    caller.wait(timeout=60)
    if number == signal.SIGINT:
        assert not is_running(pid)
    wait_for(lambda: not is_running(pid))


@needs_proc
def test_processes_end_with_an_iterator_that_is_left(tmp_path: Path) -> None:
    work = map_isolated(TASK, [("echo", "a"), ("hang", "")], seconds=60, workers=1)
    assert next(work) == (0, "a")
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    work.close()
    after = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert len(set(children) - set(after)) == 1
