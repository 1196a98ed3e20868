"""Optimisers, and the rate at each moment: stage, warm-up, schedule (Section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from crosspair.config import CurriculumConfig, OptimizerConfig, PlateauConfig, TowersOptimizerConfig
from crosspair.models.cpd import CPD


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


class Curriculum:
    """Stage I with the language model frozen, then stage II with everything trained.

    Args:
        config: strategy, and when to change.

    Attributes:
        stage: 1 or 2.
        best: highest validation score so far.
    """

    def __init__(self, config: CurriculumConfig) -> None:
        self.config = config
        self.stage = 2 if config.strategy == "joint" else 1
        self.best = float("-inf")
        self._without_gain = 0
        self.advance(0)

    def observe(self, score: float) -> bool:
        """Take in a validation score, higher is better; tell whether it is the best so far."""
        is_best = score > self.best
        self.best = max(self.best, score)
        self._without_gain = 0 if is_best else self._without_gain + 1
        return is_best

    def advance(self, epochs_done: int) -> bool:
        """Go on to stage II if it is time; tell whether it just was."""
        if self.stage == 2 or self.config.strategy != "curriculum":
            return False
        fixed = self.config.stage2_epoch
        due = self._without_gain >= self.config.patience if fixed is None else epochs_done >= fixed
        if due:
            self.stage = 2
        return due

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"stage": self.stage, "best": self.best, "without_gain": self._without_gain}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.stage, self.best = state["stage"], state["best"]
        self._without_gain = state["without_gain"]


class Plateau:
    """Watches the validation loss.

    Args:
        config: how long to wait, and how often to divide.

    Attributes:
        best: lowest loss so far.
        dropped: how often the rate was divided.
        ended: whether the loss saturated once more after that.
    """

    def __init__(self, config: PlateauConfig) -> None:
        self.config = config
        self.best = float("inf")
        self.dropped, self.ended = 0, False
        self._without_gain = 0

    @property
    def factor(self) -> float:
        """Share of the learning rate that is left."""
        return float(0.1**self.dropped)

    def observe(self, loss: float) -> bool:
        """Take in a validation loss; tell whether it is the lowest so far."""
        is_best = loss < self.best
        self.best = min(self.best, loss)
        self._without_gain = 0 if is_best else self._without_gain + 1
        return is_best

    def advance(self) -> bool:
        """Divide the rate, or end, if the loss is saturated; tell whether it is."""
        if not self.config.drops or self._without_gain < self.config.patience:
            return False
        self._without_gain = 0
        if self.dropped < self.config.drops:
            self.dropped += 1
        else:
            self.ended = True
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "best": self.best,
            "dropped": self.dropped,
            "ended": self.ended,
            "without_gain": self._without_gain,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.best, self.dropped, self.ended = state["best"], state["dropped"], state["ended"]
        self._without_gain = state["without_gain"]
