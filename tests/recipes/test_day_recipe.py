"""The one-day recipe: the paper's method, with changes that affect speed only."""

from __future__ import annotations

from crosspair.recipes import load_recipe, recipe_settings

CHANGED = {
    "training.accumulate", "training.precision", "training.workers", "training.validate_every",
    "training.log_every",
}  # fmt: skip


def test_it_differs_from_the_paper_in_speed_settings_only() -> None:
    papers, day = (recipe_settings(load_recipe(f"kinetics210k-resnet50{name}")) for name in ("", "-day"))
    assert {key for key in papers if papers[key] != day[key]} == CHANGED


def test_it_sees_as_many_clips_and_a_day_requires_730_clips_per_second() -> None:
    training = load_recipe("kinetics210k-resnet50-day").training
    seen = training.epochs * 210_000
    assert seen == 63_000_000
    assert round(seen / 86_400, -1) == 730
    assert training.batch_size // training.accumulate >= 256 // 8
