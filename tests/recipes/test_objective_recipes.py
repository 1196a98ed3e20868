"""Objectives in recipes: the module that is built, and invalid combinations."""

from __future__ import annotations

import pytest

from crosspair.config import ObjectiveConfig
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
    build_objective,
)
from crosspair.recipes import load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipes_use_the_objective_of_the_paper(name: str) -> None:
    objective = load_recipe(name).objective
    assert (objective.name, objective.estimate) == ("cross_pair", "nce")


@pytest.mark.parametrize(
    ("overrides", "estimate", "discrimination"),
    [
        ([], NoiseContrastive, CrossPair),
        (["estimate=softmax"], ExactSoftmax, CrossPair),
        (["name=self_instance"], NoiseContrastive, SelfInstance),
        (["name=self_instance", "estimate=softmax"], ExactSoftmax, SelfInstance),
        (["name=self_instance", "instances=weights"], NoiseContrastive, LearnedInstance),
        (["name=self_instance", "instances=weights", "estimate=softmax"], ExactSoftmax, LearnedInstance),
        (["name=ranking", "margin=0.3"], Ranking, None),
        (["name=in_batch", "estimate=nce"], InBatch, None),
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
    elif estimate is Ranking:
        assert objective.margin == 0.3
    else:
        assert objective.temperature == 0.5


def test_checkpoint_keys_of_the_default_objective() -> None:
    objective = build_objective(ObjectiveConfig(), 10, 4, 0, World())
    assert list(objective.state_dict()) == ["log_z", "_extra_state"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["name=rank"], "objective.name is 'rank'.*'cross_pair', 'self_instance', "),
        (["name=ranking", "estimate=softmax"], "objective.estimate is 'softmax'.*ranking"),
        (["name=in_batch", "estimate=softmax"], "objective.estimate is 'softmax'.*in_batch"),
        (["instances=weights"], "objective.instances is 'weights'.*cross_pair.*self_instance"),
        (["margin=0.4"], "objective.margin is 0.4.*cross_pair.*ranking"),
        (["name=ranking", "margin=0"], "objective.margin is 0.0"),
    ],
)
def test_invalid_combinations(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=f"^laptop: {message}") as caught:
        load_recipe("laptop", [f"objective.{each}" for each in overrides])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ranking", "in_batch"])
def test_objectives_with_negatives_of_the_batch_reject_accumulation(name: str) -> None:
    with pytest.raises(RecipeError, match=f"^laptop: training.accumulate is 2.*{name}"):
        load_recipe("laptop", [f"objective.name={name}", "training.accumulate=2"])
    load_recipe("laptop", ["objective.name=self_instance", "training.accumulate=2"])
