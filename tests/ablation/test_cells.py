"""Cells: one for each row and seed, told apart by what decides them, equal in clips."""

import re

import pytest

from crosspair.ablation import plan_cells, read_plan
from crosspair.ablation.cells import select
from crosspair.ablation.plan import row_name
from crosspair.errors import CrosspairError, ManifestError, RecipeError


def cells(plan_file, tmp_path, *overrides, manifest=None, **changes):
    return plan_cells(read_plan(plan_file(**changes), overrides), tmp_path / "out", manifest)[1]


TWO_AXES = {
    "axes": {
        "temperature": {"cold": {"objective.temperature": 0.07}, "warm": {}},
        "size": {"small": {"clip.size": 32}, "large": {"clip.size": 48}},
    },
    "first": {"temperature": "cold", "size": "small"},
}


def without(overrides: dict, *keys: str) -> dict:
    return {key: value for key, value in overrides.items() if key not in keys}


def test_every_row_with_every_seed(plan_file, tmp_path) -> None:
    from tests.ablation.conftest import TINY

    found = cells(
        plan_file, tmp_path, seeds=[3, 1], overrides=without(TINY, "clip.size"), **TWO_AXES
    )
    names = [cell.name for cell in found]
    rows = ["cold / small", "cold / large", "warm / small", "warm / large"]
    assert names == [f"{row}, seed {seed}" for seed in (3, 1) for row in rows]
    assert len({cell.hash for cell in found}) == 8
    assert [cell.beside_random for cell in found] == [True, False, False, False] * 2
    assert {cell.recipe.training.seed for cell in found} == {1, 3}
    assert not (tmp_path / "out").exists()
    of_large = select(found, ["large"])
    assert {row_name(cell.row) for cell in of_large} == {"cold / large", "warm / large"}
    assert {row_name(c.row) for c in select(found, ["warm/small", "cold / large"])} == {
        "warm / small",
        "cold / large",
    }
    with pytest.raises(RecipeError, match=r"no row is called 'lage'; did you mean 'large'"):
        select(found, ["lage"])


def test_the_hash_knows_everything_that_decides(plan_file, tmp_path) -> None:
    usual = cells(plan_file, tmp_path)[1].hash
    assert cells(plan_file, tmp_path)[1].hash == usual
    for override in (
        "training.epochs=2", "corpus.noise=0.3", "corpus.seed=1", "corpus.wrong_titles=0.5",
        "evaluation.clips=2", "evaluation.protocols=[linear]", "seeds=1",
    ):  # fmt: skip
        assert cells(plan_file, tmp_path, override)[1].hash != usual, override
    tuned = {"recipe": "laptop-finetune", "clips": 3}
    few = cells(plan_file, tmp_path, finetuning=tuned)[1].hash
    more = cells(plan_file, tmp_path, finetuning={**tuned, "clips": 4})[1].hash
    assert len({usual, few, more}) == 3


def test_seeds_draw_other_wrong_titles_and_share_the_rest(plan_file, tmp_path) -> None:
    plan = read_plan(plan_file(seeds=[0, 1]), ["corpus.wrong_titles=0.5"])
    source, found = plan_cells(plan, tmp_path / "out")
    one, other = (source.planned(found[i].corpus, found[i].seed) for i in (0, 2))
    assert one.column("path") == other.column("path")
    assert one.column("title") != other.column("title")


def test_fine_tuning_has_the_cell_s_network(plan_file, tmp_path) -> None:
    found = cells(plan_file, tmp_path, finetuning={"recipe": "laptop-finetune"})
    tuned = found[0].finetuning
    assert tuned is not None
    assert tuned.video == found[0].recipe.video
    assert tuned.training.seed == found[0].seed


def test_a_plan_for_your_own_pairs(plan_file, tmp_path, shared_manifest) -> None:
    found = cells(plan_file, tmp_path, manifest=str(shared_manifest), corpus={"manifest": True})
    assert found[0].pairs == 20
    assert found[0].clips == 16
    with pytest.raises(RecipeError, match="for pairs of your own: give --manifest"):
        cells(plan_file, tmp_path, corpus={"manifest": True})
    with pytest.raises(RecipeError, match="renders its pairs; leave out --manifest"):
        cells(plan_file, tmp_path, manifest=str(shared_manifest))


@pytest.fixture
def shared_manifest(tmp_path):
    from crosspair.corpora import manifest_from_rows

    rows = [
        {"pair_id": f"{i}", "path": f"{i}.mp4", "title": f"a b {i}" if i < 20 else "",
         "error": "broken" if i > 22 else None}
        for i in range(25)
    ]  # fmt: skip
    return manifest_from_rows(rows, tmp_path / "m.parquet").write(tmp_path / "m.parquet").path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {"a": {"x": {"training.epoch": 1}, "y": {}}}, "first": {"a": "y"}},
         "plan 'Tiny', row 'x': 'training.epoch'"),
        ({"axes": {"a": {"x": {"corpus.wrong_title": 1}, "y": {}}}, "first": {"a": "y"}},
         "plan 'Tiny', row 'x': corpus.wrong_title is no key; did you mean 'wrong_titles'"),
        ({"axes": {"a": {"x": {"corpus.noise": "20%"}, "y": {}}}, "first": {"a": "y"}},
         "plan 'Tiny', row 'x': corpus.noise is '20%', which is no float"),
        ({"axes": {"a": {"x": {"corpus.pairs": None}, "y": {}}}, "first": {"a": "y"}},
         "plan 'Tiny', row 'x': corpus.pairs is None, which is no int"),
        ({"axes": {"a": {"x": {}, "y": {}}}, "first": {"a": "y"}},
         "rows 'x' and 'y' are the same in every setting"),
        ({"finetuning": {"recipe": "laptop-finetune", "overrides": {"training.lr": 1}}},
         "row 'cold', fine-tuning: 'training.lr'"),
        ({"recipe": "labtop"}, "'labtop'"),
    ],
)  # fmt: skip
def test_what_a_row_cannot_be_is_told_before_anything_runs(
    plan_file, tmp_path, changes, message
) -> None:
    with pytest.raises(CrosspairError, match=re.escape(message)):
        cells(plan_file, tmp_path, **changes)
    assert not (tmp_path / "out").exists()


def test_rows_see_equally_many_clips(plan_file, tmp_path) -> None:
    from tests.ablation.conftest import TINY

    axes = {"length": {"short": {"training.epochs": 1}, "long": {"training.epochs": 2}}}
    with pytest.raises(RecipeError, match=r"'short' sees 24 clips in all, 'long' 48 .* equally"):
        cells(
            plan_file, tmp_path, axes=axes, first={"length": "long"},
            overrides=without(TINY, "training.epochs"),
        )  # fmt: skip


def test_pairs_that_do_not_do(plan_file, tmp_path, shared_manifest) -> None:
    own = {"manifest": str(shared_manifest), "corpus": {"manifest": True}}
    with pytest.raises(
        ManifestError, match=r"20 usable pairs to learn from, less than a batch \(32\)"
    ):
        cells(plan_file, tmp_path, "training.batch_size=32", **own)
    with pytest.raises(ManifestError, match=r'has no title_clean; "crosspair titles" fills it'):
        cells(plan_file, tmp_path, "text.column=title_clean", **own)
