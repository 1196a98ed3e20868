"""Fine-tuning: training steps, invalid settings, selection of labelled videos, official splits."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from crosspair.config import FinetuneRecipe, LabelsConfig, VideoConfig
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.distributed import World
from crosspair.errors import ManifestError, ModelError, RecipeError, RunError
from crosspair.models import InitWeights, ResNet3d
from crosspair.recipes import load_recipe, make_recipe
from crosspair.training.finetune import Finetuning, finetune_and_test, select_labelled_videos
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
    rows = [{"pair_id": str(i), "path": f"{i}.mp4", "title": "", "label": "abcd"[i % 4]} for i in range(videos)]
    return Finetuning(recipe(**settings), manifest_from_rows(rows, "m.parquet"), start, World())


def pretrained() -> InitWeights:
    torch.manual_seed(3)
    return InitWeights("test", VIDEO, ResNet3d(10, 4).state_dict())


def batch(rows: int = 8, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randint(0, 256, (rows, 3, 2, 32, 32), generator=generator, dtype=torch.uint8)
    return Batch(0, torch.arange(rows), clips, torch.ones(rows, 4), [])


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


def test_learning_rates_of_the_blocks() -> None:
    made = task(**{
        "optimizer.lr": 1.0, "optimizer.encoder_factor": 0.5, "optimizer.layer_decay": 0.25, "video.train": "last:2",
    })  # fmt: skip
    before = {name: value.detach().clone() for name, value in made.model.named_parameters()}
    assert float(made.train_step(batch(), 0.0, 1.0)["lr"]) == 1.0
    rates = {id(p): group["lr"] for group in made.optimizer.param_groups for p in group["params"]}
    moved = {name: p for name, p in made.model.named_parameters() if not torch.equal(p, before[name])}
    found = {(name.split(".")[1] if "encoder" in name else "fc", rates[id(p)]) for name, p in moved.items()}
    assert found == {("res4", 0.125), ("res5", 0.5), ("fc", 1.0)}


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
    assert made.ids == made.data.train.column("pair_id")
    for row in range(len(made.clips)):
        assert made.data.classes[made.targets[row]] == names[row % len(names)]


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
    rows = [{"pair_id": c, "path": f"{c}.mp4", "title": "", "label": c} for c in "abcd"]
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


# --- selection of labelled videos ----------------------------------------------------------------


def labelled(name: str, label: str | None, split: str | None = "train", **more: object) -> dict:
    return {"pair_id": name, "path": f"{name}.mp4", "title": "", "label": label, "split": split, **more}


def ucf(groups: int = 10, clips: int = 4, classes: tuple[str, ...] = ("a", "b")) -> list[dict]:
    return [
        labelled(f"v_{label}_g{group:02d}_c{clip:02d}", label)
        for label in classes
        for group in range(groups)
        for clip in range(clips)
    ]


def select(rows: list[dict], fraction: float = 1.0, hold_out: float = 0.1, **options):
    config = LabelsConfig(fraction, hold_out)
    return select_labelled_videos(manifest_from_rows(rows, "m.parquet"), config, **{"seed": 0, **options})


def ids(split: Manifest) -> set[str]:
    return set(split.column("pair_id"))


def test_whole_recordings_are_held_out() -> None:
    found = select(ucf(), hold_out=0.2)
    assert len(found.train) == 64
    assert len(found.validation) == 16
    recordings = [{name[:-4] for name in ids(each)} for each in (found.train, found.validation)]
    assert not recordings[0] & recordings[1]


def test_sources_of_hmdb51_are_held_out_in_all_classes() -> None:
    rows = [
        labelled(f"film_{number}_{label}_h_cm_np1_fr_med_{clip}", label.replace("_", " "))
        for number in range(9)
        for label in ("shake_hands", "run", *["laugh"] * (number == 4))
        for clip in range(2)
    ]
    for seed in range(30):
        found = select(rows, hold_out=0.5, seed=seed)
        sources = [{"_".join(name.split("_")[:2]) for name in ids(each)} for each in (found.train, found.validation)]
        assert sources[1]
        assert not sources[0] & sources[1]
        assert "laugh" in found.train.column("label")  # so that film 4 is never held out


def test_held_out_videos_depend_on_the_seed_only() -> None:
    first, again, other = (select(ucf(), seed=seed).validation for seed in (0, 0, 1))
    assert ids(first) == ids(again) != ids(other)


def test_test_split_is_not_used() -> None:
    tested = [labelled("v", "a", "val"), labelled("w", "new", "val")]
    found = select([*ucf(), *tested, labelled("t", "b", "test")], test_split="val")
    assert not (ids(found.train) | ids(found.validation)) & {"v", "w", "t"}
    assert found.classes == ["a", "b"]
    assert len(found.validation) == 8


@given(st.lists(st.sampled_from(["a", "b", "zebra", None]), min_size=1, max_size=8))
def test_labels_of_the_test_split_have_no_effect(labels: list[str | None]) -> None:
    def with_test(names: list[str | None]):
        return select([*ucf(4), *(labelled(f"t{i}", name, "test") for i, name in enumerate(names))])

    one, other = with_test(labels), with_test(["a"] * len(labels))
    assert one.classes == other.classes
    for name in ("train", "validation"):
        assert getattr(one, name).table.equals(getattr(other, name).table)


@pytest.mark.parametrize(("share", "train", "validation"), [(0.1, 36, 4), (0.2, 72, 8)])
def test_fraction_of_labels_applies_to_training_and_validation(share: float, train: int, validation: int) -> None:
    rows = [labelled(f"{label}{i}", label) for label in "abcd" for i in range(90)]
    rows += [labelled(f"v{label}{i}", label, "val") for label in "abcd" for i in range(10)]
    found = select(rows, share)
    for split, count in ((found.train, train), (found.validation, validation)):
        assert len(split) == count
        assert set(Counter(split.column("label")).values()) == {count // 4}


def test_fractions_of_labels_are_nested() -> None:
    one, two, five = (select(ucf(30), share).train for share in (0.01, 0.2, 0.5))
    assert ids(one) < ids(two) < ids(five)
    assert len(one) == 2  # at least one per class


def test_unusable_videos_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = select([*ucf(), labelled("x", None), labelled("y", "a", error="cut"), labelled("z", "a", "val")])
    assert not ids(found.train) & {"x", "y"}
    logged = [record.args for record in caplog.records]
    assert logged == [("x", "no label"), ("y", "cut")]


def test_validation_skips_classes_that_are_not_in_train(caplog: pytest.LogCaptureFixture) -> None:
    found = select([*ucf(), labelled("v", "a", "val"), labelled("w", "new", "val")])
    assert ids(found.validation) == {"v"}
    assert [record.args for record in caplog.records] == [(1, "new")]


def test_class_with_one_recording_is_not_held_out() -> None:
    rows = ucf(groups=1, clips=3, classes=tuple("abcdef"))
    found = select(rows, hold_out=0.9)
    assert set(found.train.column("label")) == set("abcdef")


def test_targets_are_class_indices() -> None:
    found = select([labelled("1", "zoo"), labelled("2", "art"), labelled("3", "zoo"), labelled("4", "art", "val")])
    assert found.classes == ["art", "zoo"]
    assert found.targets(found.train) == [1, 0, 1]
    assert found.targets(found.validation) == [0]


@pytest.mark.parametrize("rows", [ucf(classes=("a",)), [labelled("x", None)], [labelled("x", "a", "test")]])
def test_too_few_classes(rows: list[dict], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ManifestError, match=r"m\.parquet: split train"):
        select(rows)
    assert not caplog.records


# --- official splits ------------------------------------------------------------------------------


def test_splits_require_a_manifest_pattern(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--splits"):
        finetune_and_test(FinetuneRecipe(), "split1.parquet", "random", tmp_path, splits=[1, 2])


def write_manifest(path: Path, *labels: str | None, split: str = "test") -> Path:
    """Write a manifest with a training video of class x and videos with the given labels."""
    rows = [
        {"pair_id": str(i), "path": "a.mp4", "title": "", "label": label, "split": name}
        for i, (label, name) in enumerate([("x", "train"), *((label, split) for label in labels)])
    ]
    return manifest_from_rows(rows, path).write(path).path


def test_invalid_last_split_raises_before_the_first_training(tmp_path: Path) -> None:
    write_manifest(tmp_path / "split1.parquet", "x")
    manifest, run = str(tmp_path / "split{}.parquet"), tmp_path / "run"
    with pytest.raises(ManifestError, match=r"split2\.parquet"):
        finetune_and_test(FinetuneRecipe(), manifest, "random", run, splits=[1, 2])
    write_manifest(tmp_path / "split2.parquet")
    with pytest.raises(ManifestError, match=r"split2\.parquet: split test"):
        finetune_and_test(FinetuneRecipe(), manifest, "random", run, splits=[1, 2])
    with pytest.raises(ModelError, match="model1"):
        finetune_and_test(FinetuneRecipe(), manifest, f"{tmp_path}/model{{}}", run, splits=[1, 2])
    assert not run.exists()


@pytest.mark.parametrize(("labels", "item"), [(("x", None), "'2'"), ((), "split test")])
def test_invalid_test_split_raises_before_the_training(tmp_path: Path, labels: tuple, item: str) -> None:
    path = write_manifest(tmp_path / "m.parquet", *labels)
    with pytest.raises(ManifestError, match=rf"m\.parquet: .*{item}"):
        finetune_and_test(FinetuneRecipe(), str(path), "random", tmp_path / "run")
    assert not (tmp_path / "run").exists()
