"""Run folders and checkpoints: written completely or not at all, resumed, and shared by machines."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from crosspair import files
from crosspair.config import Recipe
from crosspair.distributed import World
from crosspair.errors import RunError
from crosspair.recipes import load_recipe, read_recipe
from crosspair.training import run
from crosspair.training.pretrain import Pretraining
from crosspair.training.run import RunFolder, find_checkpoint, load_checkpoint, save_checkpoint

RECIPE = load_recipe("laptop")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let writes beyond ``size`` bytes of a file fail, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def save(folder: Path, step: int) -> None:
    save_checkpoint(folder, step, {"a": torch.tensor([step])}, {"b": step}, World())


def open_folder(path: Path, recipe: Recipe = RECIPE, world: World | None = None) -> RunFolder:
    return RunFolder(path, recipe, "hash", resume=True, world=world or World())


# --- checkpoints --------------------------------------------------------------------------------


def test_the_last_two_checkpoints_are_kept(tmp_path) -> None:
    for step in (1, 2, 4, 3):  # of step 4: damaged, and skipped by --resume
        save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    assert find_checkpoint(tmp_path) == 3
    shared, ranks = load_checkpoint(tmp_path, 3)
    assert (shared["a"].tolist(), shared["step"], ranks) == ([3], 3, [{"b": 3}])


def test_failed_write_keeps_the_previous_checkpoint(tmp_path) -> None:
    save(tmp_path, 1)
    with largest_file(100_000), pytest.raises(RunError, match=r"step 2 .*File too large.* step 1"):
        save_checkpoint(tmp_path, 2, {"a": torch.zeros(100_000)}, {}, World())
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert load_checkpoint(tmp_path, 1)[1] == [{"b": 1}]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_device_raises_oserror(tmp_path) -> None:
    class Full(type(tmp_path)):
        def open(self, *arguments, **more):
            return Path("/dev/full").open("wb")

    with pytest.raises(OSError, match="No space left"):
        run._write(Full(tmp_path / "shared.pt"), {"a": torch.zeros(100_000)})


def test_other_files_are_ignored(tmp_path) -> None:
    for name in ("step-00000010 copy", "step-00000010 (1)", "step-", ".step-00000009.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000012").touch()
    assert find_checkpoint(tmp_path) is None
    save(tmp_path, 3)
    assert find_checkpoint(tmp_path) == 3
    assert (tmp_path / "step-00000010 copy").exists()


def test_rank_states_are_read_by_any_number_of_processes(tmp_path) -> None:
    folder = tmp_path / "step-00000002"
    folder.mkdir()
    torch.save({"world_size": 3}, folder / "shared.pt")
    for rank in range(3):
        torch.save({"rank": rank, "rows": torch.full((2,), rank)}, folder / f"process-{rank}.pt")
    _, ranks = load_checkpoint(tmp_path, 2)
    assert [each["rows"].tolist() for each in ranks] == [[0, 0], [1, 1], [2, 2]]
    (folder / "process-1.pt").unlink()
    with pytest.raises(RunError, match=r"process-1\.pt .*No such file"):
        load_checkpoint(tmp_path, 2)


def test_damaged_file_and_pickled_objects_raise(tmp_path) -> None:
    save(tmp_path, 3)
    file = tmp_path / "step-00000003" / "shared.pt"
    file.write_bytes(b"no checkpoint")
    with pytest.raises(RunError, match=r"shared\.pt"):
        load_checkpoint(tmp_path, 3)
    torch.save({"step": Path("x")}, file)
    with pytest.raises(RunError, match=r"shared\.pt"):
        load_checkpoint(tmp_path, 3)


def flip_bit(file: Path) -> None:
    """Change the tensor of a checkpoint."""
    content = bytearray(file.read_bytes())
    content[content.index(b"\2\0\0\0\0\0\0\0", content.index(b"data/0"))] ^= 4
    file.write_bytes(content)


DAMAGE = {
    "shared.pt, bit": flip_bit,
    "shared.pt, zeros": lambda file: file.write_bytes(file.read_bytes()[:500] + bytes(file.stat().st_size - 500)),
    "shared.pt, cut": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "shared.pt, empty": lambda file: file.write_bytes(b""),
    "shared.pt, missing": Path.unlink,
    "process-0.pt, missing": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    file = tmp_path / "step-00000002" / damage.partition(",")[0]
    DAMAGE[damage](file)
    assert find_checkpoint(tmp_path) == 1
    (message,) = caplog.messages
    assert str(file) in message
    (tmp_path / "step-00000001" / "shared.pt").unlink()
    with pytest.raises(RunError, match=str(file)):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("first_device", ["cpu", "cuda"])
def test_runs_of_either_device_resume_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_device: str
) -> None:
    restored: list[list[int]] = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: restored.append(state.tolist()))
    rank_state = {"task": {"b": 2}, "rng": torch.get_rng_state()}
    if first_device == "cuda":
        rank_state["cuda_rng"] = torch.tensor([7])
    save_checkpoint(tmp_path, 4, {"task": {"a": 1}, "left_out": {}}, rank_state, World())
    training = Pretraining.__new__(Pretraining)
    training.world = World(device=torch.device("cuda"))
    loaded: list[object] = []
    training.load_state_dict = lambda *state: loaded.extend(state)
    training.resume(tmp_path, 4)
    assert loaded == [{"a": 1}, [{"b": 2}]]
    assert training.step == 4
    assert restored == ([[7]] if first_device == "cuda" else [])


# --- folders of several machines ----------------------------------------------------------------


class SeparateFolders(World):
    """Rank 0 of two processes; the files of rank 1 are on another machine."""

    def gather_counts(self, mine: int) -> torch.Tensor:
        return torch.full((2,), mine)


class Second(World):
    """Rank 1 of two processes; rank 0 found a checkpoint of step 7."""

    def gather_counts(self, mine: int) -> torch.Tensor:
        return torch.tensor([7, mine])


def test_checkpoint_in_separate_folders_raises(tmp_path) -> None:
    with pytest.raises(RunError, match=r"step 4 .*process-1\.pt"):
        save_checkpoint(tmp_path, 4, {}, {}, SeparateFolders(0, 2))
    assert not list(tmp_path.iterdir())


def test_rank_0_determines_the_last_checkpoint(tmp_path, monkeypatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(files.time, "sleep", waited.append)
    with pytest.raises(RunError, match=str(tmp_path / "run")):
        open_folder(tmp_path / "run", world=Second(1, 2))
    assert sum(waited) == files.NFS_CACHE_TIMEOUT_S
    monkeypatch.setattr(files.time, "sleep", lambda _: open_folder(tmp_path / "run"))  # appears late
    assert open_folder(tmp_path / "run", world=Second(1, 2)).last_step == 7


def test_a_run_cannot_be_a_file(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=str(tmp_path / "file")):
        open_folder(tmp_path / "file", world=Second(1, 2))


# --- metrics and recipe -------------------------------------------------------------------------


def test_full_disk_raises(tmp_path) -> None:
    folder, error = open_folder(tmp_path), pytest.raises(RunError, match=r"metrics\.jsonl.*File too large$")
    with largest_file(100_000), folder, error:
        folder.record("event", 1, {"message": "x" * 200_000})


def test_numbers_that_json_lacks_are_null(tmp_path) -> None:
    with open_folder(tmp_path) as folder:
        folder.record("train", 0, {"loss": 1.5, "gradient_norm": float("inf"), "top-1": float("nan")})
    (line,) = (tmp_path / run.METRICS).read_text().splitlines()
    found = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert found == {"kind": "train", "step": 0, "loss": 1.5, "gradient_norm": None, "top-1": None}


def test_only_one_process_trains_in_a_folder(tmp_path) -> None:
    code = (
        "import pathlib, sys; from tests.training.test_run_folder import open_folder\n"
        "with open_folder(pathlib.Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert owner.stdout.readline()
    with pytest.raises(RunError, match=f"{tmp_path}.*{owner.pid}"):
        open_folder(tmp_path)
    owner.kill()
    owner.communicate()
    with open_folder(tmp_path):
        pass


@pytest.mark.parametrize("torn", [b'3\n["step"]\n{"kind": "event"}\n', '{"step": 0, "message": "ä'.encode()[:-1]])
def test_invalid_lines_are_dropped(tmp_path, torn: bytes) -> None:
    with open_folder(tmp_path) as first:
        first.record("event", 0, {"message": "of a run without a checkpoint"})
    with open_folder(tmp_path) as second:
        second.record("event", 0, {"message": "ä"})
    save(tmp_path / "checkpoints", 1)
    with (tmp_path / run.METRICS).open("ab") as file:
        file.write(torn)
    with open_folder(tmp_path) as again:
        again.record("event", 0, {"pair_id": "caf\udce9"})
    lines = (tmp_path / run.METRICS).read_text(encoding="utf-8").splitlines()
    assert lines[0] == '{"kind": "event", "step": 0, "message": "ä"}'
    assert [json.loads(line)["step"] for line in lines] == [0, 0]


def test_settings_without_effect_on_results_may_change(tmp_path) -> None:
    open_folder(tmp_path)
    changed = ("training.workers=7", "training.log_every=3", "training.checkpoint_steps=5")
    open_folder(tmp_path, load_recipe("laptop", changed))
    kept = read_recipe(Recipe, str(tmp_path / run.RECIPE)).training
    assert (kept.workers, kept.log_every, kept.checkpoint_steps) == (7, 3, 5)
    with pytest.raises(RunError, match=r"training\.accumulate was 1 .*2$"):
        open_folder(tmp_path, load_recipe("laptop", ("training.workers=6", "training.accumulate=2")))
