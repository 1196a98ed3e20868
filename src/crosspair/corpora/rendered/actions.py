"""What happens in a scene: sixteen actions that no single frame tells from their partners.

Where an action has a direction, its partner is the same motion played backwards, at a phase drawn
evenly over the cycle; the four oscillations move one of four channels each and hold the other
three at values drawn from the same distribution. So what one frame shows is distributed alike
within each of these groups, exactly, and only the order of the frames tells the action.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Pose:
    """Where and how a thing is drawn at one instant.

    Lengths are in short sides of the frame, from its middle: ``x`` to the right, ``y`` down.
    """

    x: float
    y: float
    size: float  # diameter
    tilt: float = 0.0  # radians, clockwise
    alpha: float = 1.0  # 0 invisible, 1 solid
    glow: float = 0.0  # 0 its own colour, 1 white


Motion = Callable[[float], tuple[Pose, ...]]
"""The poses of a scene's one or two things at a time in seconds."""

Draw = Callable[[np.random.Generator], Motion]

PARTNERS: tuple[tuple[str, ...], ...] = (
    ("rising", "falling"),
    ("moving left", "moving right"),
    ("growing", "shrinking"),
    ("spinning clockwise", "spinning anticlockwise"),
    ("orbiting clockwise", "orbiting anticlockwise"),
    ("coming together", "drifting apart"),
    ("shaking sideways", "bouncing", "swinging", "blinking"),
)
"""The groups within which single frames are distributed alike."""

ACTIONS = tuple(action for group in PARTNERS for action in group)
"""Every action's label."""


def motion_of(label: str, rng: np.random.Generator) -> Motion:
    """Draw a motion of the action ``label``: its extent, period, phase and place.

    A cycle takes 0.8 to 2 s and repeats for ever, so that any window of 0.93 s shows the action.
    """
    return _MOTIONS[label](rng)


def _rising(rng: np.random.Generator) -> Motion:
    reach, beside = rng.uniform(0.25, 0.31), rng.uniform(-0.12, 0.12)
    size, tilt = rng.uniform(0.34, 0.46), _slight(rng)
    cycle = _cycle(rng, 1.1, 1.6)

    def motion(time: float) -> tuple[Pose, ...]:
        u = cycle(time)
        return (Pose(beside, reach * (1 - 2 * u), size, tilt, _fade(u)),)

    return motion


def _growing(rng: np.random.Generator) -> Motion:
    small, large = rng.uniform(0.16, 0.22), rng.uniform(0.58, 0.68)
    x, y, tilt = rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1), _slight(rng)
    cycle = _cycle(rng, 1.1, 1.6)

    def motion(time: float) -> tuple[Pose, ...]:
        u = cycle(time)
        return (Pose(x, y, small * (large / small) ** u, tilt, _fade(u)),)

    return motion


def _spinning(rng: np.random.Generator) -> Motion:
    x, y = rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1)
    size = rng.uniform(0.46, 0.6)
    cycle = _cycle(rng, 1.3, 2.0)
    return lambda time: (Pose(x, y, size, 2 * math.pi * cycle(time)),)


def _orbiting(rng: np.random.Generator) -> Motion:
    radius, x, y = rng.uniform(0.2, 0.26), rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.05)
    size, tilt = rng.uniform(0.32, 0.4), _slight(rng)
    cycle = _cycle(rng, 1.1, 1.7)

    def motion(time: float) -> tuple[Pose, ...]:
        angle = 2 * math.pi * cycle(time)
        return (Pose(x + radius * math.cos(angle), y + radius * math.sin(angle), size, tilt),)

    return motion


def _meeting(rng: np.random.Generator) -> Motion:
    far, near = rng.uniform(0.31, 0.37), rng.uniform(0.08, 0.11)
    angle, size = rng.uniform(0, 2 * math.pi), rng.uniform(0.27, 0.34)
    tilts = _slight(rng), _slight(rng)
    cycle = _cycle(rng, 1.1, 1.6)

    def motion(time: float) -> tuple[Pose, ...]:
        u = cycle(time)
        away = far + (near - far) * u
        x, y = away * math.cos(angle), away * math.sin(angle)
        first = Pose(x, y, size, tilts[0], _fade(u))
        return first, replace(first, x=-x, y=-y, tilt=tilts[1])

    return motion


def _oscillating(channel: int) -> Draw:
    """One of four channels (sideways, up and down, about a pivot, brightness) moves."""

    def draw(rng: np.random.Generator) -> Motion:
        size, upright = rng.uniform(0.34, 0.44), _slight(rng)
        phases = rng.uniform(0, 2 * math.pi, size=4)
        speed = 2 * math.pi / rng.uniform(0.8, 1.15)
        still = [math.sin(phase) for phase in phases]

        def motion(time: float) -> tuple[Pose, ...]:
            values = list(still)
            values[channel] = math.sin(phases[channel] + speed * time)
            sideways, vertical, swing, light = values
            hang = 0.7 * swing  # radians from the vertical, about a pivot 0.24 above
            return (
                Pose(
                    x=0.19 * sideways - 0.24 * math.sin(hang),
                    y=0.19 * vertical + 0.24 * (math.cos(hang) - 0.87),
                    size=size,
                    tilt=upright + hang,
                    glow=0.36 + 0.36 * light,
                ),
            )

        return motion

    return draw


def _transposed(draw: Draw) -> Draw:
    def drawn(rng: np.random.Generator) -> Motion:
        motion = draw(rng)
        return lambda time: tuple(replace(p, x=p.y, y=p.x) for p in motion(time))

    return drawn


def _backwards(draw: Draw) -> Draw:
    def drawn(rng: np.random.Generator) -> Motion:
        motion = draw(rng)
        return lambda time: motion(-time)

    return drawn


def _cycle(rng: np.random.Generator, shortest: float, longest: float) -> Callable[[float], float]:
    """The position within the cycle, 0 to 1, at a time in seconds."""
    period, phase = rng.uniform(shortest, longest), rng.uniform()
    return lambda time: (time / period + phase) % 1.0


def _fade(u: float) -> float:
    """Solid in the middle of a cycle, faint where it jumps back to its beginning."""
    return min(1.0, 0.05 + 9 * min(u, 1 - u))


def _slight(rng: np.random.Generator) -> float:
    return float(rng.uniform(-0.4, 0.4))


_MOTIONS: dict[str, Draw] = {
    "rising": _rising,
    "falling": _backwards(_rising),
    "moving left": _transposed(_rising),
    "moving right": _backwards(_transposed(_rising)),
    "growing": _growing,
    "shrinking": _backwards(_growing),
    "spinning clockwise": _spinning,
    "spinning anticlockwise": _backwards(_spinning),
    "orbiting clockwise": _orbiting,
    "orbiting anticlockwise": _backwards(_orbiting),
    "coming together": _meeting,
    "drifting apart": _backwards(_meeting),
    "shaking sideways": _oscillating(0),
    "bouncing": _oscillating(1),
    "swinging": _oscillating(2),
    "blinking": _oscillating(3),
}
