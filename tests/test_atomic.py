"""Atomic writes leave the old file or the new one, and no temporary file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crosspair.errors import ManifestError, RunError
from crosspair.files import atomic_write, write_atomically


def test_folders_are_created_and_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    for content in ("old", b"new"):
        write_atomically(path, content)
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "device"
    os.mkfifo(path)
    with pytest.raises(RunError, match="device"):
        write_atomically(path, "new")
    assert path.is_fifo()


def test_surrogates_are_escaped(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.txt", "caf\udce9 é")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "caf\\udce9 é"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_keeps_the_old_file_only(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted_write() -> None:
        with atomic_write(path, ManifestError) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises((ManifestError, KeyboardInterrupt)):
        interrupted_write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_synced_before_it_replaces_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("crosspair.files.os.fsync", full)
    with (
        pytest.raises(RunError, match=r"a\.txt.*No space left on device$"),
        atomic_write(tmp_path / "a.txt") as partial,
    ):
        partial.write_text("whole")
    assert not list(tmp_path.iterdir())
