"""The option --profile: times that add up to the step, a trace, and unchanged weights."""

from __future__ import annotations

import gzip
import json
import logging
import re
from pathlib import Path

import pytest
import torch

from crosspair.config import FinetuneRecipe
from crosspair.corpora import Manifest
from crosspair.errors import RunError
from crosspair.models import CPD, InitWeights
from crosspair.recipes import load_recipe, read_recipe
from crosspair.training import finetune, pretrain
from crosspair.training.profile import STEPS, WARM_UP, record_section
from tests.e2e.conftest import TINY

ROW = re.compile(r"^\| ([^|]+) \| ([\d.]+) \| (-?[\d.]+)% \|$", re.MULTILINE)
STEP_SECTIONS = {
    "data wait", "copy", "forward", "objective", "backward", "optimiser", "bank", "logging",
}  # fmt: skip
# Steps long enough that the time of Python between the sections is negligible.
LARGER = ["training.epochs=8", "training.workers=0", "clip.size=64", "video.width=16"]


def fractions(run: Path) -> dict[str, float]:
    """Return each row of the summary's first table, in percent of a step."""
    page = (run / "profile/summary.md").read_text()
    return {name: float(value) for name, _, value in ROW.findall(page)}


def train(rendered: Manifest, run: Path, *overrides: str, profile: bool = True) -> CPD:
    recipe = load_recipe("laptop", [*TINY, *LARGER, *overrides])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = pretrain(recipe, rendered, run, profile=profile)
    torch.set_num_threads(threads)
    assert model is not None
    return model


@pytest.fixture(scope="module")
def profiled_run(rendered: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("profiled") / "run"
    train(rendered, run)
    return run


def test_sections_add_up_to_the_step(profiled_run: Path) -> None:
    found = fractions(profiled_run)
    assert set(found) >= STEP_SECTIONS | {"validation", "checkpoint"}
    assert found.pop("total") == 100
    assert 0 <= found.pop("all else") < 5
    assert sum(found.values()) == pytest.approx(100, abs=5)
    assert found["backward"] > found["logging"]


def test_trace_contains_each_section_of_each_step(profiled_run: Path) -> None:
    with gzip.open(profiled_run / "profile/trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    for name in STEP_SECTIONS:
        assert names.count(name) in {STEPS, 2 * STEPS}, name  # two copies per step
    assert any(event["name"].startswith("aten::") for event in events)


def test_profiling_does_not_change_weights(profiled_run: Path, rendered: Manifest, tmp_path: Path) -> None:
    plain = train(rendered, tmp_path / "run", profile=False).state_dict()
    ours = CPD.from_pretrained(profiled_run / "model").state_dict()
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    assert not (tmp_path / "run/profile").exists()


def test_sections_without_a_profile_are_not_recorded(profiled_run: Path) -> None:
    with torch.profiler.profile() as profiler, record_section("forward"):
        torch.ones(2) + 1
    assert "forward" not in {event.key for event in profiler.key_averages()}


def test_fine_tuning_has_no_bank(rendered: Manifest, tmp_path: Path) -> None:
    labels = [title.split()[0] for title in rendered.column("title")]
    few = {label: sorted(set(labels)).index(label) % 2 for label in set(labels)}
    manifest = rendered.with_columns({"label": [f"class {few[label]}" for label in labels]})
    tiny = [each for each in TINY if each.startswith(("clip", "video", "training"))]
    recipe = read_recipe(FinetuneRecipe, "laptop-finetune", [*tiny, *LARGER, "video.depth=10"])
    assert finetune(recipe, manifest, tmp_path, init=InitWeights("random"), profile=True)
    assert set(fractions(tmp_path)) >= STEP_SECTIONS - {"bank"}
    assert "bank" not in fractions(tmp_path)


def test_training_shorter_than_the_warm_up_logs_a_warning(
    rendered: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        train(rendered, tmp_path / "run", "training.batch_size=16", "training.epochs=1")
    assert (WARM_UP,) in [record.args for record in caplog.records]
    assert not (tmp_path / "run/profile").exists()


def test_training_that_ends_early_is_profiled_to_its_end(rendered: Manifest, tmp_path: Path) -> None:
    train(rendered, tmp_path, "training.epochs=2")  # of five steps each
    assert re.search(r"^5 steps ", (tmp_path / "profile/summary.md").read_text(), re.MULTILINE)


def test_unwritable_profile_raises(rendered: Manifest, tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("a file")
    with pytest.raises(RunError, match=r"profile/trace\.json\.gz"):
        train(rendered, tmp_path)
