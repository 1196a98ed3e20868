"""Recipes: packaged values, overrides, round trips, and errors."""

from __future__ import annotations

import dataclasses
import inspect
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspair import config
from crosspair.config import FinetuneRecipe, Recipe
from crosspair.distributed import World
from crosspair.errors import RecipeError
from crosspair.objectives import (
    CrossPair,
    ExactSoftmax,
    InBatch,
    LearnedInstance,
    NoiseContrastive,
    Ranking,
    SelfInstance,
    SigLIP,
    build_objective,
)
from crosspair.recipes import (
    dump_recipe,
    load_recipe,
    make_recipe,
    read_any_recipe,
    read_recipe,
    recipe_hash,
    recipe_names,
    recipe_of,
    recipe_settings,
)
from crosspair.training.schedule import compute_lr_factor

PAPERS = ["instagram300k-resnet50", "kinetics210k-resnet34", "kinetics210k-resnet50"]
FINETUNE_PAPERS = ["hmdb51", "kinetics400", "ucf101"]
ALL = [(kind, name) for kind in (Recipe, FinetuneRecipe) for name in recipe_names(kind)]


def refused(message: str, *overrides: str, name: str = "laptop", kind: type = Recipe) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(kind, name, overrides)
    assert "\n" not in str(caught.value)


# --- packaged recipes ---------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_packaged_recipe_round_trips(kind: type, name: str, tmp_path: Path) -> None:
    recipe = read_recipe(kind, name)
    assert make_recipe(kind, recipe_settings(recipe)) == recipe
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert read_recipe(kind, str(tmp_path / "recipe.yaml")) == recipe


@pytest.mark.parametrize("name", PAPERS)
def test_values_of_the_paper(name: str) -> None:
    recipe = load_recipe(name)
    large = "resnet50" in name
    assert (recipe.video.depth, recipe.video.width) == (50 if large else 34, 64)
    assert recipe.clip.size == (224 if large else 112)
    assert (recipe.clip.frames, recipe.clip.stride) == (8, 4)
    sides = [round(scale * recipe.clip.size) for scale in recipe.clip.scale]
    assert sides == ([256, 340] if large else [128, 170])
    assert round(recipe.clip.test_scale * recipe.clip.size) == (256 if large else 128)
    assert (recipe.head.embedding, recipe.head.hidden) == (256, 512)
    text, objective, optimizer = recipe.text, recipe.objective, recipe.optimizer
    column = "title" if "instagram" in name else "title_clean"
    assert (text.encoder, text.source, text.column) == ("transformer", "distilbert-base-uncased", column)
    assert (objective.name, objective.estimate) == ("cross_pair", "nce")
    assert (objective.temperature, objective.noise_samples, objective.bank_momentum) == (0.07, 4096, 0.5)
    assert (optimizer.name, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.2, 0.9, 1e-4)
    assert (recipe.curriculum.strategy, recipe.curriculum.stage2_lr, recipe.curriculum.text_lr) == (
        "curriculum", 0.02, 3e-5,
    )  # fmt: skip
    assert recipe.curriculum.stage2_epoch == {PAPERS[0]: None, PAPERS[1]: 170, PAPERS[2]: 110}[name]
    assert (recipe.training.epochs, recipe.training.batch_size) == (300, 256)


@pytest.mark.parametrize("name", PAPERS)
def test_schedule_of_the_authors_code(name: str) -> None:
    """The comment of each recipe gives it as overrides."""
    text = (resources.files("crosspair.recipes") / f"{name}.yaml").read_text(encoding="utf-8")
    comment = "".join(line[1:] for line in text.splitlines() if line.startswith("#"))
    recipe = load_recipe(name, re.findall(r"\b(?:optimizer|curriculum)\.\w+=[^\s]*[^\s.]", comment))
    assert recipe.optimizer.clip_norm == 20
    assert recipe.curriculum.stage2_epoch == 150
    rates = [
        recipe.optimizer.lr * compute_lr_factor(epoch, 300, recipe.optimizer) for epoch in (0, 99.9, 100, 201, 250)
    ]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.0001])


@pytest.mark.parametrize("name", FINETUNE_PAPERS)
def test_fine_tuning_values_of_the_paper(name: str) -> None:
    recipe, default = read_recipe(FinetuneRecipe, name), FinetuneRecipe()
    assert (recipe.clip.frames, recipe.clip.stride, recipe.clip.size) == (16, 4, 224)
    assert (recipe.video.depth, recipe.video.width) == (50, 64)
    assert round(recipe.clip.test_scale * recipe.clip.size) == 256
    assert recipe.multiview.test_clip(recipe.clip).size == 256
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("sgd", 1e-2, 5e-4)
    assert (optimizer.momentum, optimizer.schedule, recipe.plateau.drops) == (0.9, "constant", 2)
    assert recipe.classifier == config.ClassifierConfig(dropout=0, label_smoothing=0, frozen_norm=False)
    assert recipe.training.export == "best"
    assert (optimizer, recipe.plateau, recipe.classifier) == (default.optimizer, default.plateau, default.classifier)


def test_the_one_day_recipe_differs_from_the_paper_in_speed_settings_only() -> None:
    papers, day = (recipe_settings(load_recipe(f"kinetics210k-resnet50{name}")) for name in ("", "-day"))
    changed = ("accumulate", "precision", "workers", "validate_every", "log_every")
    assert {key for key in papers if papers[key] != day[key]} == {f"training.{key}" for key in changed}


def test_every_field_is_documented() -> None:
    source = inspect.getsource(config)
    for kind in (Recipe, FinetuneRecipe):
        for section in dataclasses.fields(kind):
            for field in dataclasses.fields(getattr(kind(), section.name)):
                _, _, behind = source.partition(f"\n    {field.name}: ")
                assert behind.split("\n", 1)[1].lstrip().startswith('"""'), field.name


def test_hashes_are_stable() -> None:
    # Stored in results and run folders of earlier versions.
    assert recipe_hash(Recipe()) == "9ffdf704e121"
    assert recipe_hash(FinetuneRecipe()) == "1658554bb534"
    assert recipe_hash(load_recipe("laptop", ["training.seed=1"])) != recipe_hash(load_recipe("laptop"))


@pytest.mark.parametrize(
    ("overrides", "estimate", "discrimination"),
    [
        ([], NoiseContrastive, CrossPair),
        (["estimate=softmax"], ExactSoftmax, CrossPair),
        (["name=self_instance"], NoiseContrastive, SelfInstance),
        (["name=self_instance", "instances=weights", "estimate=softmax"], ExactSoftmax, LearnedInstance),
        (["name=ranking", "margin=0.3"], Ranking, None),
        (["name=in_batch", "estimate=nce"], InBatch, None),
        (["name=siglip"], SigLIP, None),
    ],
)
def test_build_objective(overrides, estimate, discrimination) -> None:
    recipe = load_recipe("laptop", [f"objective.{each}" for each in overrides])
    objective = build_objective(recipe.objective, 10, 4, 0, World())
    assert type(objective) is estimate
    if discrimination:
        assert type(objective.discrimination) is discrimination
        expected = 1.0 if discrimination is LearnedInstance else 0.5  # laptop's
        assert objective.discrimination.temperature == expected
    elif estimate is not SigLIP:
        assert (objective.margin if estimate is Ranking else objective.temperature) in (0.3, 0.5)


# --- overrides ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("--training.epochs=3", "training.epochs", 3),
        ("optimizer.lr=1e-3", "optimizer.lr", 1e-3),
        ("optimizer.lr=1", "optimizer.lr", 1.0),
        ("clip.flip=no", "clip.flip", False),
        ("clip.scale=[1, 1.5]", "clip.scale", [1.0, 1.5]),
        ("optimizer.clip_norm=null", "optimizer.clip_norm", None),
        ("optimizer.step_epochs=[10, 20]", "optimizer.step_epochs", [10, 20]),
        ("text.source=/a folder/with=sign.bin", "text.source", "/a folder/with=sign.bin"),
    ],
)
def test_an_override_changes_only_its_key(override: str, key: str, value: Any) -> None:
    overrides = ["clip.flip=yes", "clip.scale=[1, 1]", override]  # the last one of a key is used
    before, after = (recipe_settings(load_recipe("laptop", each)) for each in (overrides[:2], overrides))
    assert after == {**before, key: value}
    assert type(after[key]) is type(value)


@settings(max_examples=15)
@given(
    lr=st.floats(1e-6, 10),
    depth=st.sampled_from([10, 18, 34, 50, 101]),
    stage2=st.none() | st.integers(0, 300),
    steps=st.lists(st.integers(1, 300), max_size=3),
)
def test_any_recipe_round_trips(lr: float, depth: int, stage2: int | None, steps: list[int]) -> None:
    chosen = {
        "optimizer.lr": lr, "video.depth": depth, "curriculum.stage2_epoch": stage2, "optimizer.step_epochs": steps,
    }  # fmt: skip
    recipe = recipe_of(chosen)
    assert recipe_settings(recipe) == {**recipe_settings(Recipe()), **chosen}
    assert recipe_of(recipe_settings(recipe)) == recipe
    assert recipe.optimizer.step_epochs == tuple(steps)


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_key", "nearest"),
    [
        ("training.epoch", "training.epochs"),
        ("trainng.epochs", "training.epochs"),
        ("lr", "optimizer.lr"),
        ("text_encoder", "text.encoder"),
        ("training.batchsize", "training.batch_size"),
    ],
)
def test_an_unknown_key_suggests_the_nearest_one(given_key: str, nearest: str) -> None:
    refused(f"^laptop: '{given_key}'.*'{nearest}'", f"{given_key}=3")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.epochs=2.5", "int"),
        ("training.epochs=true", "int"),
        ("clip.flip=0", "bool"),
        ("clip.scale=[1, 2, 3]", "2 elements"),
        ("optimizer.clip_norm=much", "float or null"),
        ("video.depth=20", "10, 18, 34, 50, 101"),
        ("text.encoder=wrods", "'words', 'transformer'"),
        ("text.source=7", "str"),
        ("training.epochs=0", ""),
        ("training.epochs=", ""),
        ("optimizer.lr=.nan", ""),
        ("optimizer.weight_decay=.inf", ""),
        ("optimizer.text_head_factor=-1", ""),
        ("training.seed=4294967296", ""),
        ("training.workers=-1", ""),
        ("training.ema=1", ""),
        ("optimizer.clip_norm=-1", ""),
        ("objective.bank_momentum=1", ""),
        ("clip.size=31", ""),
        ("clip.scale=[0.9, 1]", ""),
        ("clip.scale=[1.5, 1.2]", ""),
        ("clip.area=[0, 1]", ""),
        ("clip.aspect=[1, 1]", "clip.area"),
        ("clip.area=[0.5, 1.1]", ""),
        ("clip.aspect=[2, 1]", ""),
        ("clip.hue=0.6", ""),
        ("clip.grayscale=1.1", ""),
        ("clip.test_scale=0.5", ""),
        ("objective.name=rank", "'cross_pair', 'self_instance', "),
        ("objective.instances=weights", "cross_pair.*self_instance"),
        ("objective.margin=0.4", "cross_pair.*ranking"),
        ("objective.learnable_temperature=true", "cross_pair.*nce"),
        ("objective.normalizer_decay=1", ""),
    ],
)
def test_an_invalid_value(override: str, expected: str) -> None:
    refused(rf"^laptop: {override.partition('=')[0]} .*{expected}", override)


@pytest.mark.parametrize("override", ["training.accumulate=3", "training.accumulate=32", "training.batch_size=1"])
def test_micro_batches_of_equal_size_above_1(override: str) -> None:
    refused("^laptop: training.batch_size", override)


@pytest.mark.parametrize("name", ["ranking", "in_batch", "siglip"])
def test_objectives_with_negatives_of_the_batch(name: str) -> None:
    refused("^laptop: objective.estimate", f"objective.name={name}", "objective.estimate=softmax")


def test_video_term_requires_two_views() -> None:
    refused("^laptop: video.views", "objective.video_weight=1", "video.train=head", "video.views=1")
    refused("^laptop: objective.video_weight", "objective.video_weight=-1")


@pytest.mark.parametrize(
    "override",
    [
        "labels.share=0", "labels.share=1.5", "labels.hold_out=1", "classifier.dropout=1",
        "classifier.label_smoothing=-0.1", "classifier.frozen_norm=1", "plateau.drops=-1", "plateau.patience=0",
        "text.column=title", "optimizer.text_head_factor=0", "multiview.crop_scale=1.2",
    ],
)  # fmt: skip
def test_an_invalid_fine_tuning_value(override: str) -> None:
    refused(f"^ucf101: .*{override.partition('=')[0]}", override, name="ucf101", kind=FinetuneRecipe)


def test_configurations_check_themselves() -> None:
    with pytest.raises(RecipeError, match=r"^clip\.frames"):
        config.ClipConfig(frames=0)
    with pytest.raises(RecipeError, match=r"^optimizer\.lr"):
        dataclasses.replace(Recipe().optimizer, lr=0)
    with pytest.raises(RecipeError, match=r"^clip\.size"):
        Recipe(clip=config.ClipConfig(size=16))


@pytest.mark.parametrize("override", ["training.epochs", "", "clip.scale=[1", "text.source=2026-02-30"])
def test_an_override_that_cannot_be_parsed(override: str) -> None:
    refused(f"^'?{override.partition('[')[0]}", override)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "r.yaml"),
        (b"- 1\n", "r.yaml"),
        (b"just words", "r.yaml"),
        (b"clip:\n\tsize: 3", "r.yaml, line 2"),
        (b"clip:\n  size: 64\n  size: 96\n", "r.yaml, line 3: .*'size'"),
        (b"clip: {size: 64}\nvideo: {}\nclip: {frames: 8}\n", "r.yaml, line 3: .*'clip'"),
        (b"clip: {[1]: 2}", "r.yaml, line 1"),
        (b"clip: 3", "r.yaml: 'clip'"),
        (b"clip:\n  3: 4", "r.yaml: 'clip.3'"),
        (b"clip:\n  flip: {a: 1}", "r.yaml: clip.flip"),
        (b"clip: {size: 3} # caf\xe9", "r.yaml .*utf-8"),
    ],
)
def test_an_invalid_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    refused(message, name=str(tmp_path / "r.yaml"))


def test_no_such_recipe() -> None:
    refused("'latop'.*'laptop'", name="latop")
    refused("none.yaml", name="none.yaml")
    refused("'ucf101' .*fine-tuning", name="ucf101")
    refused("'laptop' .*pre-training", name="laptop", kind=FinetuneRecipe)


def test_a_recipe_of_either_kind(tmp_path: Path) -> None:
    for kind, name in ALL:
        file = tmp_path / f"{name}.yaml"
        file.write_text(dump_recipe(read_recipe(kind, name)))
        assert read_any_recipe(name) == read_any_recipe(str(file)) == read_recipe(kind, name)
    for override in ("training.workrs=8", "curriculum.strategi=joint"):
        with pytest.raises(RecipeError, match=override.partition("=")[0]):
            read_any_recipe(str(tmp_path / "laptop.yaml"), [override])
    with pytest.raises(RecipeError, match="nothing"):
        read_any_recipe("nothing")
