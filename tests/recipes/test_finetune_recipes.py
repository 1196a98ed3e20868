"""Fine-tuning recipes: packaged values, and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from crosspair.config import FinetuneRecipe, Recipe
from crosspair.errors import RecipeError
from crosspair.recipes import (
    dump_recipe,
    load_recipe,
    make_recipe,
    read_recipe,
    recipe_hash,
    recipe_names,
    recipe_settings,
)

NAMES = recipe_names(FinetuneRecipe)
PAPERS = ["hmdb51", "kinetics400", "ucf101"]


def refused(message: str, *overrides: str, name: str = "ucf101") -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(FinetuneRecipe, name, overrides)
    assert "\n" not in str(caught.value)


def test_packaged_recipes() -> None:
    assert {*PAPERS, "laptop-finetune"} <= set(NAMES)
    assert not set(NAMES) & set(recipe_names(Recipe))


@pytest.mark.parametrize("name", NAMES)
def test_every_packaged_recipe_round_trips(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(FinetuneRecipe, name)
    assert make_recipe(FinetuneRecipe, recipe_settings(recipe)) == recipe
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert read_recipe(FinetuneRecipe, str(tmp_path / "recipe.yaml")) == recipe


@pytest.mark.parametrize("name", PAPERS)
def test_values_of_the_paper(name: str) -> None:
    recipe = read_recipe(FinetuneRecipe, name)
    assert (recipe.clip.frames, recipe.clip.stride) == (16, 4)
    assert (recipe.video.depth, recipe.video.width, recipe.clip.size) == (50, 64, 224)
    assert round(recipe.clip.test_scale * recipe.clip.size) == 256
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("sgd", 1e-2, 5e-4)
    assert optimizer.momentum == 0.9
    assert (optimizer.schedule, recipe.plateau.drops) == ("constant", 2)
    assert recipe.classifier.dropout == recipe.classifier.label_smoothing == 0
    assert not recipe.classifier.frozen_norm
    assert recipe.training.export == "best"
    assert 0 < recipe.labels.hold_out < 1


@pytest.mark.parametrize("name", PAPERS)
def test_the_defaults_are_those_of_the_paper(name: str) -> None:
    default, recipe = FinetuneRecipe(), read_recipe(FinetuneRecipe, name)
    assert default.optimizer == recipe.optimizer
    assert default.plateau == recipe.plateau
    assert default.classifier == recipe.classifier
    assert default.clip.frames == recipe.clip.frames


def test_missing_keys_of_a_section_have_their_defaults() -> None:
    recipe = make_recipe(FinetuneRecipe, {"training.epochs": 3, "clip.size": 64})
    assert (recipe.training.epochs, recipe.training.export) == (3, "best")
    assert (recipe.clip.size, recipe.clip.frames) == (64, 16)


def test_hashes_of_different_recipes_differ() -> None:
    recipes = [read_recipe(FinetuneRecipe, name) for name in NAMES]
    hashes = {recipe_hash(recipe) for recipe in recipes}
    assert len(hashes) >= len(NAMES) - 1  # those of UCF101 and HMDB51 are equal
    assert recipe_hash(load_recipe("laptop")) not in hashes


def test_a_recipe_of_the_other_kind() -> None:
    refused("'laptop' .*pre-training.*hmdb51", name="laptop")
    with pytest.raises(RecipeError, match=r"'ucf101' .*fine-tuning.*laptop"):
        load_recipe("ucf101")
    refused("'ucf10'.*'ucf101'", name="ucf10")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("text.column=title", "'text.column'"),
        ("dropout=0.5", "'dropout'.*'classifier.dropout'"),
        ("optimizer.text_head_factor=0", "'optimizer.text_head_factor'"),
        ("labels.share=0", "labels.share is 0.0"),
        ("labels.share=1.5", "labels.share is 1.5"),
        ("labels.hold_out=1", "labels.hold_out is 1.0"),
        ("classifier.dropout=1", "classifier.dropout is 1.0"),
        ("classifier.label_smoothing=-0.1", "classifier.label_smoothing is -0.1"),
        ("classifier.frozen_norm=1", "classifier.frozen_norm is 1;.*bool"),
        ("plateau.drops=-1", "plateau.drops is -1"),
        ("plateau.patience=0", "plateau.patience is 0"),
    ],
)
def test_invalid_overrides(override: str, message: str) -> None:
    refused(f"^ucf101: .*{message}", override)
