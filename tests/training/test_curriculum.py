"""When stage II begins, and the learning rates of each stage."""

import pytest
import torch

from crosspair.config import CurriculumConfig, OptimizerConfig, Recipe, TowersOptimizerConfig
from crosspair.models import CPD, WordAverage
from crosspair.training.schedule import Curriculum, build_optimizer, compute_lr_factor, set_learning_rates


def stages(config: CurriculumConfig, scores: list[float]) -> list[int]:
    curriculum = Curriculum(config)
    result = []
    for epoch, score in enumerate(scores, start=1):
        curriculum.observe(score)
        curriculum.advance(epoch)
        result.append(curriculum.stage)
    return result


def test_stage_two_begins_after_patience_validations_without_improvement() -> None:
    config = CurriculumConfig(patience=2)
    assert stages(config, [0.1, 0.2, 0.2, 0.3, 0.1, 0.3, 0.9]) == [1, 1, 1, 1, 1, 2, 2]


def test_a_fixed_epoch_overrides_saturation() -> None:
    config = CurriculumConfig(patience=1, stage2_epoch=4)
    assert stages(config, [0.1] * 5) == [1, 1, 1, 2, 2]


def test_stage_two_may_begin_at_epoch_zero() -> None:
    assert Curriculum(CurriculumConfig(stage2_epoch=0)).stage == 2
    assert Curriculum(CurriculumConfig(stage2_epoch=1)).stage == 1


def test_frozen_never_leaves_stage_one_and_joint_never_has_it() -> None:
    assert stages(CurriculumConfig(strategy="frozen", patience=1), [0.1] * 4) == [1] * 4
    assert stages(CurriculumConfig(strategy="joint"), [0.1]) == [2]


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
