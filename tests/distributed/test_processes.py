"""Two processes compute what one computes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BertConfig

from crosspair.config import ClassifierConfig, ClipConfig, VideoConfig
from crosspair.corpora import manifest_from_rows
from crosspair.distributed import init_distributed
from crosspair.errors import RunError
from crosspair.models import Classifier
from tests.models.conftest import write_language_model

TRAIN_STEPS, MULTIVIEW = (Path(__file__).with_name(name) for name in ("train_steps.py", "multiview.py"))


def launched(script: Path, processes: int, *arguments: str) -> list[str]:
    """Return the command that runs a script with a number of processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *(launcher if processes > 1 else []), str(script), *arguments]


def run(script: Path, processes: int, *arguments: str) -> None:
    command = launched(script, processes, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("unreadable", "settings", "settings_of_two"),
    [
        (0, ["objective.noise=pair"], []),
        (0, ["objective.name=self_instance", "objective.instances=weights"], []),
        (1, ["objective.video_weight=2"], []),
        (0, ["objective.name=in_batch", "objective.learnable_temperature=true"], ["training.accumulate=2"]),
        # Three clips are too few for two microbatches, so the other process has one, too.
        (1, [], ["training.accumulate=2"]),
    ],
)
def test_losses_gradients_and_bank_equal_those_of_one_process(
    tmp_path, unreadable: int, settings: list[str], settings_of_two: list[str]
) -> None:
    compare_one_with_two(tmp_path, unreadable, settings, settings_of_two)


def test_language_model_with_a_pooler_on_two_processes(tmp_path) -> None:
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    folder = write_language_model(tmp_path / "bert", config)
    compare_one_with_two(tmp_path, 0, ["text.encoder=transformer", f"text.source={folder}"], [])
    assert any("pooler" in name for name in AutoModel.from_pretrained(folder).state_dict())


def test_fine_tuning_equals_that_of_one_process(tmp_path) -> None:
    two = compare_one_with_two(tmp_path, 0, [], [], kind="finetune")
    assert two["layer"].shape[0] == 2
    assert torch.equal(two["layer"][0], two["layer"][1])


def compare_one_with_two(
    tmp_path: Path, unreadable: int, settings: list[str], settings_of_two: list[str], kind: str = "pretrain"
) -> dict:
    found = []
    for processes, more in ((1, []), (2, settings_of_two)):
        out = tmp_path / f"{processes}.pt"
        run(TRAIN_STEPS, processes, str(out), kind, str(unreadable), *settings, *more)
        found.append(torch.load(out, weights_only=True))
    one, two = found
    for name in {"losses", "bank", "log_z"} & set(one):
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-5, msg=name)
    torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(one["gradients"], two["gradients"], strict=True):
        largest = max(float(gradient.abs().max()) for gradient in ours)
        assert largest > 1e-3
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=3e-6 * largest)
    assert (one["seeds"].tolist(), two["seeds"].tolist()) == ([0], [0, 1])
    assert one["losses"][0] != one["losses"][1]
    return two


def test_process_without_a_gpu_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    place = {"RANK": "2", "LOCAL_RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in {"WORLD_SIZE": "4", **place}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=r"LOCAL_RANK.*--nproc-per-node.2"), init_distributed():
        pass


def test_world_size_without_the_other_variables_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(RunError, match=r"WORLD_SIZE.*RANK, MASTER_ADDR"), init_distributed():
        pass


def test_multiview_scores_are_bit_identical(tmp_path, make_video) -> None:
    torch.manual_seed(0)
    model = Classifier(["a", "b", "c"], ClipConfig(32, 2), VideoConfig(10, 4), ClassifierConfig())
    torch.nn.init.normal_(model.fc.weight)
    model.save_pretrained(tmp_path / "model")
    for row in range(5):  # two processes have three and two of them; batches are of 10 and 2 clips
        make_video(tmp_path / f"{row}.mp4", frames=30 + 7 * row, size=(96, 64))
    rows = [{"pair_id": str(i), "path": f"{i}.mp4", "title": ""} for i in range(5)]
    manifest = manifest_from_rows(rows, tmp_path / "m.parquet").write(tmp_path / "m.parquet")
    for processes in (1, 2):
        out = str(tmp_path / f"{processes}.pt")
        run(MULTIVIEW, processes, str(manifest.path), str(tmp_path / "model"), out)
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2))
    assert one["rows"].tolist() == two["rows"].tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(one["probabilities"], two["probabilities"])
    assert one["probabilities"].std(dim=0).min() > 0
