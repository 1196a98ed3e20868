"""Checkpoints are there whole or not at all."""

import resource
from pathlib import Path

import pytest
import torch

from crosspair.distributed import World
from crosspair.errors import RunError
from crosspair.training import checkpoint
from crosspair.training.checkpoint import last_step, load_checkpoint, save_checkpoint


def save(folder: Path, step: int, **more) -> None:
    save_checkpoint(folder, step, {"a": torch.tensor([step])}, {"b": step}, World(), **more)


def test_what_was_saved_comes_back(tmp_path) -> None:
    save(tmp_path, 7)
    shared, own = load_checkpoint(tmp_path, 7, World())
    assert shared["a"].tolist() == [7]
    assert (shared["step"], own["b"]) == (7, 7)


def test_only_the_last_and_those_to_keep_stay(tmp_path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2, keep=[1])
    save(tmp_path, 3, keep=[1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]
    assert last_step(tmp_path) == 3


def test_a_write_that_fails_leaves_the_last_good_one(tmp_path) -> None:
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # the system refuses the rest
    try:
        with pytest.raises(
            RunError, match=r"step 2 cannot be written \(File too large\); that of step 1 is whole"
        ):
            save_checkpoint(tmp_path, 2, {"a": torch.zeros(100_000)}, {}, World())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert load_checkpoint(tmp_path, 1, World())[1] == {"b": 1}


def test_a_really_full_device_is_told(tmp_path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / ".step-00000005.partial").mkdir()

    class Full(type(tmp_path)):
        def open(self, *arguments, **more):
            return Path("/dev/full").open("wb")

    with pytest.raises(OSError, match="No space left"):
        checkpoint._write(Full(tmp_path / "shared.pt"), {"a": torch.zeros(100_000)})


def test_half_written_folders_are_no_checkpoints(tmp_path) -> None:
    save(tmp_path, 3)
    (tmp_path / ".step-00000009.partial").mkdir()
    assert last_step(tmp_path) == 3


def test_another_number_of_processes_is_refused(tmp_path) -> None:
    save(tmp_path, 3)
    with pytest.raises(RunError, match="was written by 1 processes and this run has 2"):
        load_checkpoint(tmp_path, 3, World(0, 2))


def test_a_damaged_file_is_told(tmp_path) -> None:
    save(tmp_path, 3)
    (tmp_path / "step-00000003" / "shared.pt").write_bytes(b"no checkpoint")
    with pytest.raises(RunError, match=r"shared\.pt: not a readable checkpoint"):
        load_checkpoint(tmp_path, 3, World())


def test_code_in_a_checkpoint_is_not_run(tmp_path) -> None:
    save(tmp_path, 3)
    torch.save({"step": Path("x")}, tmp_path / "step-00000003" / "shared.pt")
    with pytest.raises(RunError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path, 3, World())
