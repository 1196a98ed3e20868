"""A run that lost a process resumes on another number of processes with the same result."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from tests.distributed.test_processes import launched

STEPS, KILLED, SAVED = 10, 8, 6  # in the second epoch


def train(run: Path, processes: int, killed: int = 0, fixed: int = 1) -> None:
    # As a module, since it imports another script.
    arguments = (str(run), str(killed), str(fixed))
    command = launched(Path("tests.distributed.elastic"), processes, *arguments)
    command.insert(-4, "-m")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode == 0) is (killed == 0), done.stderr[-3000:]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    run = tmp_path_factory.mktemp("elastic") / "run"
    train(run, 1)
    return torch.load(run / "found.pt", weights_only=True)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_resume_on_another_number_of_processes_gives_the_same_weights(
    uninterrupted, tmp_path, before: int, after: int
) -> None:
    run = tmp_path / "run"
    train(run, before, KILLED)
    saved = max((run / "checkpoints").glob("step-*"))
    assert int(saved.name.removeprefix("step-")) == SAVED
    assert len(list(saved.glob("process-*.pt"))) == before
    train(run, after)
    found = torch.load(run / "found.pt", weights_only=True)
    assert len(found["weights"]) == len(found["velocities"]) > 10
    assert len(found["average"]) >= len(found["weights"])
    assert found.pop("seeds").tolist() == list(range(after))
    torch.testing.assert_close(found, {name: uninterrupted[name] for name in found}, rtol=1e-4, atol=1e-5)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    events = [(line["pair_id"], line["message"]) for line in lines if line["kind"] == "event"]
    assert events == [("3", "it is broken")]
    assert [line["failed"] for line in lines if "failed" in line] == [1]


def test_resumed_batch_statistics_are_identical(tmp_path) -> None:
    for run, killed in (("whole", 0), ("cut", KILLED), ("cut", 0)):
        train(tmp_path / run, 2, killed, fixed=0)
    whole, cut = (torch.load(tmp_path / run / "found.pt", weights_only=True) for run in ("whole", "cut"))
    assert len(cut["statistics"]) > 10
    for name in ("statistics", "weights", "average"):
        torch.testing.assert_close(cut[name], whole[name], rtol=0, atol=0, msg=name)
