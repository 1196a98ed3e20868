"""Checkpoints are written completely or not at all."""

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


def test_round_trip(tmp_path) -> None:
    save(tmp_path, 7)
    shared, ranks = load_checkpoint(tmp_path, 7)
    assert shared["a"].tolist() == [7]
    assert (shared["step"], ranks) == (7, [{"b": 7}])


def test_older_checkpoints_are_deleted_unless_kept(tmp_path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2, keep=[1])
    save(tmp_path, 3, keep=[1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]
    assert last_step(tmp_path) == 3


def test_failed_write_keeps_the_previous_checkpoint(tmp_path) -> None:
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # larger files fail
    try:
        with pytest.raises(RunError, match=r"step 2 .*File too large.* step 1"):
            save_checkpoint(tmp_path, 2, {"a": torch.zeros(100_000)}, {}, World())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert load_checkpoint(tmp_path, 1)[1] == [{"b": 1}]


def test_full_device_raises_oserror(tmp_path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / ".step-00000005.partial").mkdir()

    class Full(type(tmp_path)):
        def open(self, *arguments, **more):
            return Path("/dev/full").open("wb")

    with pytest.raises(OSError, match="No space left"):
        checkpoint._write(Full(tmp_path / "shared.pt"), {"a": torch.zeros(100_000)})


def test_partial_folders_are_ignored(tmp_path) -> None:
    save(tmp_path, 3)
    (tmp_path / ".step-00000009.partial").mkdir()
    assert last_step(tmp_path) == 3


def test_other_files_are_ignored(tmp_path) -> None:
    for name in ("step-00000010 copy", "step-00000010 (1)", "step-"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000012").touch()
    assert last_step(tmp_path) is None
    save(tmp_path, 3)
    assert last_step(tmp_path) == 3
    assert (tmp_path / "step-00000010 copy").exists()


class SeparateFolders(World):
    """Rank 0 of two processes; the files of rank 1 are on another machine."""

    def gather_counts(self, mine: int) -> torch.Tensor:
        return torch.full((2,), mine)


def test_separate_folders_raise(tmp_path) -> None:
    with pytest.raises(RunError, match=r"step 4 .*process-1\.pt"):
        save_checkpoint(tmp_path, 4, {}, {}, SeparateFolders(0, 2))
    assert not list(tmp_path.iterdir())


def test_rank_states_are_read_by_any_number_of_processes(tmp_path) -> None:
    folder = tmp_path / "step-00000002"
    folder.mkdir()
    torch.save({"world_size": 3}, folder / "shared.pt")
    for rank in range(3):
        torch.save({"rank": rank, "rows": torch.full((2,), rank)}, folder / f"process-{rank}.pt")
    _, ranks = load_checkpoint(tmp_path, 2)
    assert [each["rank"] for each in ranks] == [0, 1, 2]
    assert [each["rows"].tolist() for each in ranks] == [[0, 0], [1, 1], [2, 2]]
    (folder / "process-1.pt").unlink()
    with pytest.raises(RunError, match=r"process-1\.pt .*No such file"):
        load_checkpoint(tmp_path, 2)


def test_damaged_file_raises(tmp_path) -> None:
    save(tmp_path, 3)
    (tmp_path / "step-00000003" / "shared.pt").write_bytes(b"no checkpoint")
    with pytest.raises(RunError, match=r"shared\.pt"):
        load_checkpoint(tmp_path, 3)


def test_pickled_objects_are_not_loaded(tmp_path) -> None:
    save(tmp_path, 3)
    torch.save({"step": Path("x")}, tmp_path / "step-00000003" / "shared.pt")
    with pytest.raises(RunError, match=r"shared\.pt"):
        load_checkpoint(tmp_path, 3)
