"""--profile: parts that add up to the step, a trace, and a training that is the same."""

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
OF_A_STEP = {
    "data wait", "copy", "forward", "objective", "backward", "optimiser", "bank", "logging",
}  # fmt: skip
# Enough steps, and enough work in each, that Python between the parts is next to nothing.
LARGER = ["training.epochs=8", "training.workers=0", "clip.size=64", "video.width=16"]


def shares(run: Path) -> dict[str, float]:
    """Each row of the page's table of parts, in percent of a step."""
    page = (run / "profile/summary.md").read_text()
    return {name: float(share) for name, _, share in ROW.findall(page)}


def trained(rendered: Manifest, run: Path, *overrides: str, profile: bool = True) -> CPD:
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
    trained(rendered, run)
    return run


def test_the_parts_add_up_to_the_step(profiled_run: Path) -> None:
    found = shares(profiled_run)
    assert set(found) >= OF_A_STEP | {"validation", "checkpoint"}
    assert found.pop("a step") == 100
    assert 0 <= found.pop("all else") < 5
    assert sum(found.values()) == pytest.approx(100, abs=5)
    assert found["backward"] > found["logging"]


def test_the_trace_holds_each_part_of_each_step(profiled_run: Path) -> None:
    with gzip.open(profiled_run / "profile/trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    for name in OF_A_STEP:
        assert names.count(name) in {STEPS, 2 * STEPS}, name  # a copy has two halves
    assert any(event["name"].startswith("aten::") for event in events)


def test_a_profile_changes_no_weight(
    profiled_run: Path, rendered: Manifest, tmp_path: Path
) -> None:
    plain = trained(rendered, tmp_path / "run", profile=False).state_dict()
    ours = CPD.from_pretrained(profiled_run / "model").state_dict()
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    assert not (tmp_path / "run/profile").exists()


def test_without_a_profile_a_part_is_nothing(profiled_run: Path) -> None:
    with torch.profiler.profile() as profiler, record_section("forward"):
        torch.ones(2) + 1
    assert "forward" not in {event.key for event in profiler.key_averages()}


def test_fine_tuning_has_no_bank(rendered: Manifest, tmp_path: Path) -> None:
    labels = [title.split()[0] for title in rendered.column("title")]
    few = {label: sorted(set(labels)).index(label) % 2 for label in set(labels)}
    manifest = rendered.with_columns({"label": [f"class {few[label]}" for label in labels]})
    tiny = [each for each in TINY if each.startswith(("clip", "video", "training"))]
    recipe = read_recipe(FinetuneRecipe, "laptop-finetune", [*tiny, *LARGER, "video.depth=10"])
    assert finetune(recipe, manifest, tmp_path, start=InitWeights("random"), profile=True)
    assert set(shares(tmp_path)) >= OF_A_STEP - {"bank"}
    assert "bank" not in shares(tmp_path)


def test_a_training_that_is_too_short_says_so(
    rendered: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        trained(rendered, tmp_path / "run", "training.batch_size=16", "training.epochs=1")
    assert f"no profile: the training ended within {WARM_UP} steps" in caplog.text
    assert not (tmp_path / "run/profile").exists()


def test_a_training_that_ends_early_profiles_what_there_was(
    rendered: Manifest, tmp_path: Path
) -> None:
    trained(rendered, tmp_path, "training.epochs=2")  # of five steps each
    assert re.search(
        r"^5 steps, after 5 others", (tmp_path / "profile/summary.md").read_text(), re.M
    )


def test_a_profile_that_cannot_be_written_is_told(rendered: Manifest, tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("a file")
    with pytest.raises(RunError, match=r"profile/trace.json.gz cannot be written: "):
        trained(rendered, tmp_path)
