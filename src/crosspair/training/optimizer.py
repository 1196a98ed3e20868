"""Optimisers, and the rate at each moment: stage, warm-up, schedule (Section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from crosspair.config import CurriculumConfig, OptimizerConfig, TowersOptimizerConfig
from crosspair.models import CPD


def build_optimizer(
    model: CPD, objective: nn.Module, config: OptimizerConfig
) -> torch.optim.Optimizer:
    """An optimiser of both towers: the language model, the text head, and all the rest.

    Class weights that an objective learns (Equation 1) move as fast as the rest.
    """
    text, text_head = list(model.text_encoder.parameters()), list(model.text_head.parameters())
    apart = {id(parameter) for parameter in (*text, *text_head)}
    every = (*model.parameters(), *objective.parameters())
    rest = [parameter for parameter in every if id(parameter) not in apart]
    return optimizer_of({"rest": rest, "text_head": text_head, "text": text}, config)


def optimizer_of(
    roles: Mapping[str, Iterable[nn.Parameter]], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """An optimiser with groups of parameters for each role.

    With AdamW, biases and the weights of batch normalisation do not decay.
    """
    groups: list[dict[str, Any]] = []
    for role, parameters in roles.items():
        split: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for parameter in parameters:
            split[parameter.dim() > 1 or config.name == "sgd"].append(parameter)
        for decays, members in split.items():
            if members:
                weight_decay = config.weight_decay if decays else 0.0
                groups.append({"params": members, "weight_decay": weight_decay, "role": role})
    # One pass over the weights in place of one for each operation, where there is a kernel for it.
    devices = {each.device.type for group in groups for each in group["params"]}
    fused = devices <= {"cpu", "cuda"} or None
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=fused)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)


def set_rates(
    optimizer: torch.optim.Optimizer,
    stage: int,
    epoch: float,
    epochs: int,
    config: TowersOptimizerConfig,
    curriculum: CurriculumConfig,
) -> float:
    """Set every group's learning rate for the moment; return that of all but the language model.

    Args:
        optimizer: of `build_optimizer`.
        stage: of the curriculum, 1 or 2.
        epoch: where the training is, fractional.
        epochs: where it ends.
        config: the rates of stage I, warm-up and schedule.
        curriculum: the rates of stage II.
    """
    lowered = stage == 2 and curriculum.strategy == "curriculum"
    rest = curriculum.stage2_lr if lowered else config.lr
    base = {
        "rest": rest,
        "text_head": rest * config.text_head_factor,
        "text": curriculum.text_lr if stage == 2 else 0.0,
    }
    factor = rate_factor(epoch, epochs, config)
    for group in optimizer.param_groups:
        group["lr"] = base[group["role"]] * factor
    return rest * factor


def rate_factor(epoch: float, epochs: int, config: OptimizerConfig) -> float:
    """Share of the base rate at a moment: warm-up times schedule.

    >>> rate_factor(5, 10, OptimizerConfig(schedule="cosine"))
    0.5
    """
    warmup = min(1.0, epoch / config.warmup_epochs) if config.warmup_epochs else 1.0
    if config.schedule == "cosine":
        progress = (epoch - config.warmup_epochs) / max(epochs - config.warmup_epochs, 1e-9)
        return warmup * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
    if config.schedule == "step":
        return warmup * 0.1 ** sum(epoch >= step for step in config.step_epochs)
    return warmup
