"""Recipes: what is packaged, what may be overridden, and what every mistake is told."""

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
from crosspair.recipes import (
    dump_recipe,
    load_recipe,
    recipe_hash,
    recipe_names,
    recipe_of,
    recipe_settings,
)

PAPERS = ["instagram300k-resnet50", "kinetics210k-resnet34", "kinetics210k-resnet50"]


def refused(message: str, *overrides: str, name: str = "laptop") -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(name, overrides)
    assert "\n" not in str(caught.value)


def refused_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    refused(message, name=str(file))


# --- what is packaged ---------------------------------------------------------------------------


def test_the_packaged_recipes_are_all_there() -> None:
    assert {*PAPERS, "laptop", "quickstart"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_loads_and_goes_round(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe_of(recipe_settings(recipe)) == recipe
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_recipes_hold_the_papers_numbers(name: str) -> None:
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


def test_every_field_says_what_it_is() -> None:
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
def test_an_override_changes_its_key_alone(override: str, key: str, value: Any) -> None:
    before = recipe_settings(load_recipe("laptop"))
    after = recipe_settings(load_recipe("laptop", [override]))
    assert after.pop(key) == value
    before.pop(key)
    assert after == before


def test_the_last_of_two_overrides_holds() -> None:
    assert load_recipe("laptop", ["clip.size=96", "clip.size=80"]).clip.size == 80


@settings(max_examples=15)
@given(
    lr=st.floats(1e-6, 10),
    epochs=st.integers(1, 1000),
    depth=st.sampled_from([10, 18, 34, 50, 101]),
    stage2=st.none() | st.integers(0, 300),
    steps=st.lists(st.integers(1, 300), max_size=3),
)
def test_any_recipe_goes_round(
    lr: float, epochs: int, depth: int, stage2: int | None, steps: list[int]
) -> None:
    chosen = {
        "optimizer.lr": lr, "training.epochs": epochs, "video.depth": depth,
        "curriculum.stage2_epoch": stage2, "optimizer.step_epochs": steps,
    }  # fmt: skip
    recipe = recipe_of(chosen)
    assert {key: recipe_settings(recipe)[key] for key in chosen} == chosen
    assert recipe_of(recipe_settings(recipe)) == recipe
    assert recipe.optimizer.step_epochs == tuple(steps)


def test_what_is_left_out_has_the_default() -> None:
    assert recipe_of({}) == Recipe()


def test_the_hash_tells_recipes_apart() -> None:
    plain = load_recipe("laptop")
    assert recipe_hash(plain) == recipe_hash(load_recipe("laptop"))
    assert len(recipe_hash(plain)) == 12
    hashes = {recipe_hash(load_recipe("laptop", [f"training.seed={seed}"])) for seed in range(5)}
    assert len(hashes) == 5


# --- mistakes -----------------------------------------------------------------------------------


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
def test_an_unknown_key_is_told_with_the_nearest_one(given_key: str, nearest: str) -> None:
    message = f"^laptop: '{given_key}' is no key of a recipe; did you mean '{nearest}'$"
    refused(message, f"{given_key}=3")


def test_a_key_like_no_other_lists_them_all() -> None:
    refused("^laptop: 'zzz' is no key of a recipe; there are clip.size, .*export$", "zzz=1")


@pytest.mark.parametrize(
    ("override", "cause"),
    [
        ("training.epochs=2.5", "2.5 does not do .*int"),
        ("training.epochs=many", "'many' does not do .*int"),
        ("training.epochs=true", "True does not do .*int"),
        ("clip.flip=0", "0 does not do .*bool"),
        ("clip.scale=[1, 2, 3]", "does not do .*2 elements"),
        ("optimizer.step_epochs=3", "3 does not do .*tuple"),
        ("curriculum.stage2_epoch=soon", "'soon' does not do .*int.*None"),
        ("video.depth=20", "20 does not do .*10, 18, 34, 50, 101"),
        ("text.encoder=wrods", "'wrods' does not do .*'words', 'transformer'"),
        ("text.source=7", "7 does not do .*str"),
    ],
)
def test_a_value_of_the_wrong_type_names_key_value_and_type(override: str, cause: str) -> None:
    refused(rf"^laptop: {override.partition('=')[0]}: .*{cause}", override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs=0", "training.epochs is 0; it must be above 0"),
        ("training.epochs=", "training.epochs is None; it must be above 0"),
        ("optimizer.lr=-1", "optimizer.lr is -1.0; it must be above 0"),
        ("optimizer.lr=.nan", "optimizer.lr is nan; it must be a finite number"),
        ("objective.temperature=.inf", "objective.temperature is inf; it must be a finite"),
        ("training.seed=-1", "training.seed is -1; it must not be below 0"),
        ("training.seed=4294967296", "training.seed is 4294967296; it ends at"),
        ("training.workers=-1", "training.workers is -1; it must not be below 0"),
        ("optimizer.clip_norm=-1", "optimizer.clip_norm is -1.0; it must not be below 0"),
        ("curriculum.text_lr=-1", "curriculum.text_lr is -1.0; it must not be below 0"),
        ("objective.bank_momentum=1", r"objective.bank_momentum must lie in \[0, 1\)"),
        ("clip.scale=[0.9, 1]", "clip.scale and clip.test_scale must be at least 1, ascending"),
        ("clip.scale=[1.5, 1.2]", "clip.scale and clip.test_scale must be at least 1, ascending"),
        ("clip.test_scale=0.5", "clip.scale and clip.test_scale must be at least 1, ascending"),
        ("training.accumulate=3", "training.accumulate must divide training.batch_size"),
        (
            "training.accumulate=32",
            "training.batch_size is 32 in 32 parts; batch normalisation needs two clips at a time",
        ),
        ("training.batch_size=1", "training.batch_size is 1 in 1 parts; batch normalisation needs"),
    ],
)
def test_a_value_out_of_range_is_told(override: str, message: str) -> None:
    refused(f"^laptop: {message}", override)


@pytest.mark.parametrize("override", ["training.epochs", "training.epochs 3", ""])
def test_an_override_without_a_value(override: str) -> None:
    refused(rf"^'{override}' is not of the form key=value, as training\.epochs=10$", override)


def test_an_override_that_is_not_yaml() -> None:
    refused(r"^clip\.scale=\[1: not YAML \(.*\)$", "clip.scale=[1")


@pytest.mark.parametrize("text", ["", "- 1\n", "just words", "[1, 2]", "3"])
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    refused_file(tmp_path, text, "r.yaml: a recipe is a YAML mapping of sections, not ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip:\n\tsize: 3", r"r.yaml: not YAML \(.*line 2"),
        ("clip: 3", "r.yaml: 'clip' is no key of a recipe"),
        ("clip:", "r.yaml: 'clip' is no key of a recipe"),
        ("3: 4", "r.yaml: '3' is no key of a recipe"),
        ("clip:\n  3: 4", "r.yaml: 'clip.3' is no key of a recipe"),
        ("clip:\n  flip: {a: 1}", "r.yaml: clip.flip: {'a': 1} does not do"),
    ],
)
def test_a_file_with_a_mistake(tmp_path: Path, text: str, message: str) -> None:
    refused_file(tmp_path, text, message)


def test_no_such_recipe() -> None:
    refused("^no recipe 'latop'; did you mean 'laptop', or give a file$", name="latop")
    refused("^recipe file none.yaml cannot be read: .*No such file", name="none.yaml")


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"clip: {size: 3} # caf\xe9")
    refused("r.yaml cannot be read: ", name=str(tmp_path / "r.yaml"))
