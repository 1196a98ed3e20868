"""Files: atomic writes, JSON Lines journals that survive a kill, and locks between processes."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair import files
from crosspair.errors import ManifestError, RunError
from crosspair.files import (
    JsonlWriter,
    atomic_write,
    check_output,
    check_output_folder,
    file_lock,
    read_jsonl,
    write_atomically,
)


def test_folders_are_created_and_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    for content in ("old", "caf\udce9 é", b"new"):
        write_atomically(path, content)
        assert path.read_bytes() == {"caf\udce9 é": b"caf\\udce9 \xc3\xa9", "old": b"old"}.get(content, content)
    assert list(path.parent.iterdir()) == [path]


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "device"
    os.mkfifo(path)
    with pytest.raises(RunError, match="device"):
        write_atomically(path, "new")
    assert path.is_fifo()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_keeps_the_old_file_only(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half() -> None:
        with atomic_write(path, ManifestError) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises((ManifestError, KeyboardInterrupt)):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_synced_before_it_replaces_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("crosspair.files.os.fsync", full)
    with pytest.raises(RunError, match=r"a\.txt.*No space left on device$"):
        write_atomically(tmp_path / "a.txt", "whole")
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_file_both_write_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_write(path) as first:
        first.write_text("fir")
        with atomic_write(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
        with first.open("a") as file:
            file.write("st")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_the_partial_file_of_a_killed_writer_is_reused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write = f"from crosspair.files import *\nwith atomic_write(Path({str(path)!r})) as p: p.write_text('old'); "
    subprocess.run([sys.executable, "-c", f"{write}os.kill(os.getpid(), 9)"], check=False)
    (partial,) = tmp_path.iterdir()
    assert partial.read_text() == "old"
    with atomic_write(path) as again:
        assert (again, again.read_bytes()) == (partial, b"")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "content"), [("a.csv", b"a,b\n1,2\n"), ("a.parquet", b"PAR1"), ("a.json", b"{}"),
    ("a.png", b"\x89PNG\r\n"), ("a.mp4", b"\0\0\0 ftyp")])  # fmt: skip
def test_files_of_other_kinds_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for kind in [*files._KINDS, *files._PARQUET_KINDS]:
        check_output(tmp_path / "new" / name, kind)
        with pytest.raises(RunError, match=name):
            check_output(path, kind)
        with pytest.raises(RunError, match=name):
            check_output(tmp_path / "other", kind, name)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_behind_a_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("mine")
    with pytest.raises(RunError, match=r"a\.csv"):
        check_output(tmp_path / "missing" / ".." / "a.csv", "a list of problems")


def test_folders_of_other_kinds_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    for name in (".hidden", "part", "other"):
        check_output_folder(folder, "a run", "deep/mark", "part")
        (folder / name).mkdir(parents=True)
    with pytest.raises(RunError, match="contains other"):
        check_output_folder(folder, "a run", "deep/mark", "part")
    write_atomically(folder / "deep" / "mark", "")
    check_output_folder(folder, "a run", "deep/mark", "part")
    for path in (folder / "deep" / "mark", folder / "deep" / "mark" / "x"):
        with pytest.raises(RunError, match="is a file"):
            check_output_folder(path, "a run", "deep/mark")


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "a.csv", tmp_path / ("x" * 300)):
        with pytest.raises(RunError, match=str(path)):
            check_output(path, "a list of problems")
    check_output(tmp_path / "file", "a list of problems")  # an empty file holds nothing


def test_a_foreign_lock_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("mine")
    with pytest.raises(RunError, match=r"\.lock"), file_lock(tmp_path / ".lock", "busy"):
        pass
    assert (tmp_path / ".lock").read_text() == "mine"


# --- journals -----------------------------------------------------------------------------------

ENTRIES = st.lists(
    st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=2)
    | st.lists(st.floats(allow_nan=False) | st.none(), max_size=2)
)


@given(ENTRIES, ENTRIES, st.integers(0, 60))
def test_a_torn_journal_loses_at_most_its_last_line(
    tmp_path_factory: pytest.TempPathFactory, before: list[Any], after: list[Any], torn: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "deep" / "journal.jsonl"
    assert list(read_jsonl(path)) == []
    with JsonlWriter(path) as journal:
        journal.add(*before)
    content = path.read_bytes()
    last = len(content[:-1].rpartition(b"\n")[2])
    path.write_bytes(content[: len(content) - min(torn, last)])
    with JsonlWriter(path) as journal:
        for entry in after:
            journal.add(entry)
            assert list(read_jsonl(path))[-1] == entry  # flushed
    kept = before if torn < 2 else before[:-1]
    assert list(read_jsonl(path)) == [*kept, *after]


def test_opening_a_complete_journal_changes_nothing(tmp_path: Path) -> None:
    for content in (b"", b"[1]\n"):
        (tmp_path / "j").write_bytes(content)
        with JsonlWriter(tmp_path / "j"):
            pass
        assert (tmp_path / "j").read_bytes() == content


def test_file_names_that_are_not_unicode(tmp_path: Path) -> None:
    with JsonlWriter(tmp_path / "j") as journal:
        journal.add(["é", "caf\udce9"])
    assert (tmp_path / "j").read_bytes() == '["é", "caf\\udce9"]\n'.encode()
    assert list(read_jsonl(tmp_path / "j")) == [["é", "caf\udce9"]]


def test_a_journal_that_is_not_writable_or_readable(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Is a directory"):
        JsonlWriter(tmp_path)
    with pytest.raises(RunError, match=r"Is a directory"):
        list(read_jsonl(tmp_path))
    full = Path("/dev/full")
    if full.exists():
        with JsonlWriter(full) as journal, pytest.raises(RunError, match=r"/dev/full.*No space left"):
            journal.add("a")


# --- locks --------------------------------------------------------------------------------------

HOLD = """
import pathlib, sys
from crosspair.files import file_lock
with file_lock(pathlib.Path(sys.argv[1]), ""):
    print("locked", flush=True)
    sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock until its standard input is closed."""
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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
