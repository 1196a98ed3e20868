"""Motion of the rendered corpus: only the order of frames shows the action."""

from __future__ import annotations

from dataclasses import astuple, replace
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from crosspair.corpora.rendered import PARTNERS, draw_motion, draw_scene, render_frames


def sampled(label: str, draws: int, apart: float) -> NDArray[np.float64]:
    """What a frame shows at a random time and ``apart`` seconds later: (draws, 2, values)."""
    found = []
    for seed in range(draws):
        motion = draw_motion(label, np.random.default_rng((seed, 99)))
        time = np.random.default_rng((seed, sum(map(ord, label)))).uniform(0, 3)
        found.append([[v for pose in motion(t) for v in astuple(pose)] for t in (time, time + apart)])
    return np.array(found)


def distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Kolmogorov-Smirnov: the largest difference of the two distribution functions."""
    at = np.concatenate([a, b])
    shares = [np.searchsorted(np.sort(v), at, "right") / len(v) for v in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


@pytest.mark.parametrize("group", PARTNERS)
def test_single_frames_are_distributed_alike(group: tuple[str, ...]) -> None:
    draws = 1500
    frames = {label: sampled(label, draws, 0)[:, 0] for label in group}
    first, *others = group
    # The 0.1 % point of the distance between two samples of one distribution.
    bound = 1.95 * np.sqrt(2 / draws)
    mixes = np.random.default_rng(0).normal(size=(12, frames[first].shape[1]))
    for label in others:
        for column in range(frames[first].shape[1]):
            a, b = frames[first][:, column], frames[label][:, column]
            # To within rounding: columns that are constant in one and computed in the other.
            assert distance(a.round(9), b.round(9)) < bound, (label, column)
        for mix in mixes:  # joint distributions, too
            assert distance(frames[first] @ mix, frames[label] @ mix) < bound, label


def test_actions_of_different_pairs_do_differ_in_the_same_test() -> None:
    rising, left = (sampled(label, 1500, 0)[:, 0] for label in ("rising", "moving left"))
    assert distance(rising[:, 0], left[:, 0]) > 0.2


@pytest.mark.parametrize(
    ("label", "column", "sign"),
    [
        *(("rising", 1, -1), ("falling", 1, 1), ("moving left", 0, -1), ("moving right", 0, 1)),
        *(("growing", 2, 1), ("shrinking", 2, -1)),
    ],
)
def test_displacement_shows_the_direction(label: str, column: int, sign: int) -> None:
    frames = sampled(label, 300, 0.25)
    moved = sign * (frames[:, 1] - frames[:, 0])[:, column]
    jumped = moved < -0.1  # back to the beginning of the cycle, out of sight
    assert (moved[~jumped] > 0.02).all()
    assert jumped.mean() < 0.3


@pytest.mark.parametrize("kind", ["spinning", "orbiting"])
def test_turns_go_the_way_they_are_named(kind: str) -> None:
    for way, sign in (("clockwise", 1), ("anticlockwise", -1)):
        now, later = sampled(f"{kind} {way}", 300, 0.2).transpose(1, 0, 2)
        if kind == "spinning":
            turned = np.angle(np.exp(1j * (later[:, 3] - now[:, 3])))
        else:  # the cross product of where it is and where it goes; y is down
            turned = now[:, 0] * (later - now)[:, 1] - now[:, 1] * (later - now)[:, 0]
        assert (sign * turned > 0).mean() > 0.97


def test_distance_distinguishes_meeting_from_parting() -> None:
    for label, sign in (("coming together", -1), ("drifting apart", 1)):
        frames = sampled(label, 300, 0.25)
        gap = np.hypot(frames[..., 0] - frames[..., 6], frames[..., 1] - frames[..., 7])
        moved = sign * (gap[:, 1] - gap[:, 0])
        assert (moved[moved > -0.15] > 0.02).all()


def test_each_oscillation_moves_its_own_channel() -> None:
    # Columns of a pose: x 0, y 1, tilt 3, glow 5. Only swinging changes more than one.
    live = {"shaking sideways": {0}, "bouncing": {1}, "swinging": {0, 1, 3}, "blinking": {5}}
    for label, columns in live.items():
        for seed in range(20):
            motion = draw_motion(label, np.random.default_rng(seed))
            values = np.array([astuple(motion(n * 4 / 30)[0]) for n in range(8)])
            assert set(np.flatnonzero(np.ptp(values, axis=0) > 1e-6)) == columns, label
            assert np.ptp(values, axis=0)[list(columns)].max() > 0.2, label


def test_motion_is_a_function_of_time_not_of_frames() -> None:
    slow = draw_scene(0, 3, "rising")
    slow = replace(slow, fps=Fraction(25), frames=60)
    fast = replace(slow, fps=Fraction(50), frames=120)
    np.testing.assert_array_equal(list(render_frames(slow)), list(render_frames(fast))[::2])
