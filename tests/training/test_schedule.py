"""Optimizers, learning rates of each stage, when stage II begins, and drops at saturation."""

import copy

import pytest
import torch
from torch import nn

from crosspair.config import CurriculumConfig, OptimizerConfig, PlateauConfig, Recipe, TowersOptimizerConfig
from crosspair.models import CPD, WordAverage
from crosspair.training.schedule import (
    Curriculum,
    Plateau,
    build_grouped_optimizer,
    build_optimizer,
    compute_lr_factor,
    set_learning_rates,
)


def stages(config: CurriculumConfig, scores: list[float]) -> list[int]:
    curriculum = Curriculum(config)
    result = []
    for epoch, score in enumerate(scores, start=1):
        curriculum.observe(score)
        curriculum.advance(epoch)
        result.append(curriculum.stage)
    return result


@pytest.mark.parametrize(
    ("config", "scores", "expected"),
    [
        # Two validations without improvement, or a fixed epoch.
        (CurriculumConfig(patience=2), [0.1, 0.2, 0.2, 0.3, 0.1, 0.3, 0.9], [1, 1, 1, 1, 1, 2, 2]),
        (CurriculumConfig(patience=1, stage2_epoch=4), [0.1] * 5, [1, 1, 1, 2, 2]),
        (CurriculumConfig(strategy="frozen", patience=1), [0.1] * 4, [1] * 4),
        (CurriculumConfig(strategy="joint"), [0.1], [2]),
    ],
)
def test_stages(config: CurriculumConfig, scores: list[float], expected: list[int]) -> None:
    assert stages(config, scores) == expected


def test_stage_two_may_begin_at_epoch_zero() -> None:
    assert Curriculum(CurriculumConfig(stage2_epoch=0)).stage == 2
    assert Curriculum(CurriculumConfig(stage2_epoch=1)).stage == 1


def test_restored_curriculum_keeps_its_count() -> None:
    config = CurriculumConfig(patience=2)
    curriculum, restored = Curriculum(config), Curriculum(config)
    for score in (0.5, 0.4):
        curriculum.observe(score)
    restored.load_state_dict(curriculum.state_dict())
    restored.observe(0.5)
    assert restored.advance(3)


def tiny_model() -> CPD:
    recipe = Recipe()
    encoder = WordAverage(["dog", "cat"], torch.eye(2))
    return CPD(encoder, recipe.clip, recipe.video, recipe.text, recipe.head)


@pytest.mark.parametrize(
    ("strategy", "stage", "rest", "text"),
    [("curriculum", 1, 0.2, 0.0), ("curriculum", 2, 0.02, 3e-5), ("joint", 2, 0.2, 3e-5)],
)
def test_learning_rates_of_each_stage_are_the_papers(strategy, stage, rest, text) -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, torch.nn.Identity(), OptimizerConfig())
    set_learning_rates(optimizer, stage, 5, 10, TowersOptimizerConfig(), CurriculumConfig(strategy=strategy))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in model.text_encoder.parameters()} == {text}
    others = {id(p) for p in model.parameters()} - {id(p) for p in model.text_encoder.parameters()}
    assert {rates[each] for each in others} == {rest}
    assert len(rates) == len(list(model.parameters()))


def test_text_head_factor_zero_keeps_its_initial_weights() -> None:
    model = tiny_model()
    config = TowersOptimizerConfig(name="adamw", text_head_factor=0)
    optimizer = build_optimizer(model, torch.nn.Identity(), config)
    set_learning_rates(optimizer, 1, 5, 10, config, CurriculumConfig())
    before = {name: value.clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name for name, value in model.named_parameters() if not value.equal(before[name])}
    assert moved == {name for name in before if not name.startswith(("text_head", "text_encoder"))}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_learning_rates_of_the_video_encoder(name: str) -> None:
    model = tiny_model()
    config = TowersOptimizerConfig(name=name, lr=2.0, encoder_factor=0.5, layer_decay=0.1, text_head_factor=3.0)
    saved = build_optimizer(model, torch.nn.Identity(), config).state_dict()
    optimizer = build_optimizer(model, torch.nn.Identity(), config)
    optimizer.load_state_dict(saved)
    rate = set_learning_rates(optimizer, 1, 5, 10, config, CurriculumConfig())
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    by_part: dict[str, set[float]] = {}
    for key, value in model.named_parameters():
        by_part.setdefault(".".join(key.split(".")[: 2 if key.startswith("video_encoder") else 1]), set()).add(
            round(rates[id(value)], 9)
        )
    assert by_part == {
        "video_encoder.stem": {1e-4}, "video_encoder.res2": {1e-3}, "video_encoder.res3": {1e-2},
        "video_encoder.res4": {0.1}, "video_encoder.res5": {1.0},
        "video_head": {2.0}, "text_head": {6.0}, "text_encoder": {0.0},
    }  # fmt: skip
    assert rate == 2.0


def test_groups_of_old_checkpoints() -> None:
    model, config = tiny_model(), TowersOptimizerConfig(name="adamw")
    optimizer = build_optimizer(model, torch.nn.Identity(), config)
    roles = [(group["role"], group["weight_decay"] > 0) for group in optimizer.param_groups]
    assert roles == [("rest", True), ("rest", False), ("text_head", True), ("text_head", False), ("text", True)]
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["factor"]
    optimizer.load_state_dict(state)
    assert set_learning_rates(optimizer, 1, 5, 10, config, CurriculumConfig()) == 0.2
    assert optimizer.param_groups[0]["lr"] == 0.2


def test_schedules_by_hand() -> None:
    step = OptimizerConfig(schedule="step", step_epochs=(4, 8))
    assert [compute_lr_factor(e, 10, step) for e in (3.9, 4, 9)] == pytest.approx([1, 0.1, 0.01])
    cosine = OptimizerConfig(schedule="cosine", warmup_epochs=2)
    assert [compute_lr_factor(e, 10, cosine) for e in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_adamw_does_not_decay_biases() -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, torch.nn.Identity(), OptimizerConfig(name="adamw"))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(model.video_head.bias)] == 0
    assert decay[id(model.video_head.weight)] == OptimizerConfig().weight_decay


# --- saturation of the validation loss -----------------------------------------------------------


def run_plateau(losses: list[float], drops: int = 2, patience: int = 2) -> list[tuple[float, bool]]:
    """(factor, ended) after each validation."""
    plateau = Plateau(PlateauConfig(drops, patience))
    after = []
    for loss in losses:
        plateau.observe(loss)
        plateau.advance()
        after.append((round(plateau.factor, 6), plateau.ended))
    return after


def test_two_drops_then_the_end() -> None:
    on, tenth, hundredth = (1.0, False), (0.1, False), (0.01, False)
    #         best, best, -, saturated, better, -, saturated, -, saturated
    losses = [3.0, 2.0, 2.0, 2.5, 1.5, 1.5, 1.6, 1.6, 1.5]
    expected = [on, on, on, tenth, tenth, tenth, hundredth, hundredth, (0.01, True)]
    assert run_plateau(losses) == expected


def test_no_drop_while_the_loss_improves() -> None:
    assert set(run_plateau([1 / n for n in range(1, 20)])) == {(1.0, False)}


def test_nan_is_no_improvement() -> None:
    assert run_plateau([1.0, float("nan"), float("nan")])[-1] == (0.1, False)


@pytest.mark.parametrize("drops", [1, 3])
def test_number_of_drops(drops: int) -> None:
    after = run_plateau([1.0] * 20, drops, patience=1)
    assert [factor for factor, _ in after[1 : drops + 1]] == [round(0.1**n, 6) for n in range(1, drops + 1)]
    assert [ended for _, ended in after].index(True) == drops + 1


def test_zero_drops_never_end() -> None:
    assert set(run_plateau([1.0] * 20, drops=0)) == {(1.0, False)}


@pytest.mark.parametrize("cut", [0, 3, 6])
def test_resumed_plateau_is_identical(cut: int) -> None:
    losses = [3.0, 2.0, 2.0, 2.5, 1.5, 1.5, 1.6, 1.6, 1.5]
    whole = run_plateau(losses)
    config = PlateauConfig(2, 2)
    first, after = Plateau(config), []
    for loss in losses[:cut]:
        first.observe(loss)
        first.advance()
    second = Plateau(config)
    second.load_state_dict(first.state_dict())
    for loss in losses[cut:]:
        second.observe(loss)
        second.advance()
        after.append((round(second.factor, 6), second.ended))
    assert after == whole[cut:]


# --- fused optimizers ------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    # A bias before batch normalisation has a gradient of zero.
    return nn.Sequential(nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7), nn.Linear(7, 3))


def after_steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    for step in range(5):
        torch.manual_seed(step)
        model(torch.randn(6, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_equals_unfused(name: str) -> None:
    model, twin = network(), network()
    begun = [parameter.detach().clone() for parameter in model.parameters()]
    config = OptimizerConfig(name=name, lr=1e-2, weight_decay=0.1)
    moved = after_steps(model, build_grouped_optimizer({"rest": model.parameters()}, config))
    plain = build_grouped_optimizer({"rest": twin.parameters()}, config)
    for group in plain.param_groups:
        group["fused"], group["foreach"] = False, False
    torch.testing.assert_close(moved, after_steps(twin, plain), rtol=1e-5, atol=1e-6)
    assert all(not torch.equal(one, other) for one, other in zip(moved, begun, strict=True))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_state_of_an_unfused_optimizer_is_loaded(name: str) -> None:
    model = network()
    config = OptimizerConfig(name=name, lr=1e-2)
    old = build_grouped_optimizer({"rest": model.parameters()}, config)
    for group in old.param_groups:
        group["fused"] = None
    after_steps(model, old)
    saved = copy.deepcopy(old.state_dict())
    twin = copy.deepcopy(model)
    new = build_grouped_optimizer({"rest": twin.parameters()}, config)
    new.load_state_dict(saved)
    torch.testing.assert_close(after_steps(twin, new), after_steps(model, old))
