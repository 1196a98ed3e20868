"""Averages: of the weights over steps, for validation and the exported model; of statistics over processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from crosspair.distributed import World


class WeightAverage:
    """Average of the trained parameters and of the running statistics of batch normalisation.

    The statistics are averaged, too, rather than copied: as a function of the weights they are approximately linear
    along the short path of the last steps, so that their average fits the average weights, and the last ones do not.
    A parameter that is trained later, such as those of the language model in stage II, joins with its value after its
    first step.

    Args:
        decay: d of average ← d·average + (1 − d)·weights after each step, in [0, 1); 0: no average. In the first steps
            it is smaller, (1 + t)/(10 + t) in step t, so that the initial weights are forgotten.

    Attributes:
        values: averages by the name of the parameter or buffer.
        updates: number of steps so far.
    """

    def __init__(self, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values: dict[str, torch.Tensor] = {}

    @property
    def statistics(self) -> list[torch.Tensor]:
        """The averages of running statistics."""
        return [value for name, value in self.values.items() if _is_statistic(name)]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Include the weights after a training step."""
        if not self.decay:
            return
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        current = trained | {name: value for name, value in model.named_buffers() if _is_statistic(name)}
        for name, value in current.items():
            if name not in self.values:
                self.values[name] = value.clone()
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages = [self.values[name] for name in current]
        get_ema_multi_avg_fn(decay)(averages, list(current.values()), self.updates)  # type: ignore[no-untyped-call]
        self.updates += 1

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averages for the duration of a block; afterwards its weights are the same bit for bit."""
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, average in self.values.items():
            weights = tensors[name].clone()
            tensors[name].copy_(average)
            average.copy_(weights)

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        self.updates = state["updates"]
        self.values = {name: value.to(device, copy=True) for name, value in state["values"].items()}


def _is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var"))


@torch.no_grad()
def average_running_stats(buffers: Iterable[torch.Tensor], world: World) -> None:
    """Replace the running statistics of every process by their mean over all processes."""
    if world.size == 1:
        return
    for buffer in buffers:
        if buffer.is_floating_point():
            buffer.copy_(world.sum(buffer) / world.size)
