"""Checkpoints are there whole or not at all."""

import resource
from pathlib import Path

import pytest
import torch

from crosspair.distributed import World
from crosspair.errors import RunError
from crosspair.training import run as checkpoint
from crosspair.training.run import last_step, load_checkpoint, save_checkpoint


def save(folder: Path, step: int, **more) -> None:
    save_checkpoint(folder, step, {"a": torch.tensor([step])}, {"b": step}, World(), **more)


def test_what_was_saved_comes_back(tmp_path) -> None:
    save(tmp_path, 7)
    shared, owns = load_checkpoint(tmp_path, 7)
    assert shared["a"].tolist() == [7]
    assert (shared["step"], owns) == (7, [{"b": 7}])


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
    assert load_checkpoint(tmp_path, 1)[1] == [{"b": 1}]


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


def test_what_else_lies_there_is_no_checkpoint(tmp_path) -> None:
    for name in ("step-00000010 copy", "step-00000010 (1)", "step-"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000012").touch()
    assert last_step(tmp_path) is None
    save(tmp_path, 3)
    assert last_step(tmp_path) == 3
    assert (tmp_path / "step-00000010 copy").exists()


class Beside(World):
    """A process whose fellow does as it does, but writes nothing that can be seen here."""

    def counts(self, mine: int) -> torch.Tensor:
        return torch.full((2,), mine)


def test_machines_without_a_folder_in_common_are_told(tmp_path) -> None:
    told = r"step 4 cannot be written \(process-1\.pt is elsewhere: all machines need one folder\)"
    with pytest.raises(RunError, match=told):
        save_checkpoint(tmp_path, 4, {}, {}, Beside(0, 2))
    assert not list(tmp_path.iterdir())


def test_what_each_process_had_is_read_by_any_number(tmp_path) -> None:
    folder = tmp_path / "step-00000002"
    folder.mkdir()
    torch.save({"world_size": 3}, folder / "shared.pt")
    for rank in range(3):
        torch.save({"rank": rank, "rows": torch.full((2,), rank)}, folder / f"process-{rank}.pt")
    _, owns = load_checkpoint(tmp_path, 2)
    assert [own["rank"] for own in owns] == [0, 1, 2]
    assert [own["rows"].tolist() for own in owns] == [[0, 0], [1, 1], [2, 2]]
    (folder / "process-1.pt").unlink()
    with pytest.raises(
        RunError, match=r"process-1\.pt: not a readable checkpoint \(.*No such file"
    ):
        load_checkpoint(tmp_path, 2)


def test_a_damaged_file_is_told(tmp_path) -> None:
    save(tmp_path, 3)
    (tmp_path / "step-00000003" / "shared.pt").write_bytes(b"no checkpoint")
    with pytest.raises(RunError, match=r"shared\.pt: not a readable checkpoint"):
        load_checkpoint(tmp_path, 3)


def test_code_in_a_checkpoint_is_not_run(tmp_path) -> None:
    save(tmp_path, 3)
    torch.save({"step": Path("x")}, tmp_path / "step-00000003" / "shared.pt")
    with pytest.raises(RunError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path, 3)
