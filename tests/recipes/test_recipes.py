"""Pre-training recipes: packaged values, overrides, round trips, and errors."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspair import config
from crosspair.config import FinetuneRecipe, Recipe
from crosspair.errors import RecipeError
from crosspair.files import read_yaml
from crosspair.recipes import dump_recipe, load_recipe, recipe_hash, recipe_names, recipe_of, recipe_settings

PAPERS = ["instagram300k-resnet50", "kinetics210k-resnet34", "kinetics210k-resnet50"]


def refused(message: str, *overrides: str, name: str = "laptop") -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(name, overrides)
    assert "\n" not in str(caught.value)


def refused_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    refused(message, name=str(file))


# --- packaged recipes ---------------------------------------------------------------------------


def test_packaged_recipes() -> None:
    assert {*PAPERS, "laptop", "quickstart"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_round_trips(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe_of(recipe_settings(recipe)) == recipe
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


@pytest.mark.parametrize("name", PAPERS)
def test_values_of_the_paper(name: str) -> None:
    recipe = load_recipe(name)
    large = "resnet50" in name
    assert recipe.video.depth == (50 if large else 34)
    assert recipe.video.width == 64
    assert recipe.clip.size == (224 if large else 112)
    assert (recipe.clip.frames, recipe.clip.stride) == (8, 4)
    sides = [round(scale * recipe.clip.size) for scale in recipe.clip.scale]
    assert sides == ([256, 340] if large else [128, 170])
    assert round(recipe.clip.test_scale * recipe.clip.size) == (256 if large else 128)
    assert (recipe.head.embedding, recipe.head.hidden) == (256, 512)
    assert (recipe.text.encoder, recipe.text.source) == ("transformer", "distilbert-base-uncased")
    assert recipe.text.column == "title_clean"
    assert recipe.objective.temperature == 0.07
    assert recipe.objective.noise_samples == 4096
    assert recipe.objective.bank_momentum == 0.5
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.momentum) == ("sgd", 0.2, 0.9)
    assert optimizer.weight_decay == 1e-4
    curriculum = recipe.curriculum
    assert curriculum.strategy == "curriculum"
    assert (curriculum.stage2_lr, curriculum.text_lr) == (0.02, 3e-5)
    epochs = {PAPERS[0]: None, PAPERS[1]: 170, PAPERS[2]: 110}
    assert curriculum.stage2_epoch == epochs[name]
    assert (recipe.training.epochs, recipe.training.batch_size) == (300, 256)


def test_every_field_is_documented() -> None:
    source = inspect.getsource(config)
    for kind in (Recipe, FinetuneRecipe):
        for section in dataclasses.fields(kind):
            for field in dataclasses.fields(getattr(kind(), section.name)):
                _, _, behind = source.partition(f"\n    {field.name}: ")
                assert behind.split("\n", 1)[1].lstrip().startswith('"""'), field.name


# --- overrides ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("training.epochs=3", "training.epochs", 3),
        ("--training.epochs=3", "training.epochs", 3),
        ("optimizer.lr=1e-3", "optimizer.lr", 1e-3),
        ("optimizer.lr=1", "optimizer.lr", 1.0),
        ("clip.flip=no", "clip.flip", False),
        ("clip.scale=[1, 1.5]", "clip.scale", [1.0, 1.5]),
        ("optimizer.clip_norm=null", "optimizer.clip_norm", None),
        ("optimizer.clip_norm=2.5", "optimizer.clip_norm", 2.5),
        ("optimizer.step_epochs=[10, 20]", "optimizer.step_epochs", [10, 20]),
        ("text.source=/a folder/with=sign.bin", "text.source", "/a folder/with=sign.bin"),
        ("video.depth=101", "video.depth", 101),
    ],
)
def test_an_override_changes_only_its_key(override: str, key: str, value: Any) -> None:
    before = recipe_settings(load_recipe("laptop"))
    after = recipe_settings(load_recipe("laptop", [override]))
    assert after.pop(key) == value
    before.pop(key)
    assert after == before


def test_the_last_of_two_overrides_is_used() -> None:
    assert load_recipe("laptop", ["clip.size=96", "clip.size=80"]).clip.size == 80


@settings(max_examples=15)
@given(
    lr=st.floats(1e-6, 10),
    epochs=st.integers(1, 1000),
    depth=st.sampled_from([10, 18, 34, 50, 101]),
    stage2=st.none() | st.integers(0, 300),
    steps=st.lists(st.integers(1, 300), max_size=3),
)
def test_any_recipe_round_trips(lr: float, epochs: int, depth: int, stage2: int | None, steps: list[int]) -> None:
    chosen = {
        "optimizer.lr": lr, "training.epochs": epochs, "video.depth": depth,
        "curriculum.stage2_epoch": stage2, "optimizer.step_epochs": steps,
    }  # fmt: skip
    recipe = recipe_of(chosen)
    assert {key: recipe_settings(recipe)[key] for key in chosen} == chosen
    assert recipe_of(recipe_settings(recipe)) == recipe
    assert recipe.optimizer.step_epochs == tuple(steps)


def test_missing_keys_have_their_defaults() -> None:
    assert recipe_of({}) == Recipe()


def test_hashes_of_different_recipes_differ() -> None:
    plain = load_recipe("laptop")
    assert recipe_hash(plain) == recipe_hash(load_recipe("laptop"))
    assert len(recipe_hash(plain)) == 12
    hashes = {recipe_hash(load_recipe("laptop", [f"training.seed={seed}"])) for seed in range(5)}
    assert len(hashes) == 5


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_key", "nearest"),
    [
        ("training.epoch", "training.epochs"),
        ("trainng.epochs", "training.epochs"),
        ("epochs", "training.epochs"),
        ("lr", "optimizer.lr"),
        ("text_encoder", "text.encoder"),
        ("clip.sise", "clip.size"),
        ("training.batchsize", "training.batch_size"),
    ],
)
def test_an_unknown_key_suggests_the_nearest_one(given_key: str, nearest: str) -> None:
    refused(f"^laptop: '{given_key}'.*'{nearest}'", f"{given_key}=3")


def test_an_unknown_key_without_a_similar_one_lists_all() -> None:
    refused("^laptop: 'zzz'.* clip.size, .*training.export$", "zzz=1")


@pytest.mark.parametrize(
    ("override", "value", "expected"),
    [
        ("training.epochs=2.5", "2.5", "int"),
        ("training.epochs=many", "'many'", "int"),
        ("training.epochs=true", "True", "int"),
        ("clip.flip=0", "0", "bool"),
        ("clip.scale=[1, 2, 3]", r"\[1, 2, 3\]", "2 elements"),
        ("optimizer.step_epochs=3", "3", "tuple"),
        ("optimizer.clip_norm=much", "'much'", "float or null"),
        ("curriculum.stage2_epoch=soon", "'soon'", "int or null"),
        ("video.depth=20", "20", "10, 18, 34, 50, 101"),
        ("text.encoder=wrods", "'wrods'", "'words', 'transformer'"),
        ("text.source=7", "7", "str"),
    ],
)
def test_a_value_of_the_wrong_type(override: str, value: str, expected: str) -> None:
    refused(rf"^laptop: {override.partition('=')[0]} is {value};.*{expected}", override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs=0", "training.epochs is 0"),
        ("training.epochs=", "training.epochs"),
        ("training.seed=", "training.seed"),
        ("text.source=", "text.source"),
        ("optimizer.lr=-1", "optimizer.lr is -1.0"),
        ("optimizer.lr=.nan", "optimizer.lr is nan"),
        ("optimizer.weight_decay=.inf", "optimizer.weight_decay is inf"),
        ("optimizer.text_head_factor=-1", "optimizer.text_head_factor is -1.0"),
        ("objective.temperature=.inf", "objective.temperature is inf"),
        ("training.seed=-1", "training.seed is -1"),
        ("training.seed=4294967296", "training.seed is 4294967296"),
        ("training.workers=-1", "training.workers is -1"),
        ("optimizer.clip_norm=-1", "optimizer.clip_norm is -1.0"),
        ("curriculum.text_lr=-1", "curriculum.text_lr is -1.0"),
        ("objective.bank_momentum=1", "objective.bank_momentum is 1.0"),
        ("clip.size=31", "clip.size is 31"),
        ("clip.scale=[0.9, 1]", r"clip.scale is \(0.9, 1.0\)"),
        ("clip.scale=[1.5, 1.2]", r"clip.scale is \(1.5, 1.2\)"),
        ("clip.test_scale=0.5", "clip.test_scale is 0.5"),
        ("training.accumulate=3", "training.batch_size is 32.*training.accumulate"),
        ("training.accumulate=32", "training.batch_size is 32.*training.accumulate=32"),
        ("training.batch_size=1", "training.batch_size is 1 "),
    ],
)
def test_a_value_out_of_range(override: str, message: str) -> None:
    refused(f"^laptop: {message}", override)


def test_configurations_check_themselves() -> None:
    with pytest.raises(RecipeError, match=r"^clip\.frames is 0"):
        config.ClipConfig(frames=0)
    with pytest.raises(RecipeError, match=r"^optimizer\.lr is 0"):
        dataclasses.replace(Recipe().optimizer, lr=0)
    with pytest.raises(RecipeError, match=r"^clip\.size is 16"):
        Recipe(clip=config.ClipConfig(size=16))


@pytest.mark.parametrize("override", ["training.epochs", "training.epochs 3", ""])
def test_an_override_without_a_value(override: str) -> None:
    refused(rf"^'{override}'", override)


def test_an_override_that_is_not_yaml() -> None:
    refused(r"^clip\.scale=\[1,", "clip.scale=[1")


@pytest.mark.parametrize("text", ["", "- 1\n", "just words", "[1, 2]", "3"])
def test_a_file_that_is_not_a_mapping(tmp_path: Path, text: str) -> None:
    refused_file(tmp_path, text, "r.yaml: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip:\n\tsize: 3", "r.yaml, line 2"),
        ("clip:\n  size: 64\n  size: 96\n", "r.yaml, line 3: .*'size'"),
        ("clip: {size: 64}\nvideo: {}\nclip: {frames: 8}\n", "r.yaml, line 3: .*'clip'"),
        ("clip: {[1]: 2}", "r.yaml, line 1"),
        ("clip: 3", "r.yaml: 'clip'"),
        ("clip:", "r.yaml: 'clip'"),
        ("3: 4", "r.yaml: '3'"),
        ("clip:\n  3: 4", "r.yaml: 'clip.3'"),
        ("clip:\n  flip: {a: 1}", "r.yaml: clip.flip is {'a': 1}"),
    ],
)
def test_an_invalid_file(tmp_path: Path, text: str, message: str) -> None:
    refused_file(tmp_path, text, message)


def test_merge_keys_are_no_duplicates(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("clip: &clip {size: 64, frames: 4}\nclip2: {<<: *clip, frames: 8}\n")
    settings = read_yaml(tmp_path / "r.yaml", "r.yaml")
    assert settings["clip2"] == {"size": 64, "frames": 8}


def test_an_impossible_date() -> None:
    refused("^text.source=2026-02-30", "text.source=2026-02-30")


def test_no_such_recipe() -> None:
    refused("'latop'.*'laptop'", name="latop")
    refused("none.yaml .*No such file", name="none.yaml")


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"clip: {size: 3} # caf\xe9")
    refused("r.yaml .*utf-8", name=str(tmp_path / "r.yaml"))
