"""Cells: one per row and seed, with a hash over all settings, and equal numbers of clips."""

import re

import pytest

from crosspair.ablation import plan_cells, read_plan
from crosspair.ablation.cells import select, status, update_state, write_jobs
from crosspair.ablation.plan import row_name
from crosspair.corpora import manifest_from_rows
from crosspair.errors import CrosspairError, ManifestError, RecipeError
from crosspair.evaluation import Provenance, Result, write_results
from tests.ablation.conftest import TINY
from tests.reporting.ablations import MACHINE


def without(overrides: dict, *keys: str) -> dict:
    return {key: value for key, value in overrides.items() if key not in keys}


def cells(plan_file, tmp_path, *overrides, manifest=None, **changes):
    return plan_cells(read_plan(plan_file(**changes), overrides), tmp_path / "out", manifest)


TWO_AXES = {
    "axes": {
        "temperature": {"cold": {"objective.temperature": 0.07}, "warm": {}},
        "size": {"small": {"clip.size": 32}, "large": {"clip.size": 48}},
    },
    "first": {"temperature": "cold", "size": "small"},
}


def test_one_cell_per_row_and_seed(plan_file, tmp_path) -> None:
    found = cells(plan_file, tmp_path, seeds=[3, 1], overrides=without(TINY, "clip.size"), **TWO_AXES)
    names = [cell.name for cell in found]
    rows = ["cold / small", "cold / large", "warm / small", "warm / large"]
    assert names == [f"{row}, seed {seed}" for seed in (3, 1) for row in rows]
    assert len({cell.hash for cell in found}) == 8
    assert [cell.settings["random"] for cell in found] == [True, False, False, False] * 2
    assert {cell.recipe.training.seed for cell in found} == {1, 3}
    assert not (tmp_path / "out").exists()
    plan = read_plan(plan_file(overrides=without(TINY, "clip.size"), **TWO_AXES))
    large = select(plan, found, ["large"])
    assert {row_name(cell.row) for cell in large} == {"cold / large", "warm / large"}
    both = select(plan, found, ["warm/small", "cold / large"])
    assert {row_name(cell.row) for cell in both} == {"warm / small", "cold / large"}
    with pytest.raises(RecipeError, match=r"'lage'.*'large'"):
        select(plan, found, ["lage"])


GRID = {
    "axes": {
        "temperature": {
            "cold": {"objective.temperature": 0.07},
            "warm": {
                "objective.temperature": {"grid": [0.5, 1.0]},
                "optimizer.lr, curriculum.stage2_lr": {"grid": [0.001, 0.002]},
            },
        },
        "size": {"small": {"clip.size": 32}, "large": {"clip.size": 48}},
    },
    "first": {"temperature": "cold", "size": "small"},
    "overrides": without(TINY, "clip.size"),
    "corpus": {"pairs": 48},
}


def finish(out, cell, accuracy: float | None) -> None:
    """Write the results of a cell; None: it failed."""
    if accuracy is None:
        update_state(out / cell.folder, error="the loss is not finite")
    else:
        write_results(
            out / cell.folder / "results.json",
            [Result("kNN", "top-1", 1.0, "chance"), Result("kNN", "top-1", accuracy, "trained", feature="visual")],
            Provenance("", "", "", "", 0, MACHINE, ""),
        )


def test_values_are_chosen_by_tuning(plan_file, tmp_path) -> None:
    overrides = ["tuning.axes=[temperature]", "tuning.training.epochs,clip.stride=2"]
    plan, out = read_plan(plan_file(**GRID), overrides), tmp_path / "o"
    found = plan_cells(plan, out)
    tried = [cell for cell in found if cell.tuning]
    assert [cell.name for cell in tried] == [
        f"warm / small, tuning, objective.temperature={t}, optimizer.lr, curriculum.stage2_lr={lr}"
        for t in (0.5, 1.0) for lr in (0.001, 0.002)
    ]  # fmt: skip
    settings = [cell.settings for cell in tried]
    assert [(each["protocols"], each["split"], each["random"]) for each in settings] == [(["knn"], "val", False)] * 4
    assert {(cell.seed, cell.recipe.training.seed, cell.recipe.training.epochs) for cell in tried} == {(100, 100, 2)}
    assert {cell.recipe.clip.stride for cell in tried} == {2}
    assert [status(out, cell) for cell in found[4:]] == ["missing", "missing", "waiting", "waiting"]
    assert {cell.tuning for cell in select(plan, found, ["cold"])} == {False}
    assert sum(cell.tuning for cell in select(plan, found, ["warm / large"])) == 4
    assert [cell.tuning for cell in write_jobs(out, plan, found)] == [True] * 4 + [False] * 2

    for cell, accuracy in zip(tried[:3], (0.25, 0.5, None), strict=True):
        finish(out, cell, accuracy)
    assert plan_cells(plan, out)[-1].waiting
    finish(out, tried[3], 0.5)  # equal to the second: the first one counts
    *_, small, large = plan_cells(plan, out)
    for cell in (small, large):
        assert not cell.waiting
        assert cell.grid == {"objective.temperature": 0.5, "optimizer.lr, curriculum.stage2_lr": 0.002}
        recipe = cell.recipe
        assert recipe.objective.temperature == 0.5
        assert recipe.optimizer.lr == recipe.curriculum.stage2_lr == 0.002
        assert "split" not in cell.settings
        assert recipe.training.epochs == 1


@pytest.mark.parametrize(("metric", "lacks"), [("knn", "label"), ("zeroshot", "label"), ("retrieval", "title")])
def test_tuning_needs_the_validation_split(plan_file, tmp_path, metric, lacks) -> None:
    def plan_with(val: dict | None):
        rows = [{"pair_id": f"{i}", "path": f"{i}.mp4", "title": "a b", "label": f"{i % 2}", "split": "train"}
                for i in range(10)] + ([val] if val else [])  # fmt: skip
        path = manifest_from_rows(rows, tmp_path / "m.parquet").write(tmp_path / "m.parquet").path
        changes = {**GRID, "corpus": {"manifest": True}}
        return cells(plan_file, tmp_path, f"tuning.metric={metric}", manifest=str(path), **changes)

    video = {"pair_id": "v", "path": "v.mp4", "title": "a b", "label": "1", "split": "val"}
    assert plan_with(video)[0].tuning
    for val in (None, {**video, lacks: ""}, {**video, "split": "test"}):
        with pytest.raises(ManifestError, match=rf"m\.parquet.*tuning\.metric={metric}"):
            plan_with(val)


def test_hash_covers_all_settings(plan_file, tmp_path) -> None:
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


def test_seed_selects_the_wrong_titles_only(plan_file, tmp_path) -> None:
    plan = read_plan(plan_file(seeds=[0, 1]), ["corpus.wrong_titles=0.5"])
    cells = plan_cells(plan, tmp_path / "out")
    one, other = (cell.source.preview(cell.corpus, cell.seed) for cell in (cells[0], cells[2]))
    assert one.column("path") == other.column("path")
    assert one.column("title") != other.column("title")


def test_fine_tuning_uses_the_network_of_the_cell(plan_file, tmp_path) -> None:
    (cell, *_) = cells(plan_file, tmp_path, finetuning={"recipe": "laptop-finetune"})
    tuned = cell.settings["finetuning"]["recipe"]
    assert tuned["video.width"] == cell.recipe.video.width
    assert tuned["video.depth"] == cell.recipe.video.depth
    assert tuned["training.seed"] == cell.seed


def test_user_manifest(plan_file, tmp_path, shared_manifest) -> None:
    found = cells(plan_file, tmp_path, manifest=str(shared_manifest), corpus={"manifest": True})
    assert found[0].pairs == 20
    assert found[0].count_clips() == 16
    with pytest.raises(RecipeError, match="--manifest"):
        cells(plan_file, tmp_path, corpus={"manifest": True})
    with pytest.raises(RecipeError, match="--manifest"):
        cells(plan_file, tmp_path, manifest=str(shared_manifest))


@pytest.fixture
def shared_manifest(tmp_path):
    rows = [
        {"pair_id": f"{i}", "path": f"{i}.mp4", "title": f"a b {i}" if i < 20 else "",
         "error": "broken" if i > 22 else None}
        for i in range(25)
    ]  # fmt: skip
    return manifest_from_rows(rows, tmp_path / "m.parquet").write(tmp_path / "m.parquet").path


def axis(**keys) -> dict:
    return {"axes": {"a": {"x": keys, "y": {}}}, "first": {"a": "y"}}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (axis(**{"training.epoch": 1}), "training.epoch"),
        (axis(**{"corpus.wrong_title": 1}), "corpus.wrong_title"),
        (axis(**{"corpus.noise": "20%"}), "corpus.noise"),
        (axis(**{"corpus.pairs": None}), "corpus.pairs"),
        (axis(), "'y'"),
        ({"finetuning": {"recipe": "laptop-finetune", "overrides": {"training.lr": 1}}}, "training.lr"),
    ],
)
def test_invalid_rows(plan_file, tmp_path, changes, key) -> None:
    with pytest.raises(CrosspairError, match=re.escape(key)):
        cells(plan_file, tmp_path, **changes)
    assert not (tmp_path / "out").exists()


def test_rows_that_the_command_line_makes_equal(plan_file, tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"'cold'.*'warm'"):
        cells(plan_file, tmp_path, "objective.temperature=1")


def test_rows_with_different_numbers_of_pairs(plan_file, tmp_path) -> None:
    axes = {"length": {"short": {"training.epochs": 1}, "long": {"training.epochs": 2}}}
    with pytest.raises(RecipeError, match=r"'short'\D*24\D.*'long'\D*48\D"):
        cells(
            plan_file, tmp_path, axes=axes, first={"length": "long"},
            overrides=without(TINY, "training.epochs"),
        )  # fmt: skip


def test_a_row_with_two_views_sees_twice_the_clips(plan_file, tmp_path) -> None:
    axes = {"views": {"one": {}, "two": {"objective.video_weight": 1.0}}}
    one, two = cells(plan_file, tmp_path, axes=axes, first={"views": "one"})
    assert (one.count_clips(), two.count_clips()) == (24, 48)
    assert one.count_pairs_seen() == two.count_pairs_seen() == 24


def test_unusable_pairs(plan_file, tmp_path, shared_manifest) -> None:
    own = {"manifest": str(shared_manifest), "corpus": {"manifest": True}}
    with pytest.raises(ManifestError, match=r"\b20\b.*\b32\b"):
        cells(plan_file, tmp_path, "training.batch_size=32", **own)
    with pytest.raises(ManifestError, match=r"m\.parquet.*title_clean"):
        cells(plan_file, tmp_path, "text.column=title_clean", **own)
