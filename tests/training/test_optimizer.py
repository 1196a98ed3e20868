"""Fused optimizers give the weights of unfused ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from crosspair.config import OptimizerConfig
from crosspair.training.schedule import build_grouped_optimizer


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
