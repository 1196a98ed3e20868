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
from crosspair.training.profile import STEPS, WARM_UP
from tests.e2e.conftest import TINY

pytestmark = pytest.mark.usefixtures("one_thread")

ROW = re.compile(r"^\| ([^|]+) \| ([\d.]+) \| (-?[\d.]+)% \|$", re.MULTILINE)
SECTIONS = {"data wait", "copy", "forward", "objective", "backward", "optimiser", "bank", "logging"}  # of a step
# Steps long enough that the time of Python between the sections is negligible.
LARGER = ["training.epochs=8", "training.workers=0", "clip.size=64", "video.width=16"]


def fractions(run: Path) -> dict[str, float]:
    """Return each row of the summary's first table, in percent of a step."""
    page = (run / "profile/summary.md").read_text()
    return {name: float(value) for name, _, value in ROW.findall(page)}


def train(rendered: Manifest, run: Path, *overrides: str, profile: bool = True) -> CPD:
    model = pretrain(load_recipe("laptop", [*TINY, *LARGER, *overrides]), rendered, run, profile=profile)
    assert model is not None
    return model


def test_sections_of_a_step(rendered: Manifest, tmp_path: Path) -> None:
    profiled = train(rendered, tmp_path / "profiled").state_dict()
    found = fractions(tmp_path / "profiled")
    assert set(found) >= SECTIONS | {"validation", "checkpoint"}
    assert found.pop("total") == 100
    assert 0 <= found.pop("all else") < 5
    assert sum(found.values()) == pytest.approx(100, abs=5)
    assert found["backward"] > found["logging"]
    with gzip.open(tmp_path / "profiled/profile/trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    for name in SECTIONS:
        assert names.count(name) in {STEPS, 2 * STEPS}, name  # two copies per step
    assert any(event["name"].startswith("aten::") for event in events)
    plain = train(rendered, tmp_path / "plain", profile=False).state_dict()
    assert all(torch.equal(profiled[name], plain[name]) for name in plain)
    assert not (tmp_path / "plain/profile").exists()


def test_fine_tuning_has_no_bank(rendered: Manifest, tmp_path: Path) -> None:
    manifest = rendered.with_columns({"label": [f"class {row % 2}" for row in range(len(rendered))]})
    tiny = [each for each in TINY if each.startswith(("clip", "video", "training"))]
    recipe = read_recipe(FinetuneRecipe, "laptop-finetune", [*tiny, *LARGER, "video.depth=10"])
    assert finetune(recipe, manifest, tmp_path, init=InitWeights("random"), profile=True)
    assert set(fractions(tmp_path)) >= SECTIONS - {"bank"}
    assert "bank" not in fractions(tmp_path)


def test_a_short_training_is_profiled_to_its_end(
    rendered: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        train(rendered, tmp_path / "shorter", "training.batch_size=16", "training.epochs=1")
    assert (WARM_UP,) in [record.args for record in caplog.records]
    assert not (tmp_path / "shorter/profile").exists()
    train(rendered, tmp_path, "training.epochs=2")  # of five steps each
    assert re.search(r"^5 steps ", (tmp_path / "profile/summary.md").read_text(), re.MULTILINE)


def test_unwritable_profile_raises(rendered: Manifest, tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("a file")
    with pytest.raises(RunError, match=r"profile/trace\.json\.gz"):
        train(rendered, tmp_path)
