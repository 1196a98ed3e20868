"""Plans: those of the package are whole, overrides go where they belong, faults are told."""

import re

import pytest

from crosspair.ablation import AblationPlan, plan_names, read_plan
from crosspair.ablation.plan import expand_rows
from crosspair.errors import RecipeError

TUNED = {"finetuning": {"recipe": "laptop-finetune"}}
NEEDS = {"words": "titles", "transformer": "a/folder", "ucf101": "split1.parquet"}


def packaged(name: str) -> AblationPlan:
    return read_plan(name, read_needs(name))


def read_needs(name: str) -> list[str]:
    """What a packaged plan says that it needs, given."""
    try:
        read_plan(name)
    except RecipeError as error:
        return [f"{need}={value}" for need, value in NEEDS.items() if f"{need}=…" in str(error)]
    return []


@pytest.mark.parametrize("name", plan_names())
def test_packaged_plans_can_be_read(name) -> None:
    plan = packaged(name)
    assert plan.baseline in expand_rows(plan)
    assert plan.corpus.manifest == name.endswith(("-ucf", "-paper"))
    for published in plan.published:
        assert published.source.startswith("paper")
        assert published.note or published.value or published.difference


def test_the_paper_s_tables_come_in_three_sizes() -> None:
    sizes = [f"table-1{table}{size}" for table in "abc" for size in ("", "-ucf", "-paper")]
    assert sorted([*sizes, "noise", "batch"]) == plan_names()
    for name in sizes:
        assert packaged(name).table == name[6:8]
        assert len(expand_rows(packaged(name))) == 6


def test_dials_have_numbers_for_names() -> None:
    for name, axis in (("noise", "wrong titles"), ("batch", "batch size")):
        numbers = [float(value) for value in read_plan(name).axes[axis]]
        assert numbers == sorted(numbers)


def test_rates_of_the_batch_dial_grow_as_the_square_root() -> None:
    for size, keys in read_plan("batch").axes["batch size"].items():
        factor = (int(size) / 32) ** 0.5
        assert keys["training.batch_size"] == int(size)
        assert keys["optimizer.lr"] == pytest.approx(1e-3 * factor, rel=1e-2)
        assert keys["curriculum.text_lr"] == pytest.approx(2e-3 * factor, rel=1e-2)


def test_overrides_go_where_they_belong(plan_file) -> None:
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


def test_what_a_plan_needs_fills_its_places(plan_file) -> None:
    path = plan_file(
        needs={"words": "a file"},
        axes={"text": {"a": {"text.source": "{words}"}, "b": {"text.source": "titles"}}},
        first={"text": "a"},
    )
    plan = read_plan(path, ["words=v.bin"])
    assert (plan.axes["text"]["a"], plan.variables) == ({"text.source": "v.bin"}, {})
    with pytest.raises(RecipeError, match=r"needs words=… \(a file\) on the command line"):
        read_plan(path)


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({"titel": "x"}, [], "titel is no key of a plan; did you mean 'title'"),
        ({"title": None}, [], "title is missing"),
        ({"corpus": {"pair": 3}}, [], "corpus.pair is no key of a plan; did you mean 'pairs'"),
        ({"corpus": 3}, [], "corpus is a YAML mapping, not 3"),
        ({"corpus": 3}, ["corpus.pairs=8"], "corpus is a YAML mapping, not 3"),
        ({"finetuning": False}, ["finetuning.clips=1"], "finetuning is a YAML mapping, not False"),
        ({"overrides": 3}, ["training.epochs=1"], "overrides is a YAML mapping, not 3"),
        ({"seeds": []}, [], "seeds are []; give one or more, each once"),
        ({"seeds": [1, 1]}, [], "seeds are [1, 1]; give one or more, each once"),
        ({"axes": {}}, [], "axes are {}; give one or more, each with values"),
        ({"axes": {"a": {}}}, [], "axes are {'a': {}}; give one or more, each with values"),
        ({"first": {"temperature": "hot"}}, [], "first names no row: {'temperature': 'hot'}"),
        ({}, ["objective.temperature=1"], "temperature is set for all cells and by axis 'temp"),
        ({}, ["training.epochs"], "'training.epochs' is not of the form key=value"),
        ({"overrides": {"text.source": "{words}"}}, [], "{words} stands for nothing"),
        ({"evaluation": {"protocols": ["kn"]}}, [], "Got value: kn"),
        ({"evaluation": {"protocols": []}}, [], "nothing is tested"),
        ({"evaluation": {"clips": 0}}, [], "evaluation.clips is 0; it must be above 0"),
        ({"finetuning": {"clips": 1}}, [], "finetuning.recipe is missing"),
        (TUNED, ["finetuning.clips=0"], "finetuning.clips is 0; it must be above 0"),
        (TUNED, ["finetuning.crops=2"], "Got value: 2"),
        ({"needs": ["words"]}, [], "needs is a YAML mapping, not ['words']"),
        ({"overrides": {"text.source": {("a", "b"): 1}}}, [], "a key is a word, not a list"),
        ({}, ["training.seed=7"], "training.seed is a cell's own; give seeds=…"),
        (
            {"axes": {"a": {"x": {"clip.size": 32}}, "b": {"y": {"clip.size": 64}}},
             "first": {"a": "x", "b": "y"}, "overrides": {}},
            [], "clip.size is set by axis 'a' and by axis 'b'; leave one out",
        ),
    ],
)  # fmt: skip
def test_a_fault_is_told_in_one_line(plan_file, changes, overrides, message) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)) as told:
        read_plan(plan_file(**changes), overrides)
    assert "\n" not in str(told.value)
    assert "tiny.yaml" in str(told.value) or "key=value" in str(told.value)


def test_a_date_that_there_is_not(plan_file) -> None:
    with pytest.raises(RecipeError, match=r"^text.source=2026-02-30 is not YAML: day is out of r"):
        read_plan(plan_file(), ["text.source=2026-02-30"])


def test_a_value_that_stands_twice_is_refused(tmp_path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("title: x\naxes:\n  a:\n    one: {}\n    one: {}\n")
    with pytest.raises(RecipeError, match=r"twice.yaml, line 5: 'one' stands twice"):
        read_plan(str(path))


def test_an_unknown_plan_names_the_nearest(tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"no plan 'table-1'; did you mean 'table-1"):
        read_plan("table-1")
    with pytest.raises(RecipeError, match=r"plan .*none.yaml cannot be read"):
        read_plan(str(tmp_path / "none.yaml"))
