"""Optimizers, learning-rate schedules, the two-stage curriculum and plateau detection."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from crosspair.config import CurriculumConfig, OptimizerConfig, PlateauConfig, TowersOptimizerConfig
from crosspair.models.cpd import CPD
from crosspair.models.encoder import VideoEncoder


def build_optimizer(model: CPD, objective: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer of pre-training, with the roles that `set_learning_rates` expects.

    The class weights that an objective may learn (Equation 1) belong to the role "rest".
    """
    text, text_head = list(model.text_encoder.parameters()), list(model.text_head.parameters())
    separate = {id(parameter) for parameter in (*text, *text_head)}
    parameters = (*model.parameters(), *objective.parameters())
    rest = [parameter for parameter in parameters if id(parameter) not in separate]
    return build_grouped_optimizer({"rest": rest, "text_head": text_head, "text": text}, config, model.video_encoder)


def build_grouped_optimizer(
    roles: Mapping[str, Iterable[nn.Parameter]], config: OptimizerConfig, encoder: VideoEncoder | None = None
) -> torch.optim.Optimizer:
    """Build AdamW or SGD with parameter groups for each role.

    Scalars, and with AdamW also parameters of one dimension (biases, normalisation), have no weight decay. The key
    "factor" of a group is the learning rate relative to that of its role: 1 except for ``encoder``.
    """
    factors = {
        id(parameter): config.encoder_factor * config.layer_decay**after
        for module, after in (encoder.iter_depths() if encoder else ())
        for parameter in module.parameters(recurse=False)
    }
    groups: list[dict[str, Any]] = []
    for role, parameters in roles.items():
        members: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for parameter in parameters:
            decay = parameter.dim() > (0 if config.name == "sgd" else 1)
            key = decay, factors.get(id(parameter), 1.0)
            members.setdefault(key, []).append(parameter)
        for decay, factor in sorted(members, reverse=True):
            weight_decay = config.weight_decay if decay else 0.0
            group = {"params": members[decay, factor], "weight_decay": weight_decay, "role": role, "factor": factor}
            groups.append(group)
    devices = {each.device.type for group in groups for each in group["params"]}
    fused = devices <= {"cpu", "cuda"} or None  # other devices may lack the fused kernels
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=fused)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)


def set_learning_rates(
    optimizer: torch.optim.Optimizer,
    stage: int,
    epoch: float,
    epochs: int,
    config: TowersOptimizerConfig,
    curriculum: CurriculumConfig,
) -> float:
    """Set the learning rate of each role of `build_optimizer` (Section 4.2).

    Args:
        stage: stage of the curriculum, 1 or 2.
        epoch: fractional number of epochs done, of ``epochs``.
        config: learning rates of stage I, warm-up and schedule.
        curriculum: learning rates of stage II.

    Returns:
        The learning rate of all parameters except the text encoder, its head, and a video encoder with another factor.
    """
    rest = curriculum.stage2_lr if stage == 2 and curriculum.strategy == "curriculum" else config.lr
    text = curriculum.text_lr if stage == 2 else 0.0
    base = {"rest": rest, "text_head": rest * config.text_head_factor, "text": text}
    factor = compute_lr_factor(epoch, epochs, config)
    for group in optimizer.param_groups:
        group["lr"] = base[group["role"]] * group.get("factor", 1.0) * factor  # old checkpoints have none
    return rest * factor


def compute_lr_factor(epoch: float, epochs: int, config: OptimizerConfig) -> float:
    """Compute the factor of the base learning rate: warm-up times schedule.

    >>> compute_lr_factor(5, 10, OptimizerConfig(schedule="cosine"))
    0.5
    """
    warmup = min(1.0, epoch / config.warmup_epochs) if config.warmup_epochs else 1.0
    if config.schedule == "cosine":
        progress = (epoch - config.warmup_epochs) / max(epochs - config.warmup_epochs, 1e-9)
        return warmup * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
    if config.schedule == "step":
        return warmup * 0.1 ** sum(epoch >= step for step in config.step_epochs)
    return warmup


class _Saturation:
    """Best validation score so far, and the number of validations since."""

    state: tuple[str, ...] = ("best", "without_gain")  # attributes in checkpoints
    best: float

    def __init__(self) -> None:
        self.without_gain = 0

    def record(self, score: float, is_best: bool) -> bool:
        """Record a score; return ``is_best``."""
        if is_best:
            self.best = score
        self.without_gain = 0 if is_best else self.without_gain + 1
        return is_best

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.state:
            setattr(self, name, state[name])


class Curriculum(_Saturation):
    """Stage I with a frozen language model, then stage II with all weights trained (Section 3.2).

    Attributes:
        stage: 1 or 2.
        best: highest validation score so far.
    """

    state = ("stage", "best", "without_gain")

    def __init__(self, config: CurriculumConfig) -> None:
        super().__init__()
        self.config, self.best = config, float("-inf")
        self.stage = 2 if config.strategy == "joint" else 1
        self.advance(0)

    def observe(self, score: float) -> bool:
        """Record a validation score (higher is better); return whether it is the best so far."""
        return self.record(score, score > self.best)

    def advance(self, epochs_done: int) -> bool:
        """Enter stage II if it is due; return whether it was entered now."""
        if self.stage == 2 or self.config.strategy != "curriculum":
            return False
        fixed = self.config.stage2_epoch
        due = self.without_gain >= self.config.patience if fixed is None else epochs_done >= fixed
        if due:
            self.stage = 2
        return due


class Plateau(_Saturation):
    """Divides the learning rate by 10 when the validation loss is saturated (Section 4.2).

    Attributes:
        best: lowest loss so far.
        dropped: number of divisions so far.
        ended: whether the loss saturated again after the last division.
    """

    state = ("best", "dropped", "ended", "without_gain")

    def __init__(self, config: PlateauConfig) -> None:
        super().__init__()
        self.config, self.best = config, float("inf")
        self.dropped, self.ended = 0, False

    @property
    def factor(self) -> float:
        """Current factor of the learning rate."""
        return float(0.1**self.dropped)

    def observe(self, loss: float) -> bool:
        """Record a validation loss; return whether it is the lowest so far."""
        return self.record(loss, loss < self.best)

    def advance(self) -> bool:
        """Divide the rate, or end, if the loss is saturated; return whether it is."""
        if not self.config.drops or self.without_gain < self.config.patience:
            return False
        self.without_gain = 0
        if self.dropped < self.config.drops:
            self.dropped += 1
        else:
            self.ended = True
        return True
