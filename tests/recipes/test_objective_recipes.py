"""Objectives in recipes: what may be asked for, what it builds, what each mistake is told."""

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
def test_packaged_recipes_have_the_papers_objective(name: str) -> None:
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
        (
            ["name=self_instance", "instances=weights", "estimate=softmax"],
            ExactSoftmax,
            LearnedInstance,
        ),
        (["name=ranking", "margin=0.3"], Ranking, None),
        (["name=in_batch", "estimate=nce"], InBatch, None),
    ],
)
def test_a_recipe_builds_what_it_says(overrides, estimate, discrimination) -> None:
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


def test_checkpoints_of_the_papers_objective_hold_what_they_always_held() -> None:
    objective = build_objective(ObjectiveConfig(), 10, 4, 0, World())
    assert list(objective.state_dict()) == ["log_z", "_extra_state"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["name=rank"], r"objective.name: 'rank' does not do .*'cross_pair', 'self_instance', "),
        (
            ["name=ranking", "estimate=softmax"],
            "objective.estimate=softmax means nothing to objective.name=ranking, only to "
            "cross_pair and self_instance; leave it out$",
        ),
        (
            ["name=in_batch", "estimate=softmax"],
            "objective.estimate=softmax means nothing to objective.name=in_batch, ",
        ),
        (
            ["instances=weights"],
            "objective.instances=weights means nothing to objective.name=cross_pair, only to "
            "self_instance; leave it out$",
        ),
        (["margin=0.4"], "objective.margin=0.4 means nothing to .*cross_pair, only to ranking; "),
        (["name=ranking", "margin=0"], "objective.margin is 0.0; it must be above 0$"),
    ],
)
def test_what_cannot_be_combined_is_told(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=f"^laptop: {message}") as caught:
        load_recipe("laptop", [f"objective.{each}" for each in overrides])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ranking", "in_batch"])
def test_negatives_of_the_batch_need_it_whole(name: str) -> None:
    message = (
        f"^laptop: training.accumulate is 2, but objective.name={name} tells pairs from the rest "
        "of their batch, which must not be in parts; set it to 1, and lower training.batch_size "
        "if memory does not do$"
    )
    with pytest.raises(RecipeError, match=message):
        load_recipe("laptop", [f"objective.name={name}", "training.accumulate=2"])
    load_recipe("laptop", ["objective.name=self_instance", "training.accumulate=2"])
