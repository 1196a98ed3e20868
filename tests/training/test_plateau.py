"""Learning rate at saturation: ÷10, ÷10, end of the training."""

from __future__ import annotations

import pytest

from crosspair.config import PlateauConfig
from crosspair.training.schedule import Plateau


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


def test_observe_returns_whether_the_loss_is_the_lowest() -> None:
    plateau = Plateau(PlateauConfig())
    assert [plateau.observe(loss) for loss in (2.0, 3.0, 2.0, 1.0)] == [True, False, False, True]
    assert plateau.best == 1.0


@pytest.mark.parametrize("cut", range(9))
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
