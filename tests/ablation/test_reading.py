"""Plan files: packaged plans, overrides, variables, and error messages."""

import re
from pathlib import Path

import pytest
import yaml

from crosspair.ablation import AblationPlan, plan_names, read_plan
from crosspair.ablation.plan import expand_rows, plan_settings, row_settings
from crosspair.errors import RecipeError
from crosspair.reporting.ablation_results import read_ablation
from tests.ablation.conftest import PLAN

AXES = PLAN["axes"]
TUNED = {"finetuning": {"recipe": "laptop-finetune"}}
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "ablations"
NEEDS = {"words": "titles", "transformer": "a/folder", "ucf101": "split1.parquet"}


def packaged(name: str) -> AblationPlan:
    return read_plan(name, required_variables(name))


def required_variables(name: str) -> list[str]:
    """Values for the variables that a packaged plan requires."""
    try:
        read_plan(name)
    except RecipeError as error:
        return [f"{key}={value}" for key, value in NEEDS.items() if f"{key}=…" in str(error)]
    return []


@pytest.mark.parametrize("name", plan_names())
def test_packaged_plans_are_valid(name) -> None:
    plan = packaged(name)
    assert plan.baseline in expand_rows(plan)
    assert plan.corpus.manifest == name.endswith(("-ucf", "-ucf10", "-paper"))
    assert plan.claims
    for claim in plan.claims:
        assert claim.source.startswith("this package" if name.startswith("terms") else "paper")
        assert claim.difference is None or claim.protocol == "30 views"  # the paper's differences are after fine-tuning


def test_each_table_of_the_paper_has_three_plans() -> None:
    sizes = [f"table-1{table}{size}" for table in "abc" for size in ("", "-ucf", "-paper")]
    assert sorted([*sizes, "noise", "batch", "terms-ucf10"]) == plan_names()
    for name in sizes:
        assert packaged(name).table == name[6:8]
        assert len(expand_rows(packaged(name))) == 6


def test_learning_rates_grow_with_the_square_root_of_the_batch_size() -> None:
    for size, keys in read_plan("batch").axes["batch size"].items():
        factor = (int(size) / 32) ** 0.5
        assert keys["training.batch_size"] == int(size)
        assert keys["optimizer.lr"] == pytest.approx(1e-3 * factor, rel=1e-2)
        assert keys["curriculum.text_lr"] == pytest.approx(2e-3 * factor, rel=1e-2)


def test_overrides(plan_file) -> None:
    plan = read_plan(
        plan_file(finetuning={"recipe": "laptop-finetune"}),
        ["training.epochs=3", "corpus.pairs=48", "evaluation.clips=2", "seeds=1,2",
         "finetuning.clips=3", "finetuning.training.epochs=2"],
    )  # fmt: skip
    assert plan.overrides["training.epochs"] == 3
    assert (plan.corpus.pairs, plan.evaluation.clips, plan.seeds) == (48, 2, (1, 2))
    assert plan.finetuning is not None
    assert (plan.finetuning.clips, plan.finetuning.overrides) == (3, {"training.epochs": 2})
    assert read_plan(plan_file(), ["seeds=7"]).seeds == (7,)


def test_recipe_keys_replace_those_of_overrides_and_axes(plan_file) -> None:
    rates = {"optimizer.lr, curriculum.stage2_lr": {"grid": [1, 2]}, "training.epochs": 4}
    path = plan_file(
        overrides=rates,
        axes={"a": {"x": {"objective.temperature": {"grid": [1, 2]}, "corpus.noise": 0.1}, "y": {"clip.size": 32}}},
        first={"a": "x"}, tuning={"overrides": {"clip.frames, clip.stride": 2, "training.epochs": 1}},
    )  # fmt: skip
    plan = read_plan(path, ["optimizer.lr=3", "training.epochs=5", "objective.temperature=0.5", "corpus.noise=0.2",
                            "tuning.clip.stride=4"])  # fmt: skip
    assert plan.overrides == {
        "curriculum.stage2_lr": {"grid": [1, 2]}, "optimizer.lr": 3, "training.epochs": 5, "objective.temperature": 0.5,
    }  # fmt: skip
    assert plan.axes == {"a": {"x": {}, "y": {"clip.size": 32}}}
    assert plan.tuning.overrides == {"clip.frames": 2, "training.epochs": 1, "clip.stride": 4}
    assert row_settings(read_plan(path, ["optimizer.lr,curriculum.stage2_lr=3"]), {"a": "y"}, {}) == {
        "optimizer.lr": 3, "curriculum.stage2_lr": 3, "training.epochs": 4, "clip.size": 32,
    }  # fmt: skip


def test_variables_are_substituted(plan_file) -> None:
    path = plan_file(
        needs={"words": "a file"},
        axes={"text": {"a": {"text.source": "{words}"}, "b": {"text.source": "titles"}}},
        first={"text": "a"},
    )
    plan = read_plan(path, ["words=v.bin"])
    assert plan.axes["text"]["a"] == {"text.source": "v.bin"}
    with pytest.raises(RecipeError, match=r"words=.*a file"):
        read_plan(path)


@pytest.mark.parametrize(
    ("changes", "overrides", "key"),
    [
        ({"titel": "x"}, [], "titel"),
        ({"title": None}, [], "title"),
        ({"first": None}, [], "first"),
        ({"corpus": {"pair": 3}}, [], "corpus.pair"),
        ({"corpus": 3}, ["corpus.pairs=8"], "corpus"),
        ({"seeds": [1, 1]}, [], "seeds"),
        ({"axes": {"a": {}}}, [], "axes"),
        ({"first": {"temperature": "hot"}}, [], "first"),
        ({"overrides": {"objective.temperature": 1}}, [], "objective.temperature"),
        ({}, ["training.epochs"], "'training.epochs'"),
        ({"overrides": {"text.source": "{words}"}}, [], "{words}"),
        ({"evaluation": {"protocols": ["kn"]}}, [], "evaluation.protocols"),
        ({"evaluation": {"protocols": []}}, [], "evaluation.protocols"),
        ({"evaluation": {"clips": 0}}, [], "evaluation.clips"),
        ({"finetuning": {"clips": 1}}, [], "finetuning.recipe"),
        (TUNED, ["finetuning.crops=2"], "finetuning"),
        ({"overrides": {"text.source": {("a", "b"): 1}}}, [], "line 5"),
        ({}, ["training.seed=7"], "training.seed"),
        (
            {"axes": {"a": {"x": {"clip.size": 32}}, "b": {"y": {"clip.size": 64}}},
             "first": {"a": "x", "b": "y"}, "overrides": {}},
            [], "clip.size",
        ),
        ({"overrides": {"optimizer.lr": {"values": [1]}}}, [], "optimizer.lr"),
        ({"overrides": {"optimizer.lr": {"grid": []}}}, [], "optimizer.lr"),
        ({"overrides": {"optimizer.lr, curriculum.stage2_lr": 1, "optimizer.lr": 1}}, [], "optimizer.lr"),
        ({"tuning": {"overrides": {"optimizer.lr, training.epochs": 1, "optimizer.lr": 1}}}, [], "optimizer.lr"),
        ({"tuning": {"overrides": {"optimizer.lr": {"grid": [1]}}}}, [], "optimizer.lr"),
        ({"overrides": {"optimizer.lr, curriculum.stage2_lr": {"grid": [1]}}}, ["tuning.optimizer.lr=1"],
         "optimizer.lr"),
        ({"axes": {**AXES, "a": {"x": {"optimizer.lr": {"grid": [1]}}}}, "first": {"temperature": "cold", "a": "x"}},
         ["tuning.axes=[temperature]"], "optimizer.lr"),
        ({}, ["tuning.axes=[a]"], "tuning.axes"),
        ({}, ["tuning.seed=0"], "tuning.seed"),
        ({"claims": [{"claim": "c", "source": "s", "rows": {"cold": 1, "hot": -1}}]}, [], "'hot'"),
        ({"claims": [{"claim": "c", "source": "s", "rows": {"cold": 1}}]}, [], "claims"),
    ],
)  # fmt: skip
def test_invalid_plans(plan_file, changes, overrides, key) -> None:
    with pytest.raises(RecipeError, match=re.escape(key)) as caught:
        read_plan(plan_file(**changes), overrides)
    assert "\n" not in str(caught.value)
    assert "tiny.yaml" in str(caught.value) or "key=value" in str(caught.value)


def test_settings_of_a_plan_are_a_plan_file(plan_file, tmp_path) -> None:
    plan = read_plan(plan_file(**TUNED))
    assert plan_settings(plan)["first"] == plan.baseline
    (tmp_path / "copy.yaml").write_text(yaml.safe_dump(plan_settings(plan)))
    assert read_plan(str(tmp_path / "copy.yaml")) == plan


@pytest.mark.parametrize("folder", sorted(RESULTS.iterdir()), ids=lambda path: path.name)
def test_plans_of_published_results_are_valid(folder, tmp_path) -> None:
    settings = dict(read_ablation(folder).plan)
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    assert plan_settings(read_plan(str(tmp_path / "plan.yaml"))) == settings


def test_duplicate_key(tmp_path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("title: x\naxes:\n  a:\n    one: {}\n    one: {}\n")
    with pytest.raises(RecipeError, match=r"twice.yaml.*line 5.*'one'"):
        read_plan(str(path))


def test_unknown_plan(tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"'table-1'.*'table-1"):
        read_plan("table-1")
    with pytest.raises(RecipeError, match=r"none\.yaml"):
        read_plan(str(tmp_path / "none.yaml"))
