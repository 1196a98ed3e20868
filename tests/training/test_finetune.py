"""Training steps and checks of fine-tuning, on random clips."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from crosspair.config import FinetuneRecipe, VideoConfig
from crosspair.corpora import manifest_from_rows
from crosspair.distributed import World
from crosspair.errors import ManifestError, RecipeError, RunError
from crosspair.models import InitWeights, ResNet3d
from crosspair.recipes import load_recipe, make_recipe
from crosspair.training.finetune import Finetuning
from crosspair.training.run import RunFolder
from crosspair.video.loader import Batch

pytestmark = pytest.mark.usefixtures("one_thread")

VIDEO = VideoConfig(10, 4)
TINY = {
    "clip.size": 32, "clip.frames": 2, "video.depth": 10, "video.width": 4,
    "training.batch_size": 8, "training.precision": "fp32",
}  # fmt: skip
RANDOM = InitWeights("random")


def recipe(**settings: object) -> FinetuneRecipe:
    return make_recipe(FinetuneRecipe, {**TINY, **settings})


def task(videos: int = 40, start: InitWeights = RANDOM, **settings: object) -> Finetuning:
    rows = [{"pair_id": str(i), "path": "x", "title": "", "label": "abcd"[i % 4]} for i in range(videos)]
    return Finetuning(recipe(**settings), manifest_from_rows(rows, "m.parquet"), start, World())


def pretrained() -> InitWeights:
    torch.manual_seed(3)
    return InitWeights("test", VIDEO, ResNet3d(10, 4).state_dict())


def batch(rows: int = 8, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randint(0, 256, (rows, 3, 2, 32, 32), generator=generator, dtype=torch.uint8)
    return Batch(0, torch.arange(rows), clips, torch.ones(rows, 3), [])


def test_loss_is_cross_entropy_with_the_videos_classes() -> None:
    made = task()
    shown = batch()
    with torch.no_grad():
        logits = made.model(shown.clips)
    truth = [made.data.train.column("label")[row] for row in range(8)]
    expected = 0.0
    for of_clip, label in zip(logits.double(), truth, strict=True):
        exponents = of_clip.exp()
        expected -= float((exponents[made.data.classes.index(label)] / exponents.sum()).log()) / 8
    scalars = made.train_step(shown, 0.0, 1.0)
    assert float(scalars["loss"]) == pytest.approx(expected, abs=1e-5)
    assert float(scalars["lr"]) == pytest.approx(0.01)


def test_loss_decreases_on_a_repeated_batch() -> None:
    made = task(**{"optimizer.lr": 0.05})
    losses = [float(made.train_step(batch(), 0.0, 1.0)["loss"]) for _ in range(12)]
    assert losses[-1] < 0.5 * losses[0]


def test_accumulated_microbatches_equal_the_whole_batch() -> None:
    settings = {"classifier.frozen_norm": True, "optimizer.lr": 0.1}
    whole, parts = (
        task(start=pretrained(), **settings),
        task(start=pretrained(), **settings, **{"training.accumulate": 4}),
    )
    for made in (whole, parts):
        for seed in range(2):
            made.train_step(batch(seed=seed), 0.0, 1.0)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_label_smoothing_raises_the_loss_of_a_confident_network() -> None:
    losses = {}
    for smoothing in (0.0, 0.2):
        made = task(**{"classifier.label_smoothing": smoothing})
        made.model.fc.bias.data = torch.tensor([30.0, 0, 0, 0])
        losses[smoothing] = float(made.train_step(batch(), 0.0, 1.0)["loss"])
    # 0.2 of the target is spread over the four classes.
    right = sum(label == "a" for label in made.data.train.column("label")[:8]) / 8
    uniform = (0 + 3 * 30) / 4
    own = 30 * (1 - right)
    assert losses[0.0] == pytest.approx(own, rel=0.05)
    assert losses[0.2] == pytest.approx(0.8 * own + 0.2 * uniform, rel=0.05)


def test_gradient_norm_is_clipped() -> None:
    made = task(**{
        "optimizer.clip_norm": 1e-3, "optimizer.momentum": 0.0, "optimizer.lr": 1.0,
        "optimizer.weight_decay": 0.0,
    })  # fmt: skip
    before = [parameter.detach().clone() for parameter in made.model.parameters()]
    made.train_step(batch(), 0.0, 1.0)
    steps = [(p.detach() - b).norm() for p, b in zip(made.model.parameters(), before, strict=True)]
    assert float(torch.stack(steps).norm()) == pytest.approx(1e-3, rel=1e-2)


def test_frozen_batch_normalisation_does_not_change() -> None:
    made = task(start=pretrained(), **{"classifier.frozen_norm": True})
    before = {name: values.clone() for name, values in made.model.state_dict().items()}
    made.train_step(batch(), 0.0, 1.0)
    for name, module in made.model.named_modules():
        if isinstance(module, nn.BatchNorm3d):
            for key, values in module.state_dict().items():
                assert torch.equal(values, before[f"{name}.{key}"]), name
    assert not torch.equal(made.model.fc.weight, before["fc.weight"])
    stem = made.model.video_encoder.stem[0].weight
    assert not torch.equal(stem, before["video_encoder.stem.0.weight"])


@pytest.mark.parametrize(("share", "videos", "clips"), [(1.0, 90, 90), (0.1, 10, 100)])
def test_fraction_of_labels_keeps_the_number_of_steps(share: float, videos: int, clips: int) -> None:
    made = task(100, **{"labels.share": share, "labels.hold_out": 0.1})
    assert len(made.data.train) == pytest.approx(videos, abs=3)
    assert len(made.clips) == len(made.targets) == pytest.approx(clips, abs=30)
    names = made.data.train.column("label")
    for row in range(len(made.clips)):
        assert made.data.classes[made.targets[row]] == names[row % len(names)]
        assert made.pair_id(row) == made.data.train.column("pair_id")[row % len(names)]


def test_fewer_videos_than_a_batch_are_repeated() -> None:
    assert task(8, **{"training.batch_size": 32}).steps_per_epoch == 1


# --- invalid settings ---------------------------------------------------------------------------


def test_frozen_norm_requires_pretrained_weights() -> None:
    with pytest.raises(RecipeError, match=r"classifier\.frozen_norm"):
        task(**{"classifier.frozen_norm": True})


def test_plateau_requires_validation(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ManifestError, match=r"m\.parquet.*labels\.hold_out.*plateau\.drops"):
        task(**{"labels.hold_out": 0.0})
    task(**{"labels.hold_out": 0.0, "plateau.drops": 0})
    assert "m.parquet" in caplog.text


def test_two_frames_in_bfloat16_raise() -> None:
    with pytest.raises(RecipeError, match=r"clip\.frames"):
        task(**{"training.precision": "bf16"})
    task(**{"training.precision": "bf16", "clip.frames": 3})


def test_batch_size_must_fit_the_processes() -> None:
    rows = [{"pair_id": c, "path": "x", "title": "", "label": c} for c in "abcd"]
    for processes in (3, 8):
        with pytest.raises(RecipeError, match=rf"training\.batch_size 8 .*{processes}"):
            Finetuning(recipe(), manifest_from_rows(rows, "m"), RANDOM, World(0, processes))


# --- run folders --------------------------------------------------------------------------------


def start_run(path: Path, settings=None, resume: bool = False, manifest: str = "m", start: str = "s"):
    made = recipe() if settings is None else settings
    return RunFolder(path, made, manifest, resume=resume, world=World(), origin={"start": start, "tested": "test"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": recipe(**{"optimizer.lr": 0.5})}, r"optimizer\.lr was 0.01 .*0.5"),
        ({"settings": load_recipe("laptop")}, r"classifier\.dropout"),
        ({"manifest": "other"}, "manifest.* m .*other"),
        ({"start": "other"}, "start.* s .*other"),
    ],
)
def test_another_run_is_not_resumed(tmp_path: Path, change: dict, message: str) -> None:
    start_run(tmp_path / "run")
    start_run(tmp_path / "run", resume=True)
    with pytest.raises(RunError, match=message):
        start_run(tmp_path / "run", resume=True, **change)
    with pytest.raises(RunError, match="--resume"):
        start_run(tmp_path / "run")
