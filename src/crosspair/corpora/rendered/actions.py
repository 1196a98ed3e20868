"""The sixteen actions of a scene, and the shapes that perform them.

Within each group of `PARTNERS`, single frames have exactly the same distribution, so an action can
only be recognised from the order of the frames. The partner of a directed action is the same motion
played backwards, at a phase drawn uniformly over the cycle. Each of the four oscillations moves one
of four channels and holds the other three at values drawn from the same distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter


@dataclass(frozen=True)
class Pose:
    """Position and appearance of a shape at one instant.

    Lengths are in short sides of the frame, measured from its centre: ``x`` right, ``y`` down.
    """

    x: float
    y: float
    size: float  # diameter
    tilt: float = 0.0  # radians, clockwise
    alpha: float = 1.0  # 0 invisible, 1 solid
    glow: float = 0.0  # 0 original colour, 1 white


Motion = Callable[[float], tuple[Pose, ...]]
"""The poses of a scene's one or two shapes at a time in seconds."""

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
"""Groups of actions whose single frames have the same distribution."""

ACTIONS = tuple(action for group in PARTNERS for action in group)
"""The labels of all actions."""


def draw_motion(label: str, rng: np.random.Generator) -> Motion:
    """Draw a random motion of the action ``label``: its extent, period, phase and position.

    A cycle takes 0.8 to 2 s and repeats, so that any window of 0.93 s shows the action.
    """
    return _MOTIONS[label](rng)


def _rising(rng: np.random.Generator) -> Motion:
    reach, x = rng.uniform(0.25, 0.31), rng.uniform(-0.12, 0.12)
    size, tilt = rng.uniform(0.34, 0.46), _draw_tilt(rng)
    cycle = _draw_cycle(rng, 1.1, 1.6)

    def motion(time: float) -> tuple[Pose, ...]:
        u = cycle(time)
        return (Pose(x, reach * (1 - 2 * u), size, tilt, _fade(u)),)

    return motion


def _growing(rng: np.random.Generator) -> Motion:
    small, large = rng.uniform(0.16, 0.22), rng.uniform(0.58, 0.68)
    x, y, tilt = rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1), _draw_tilt(rng)
    cycle = _draw_cycle(rng, 1.1, 1.6)

    def motion(time: float) -> tuple[Pose, ...]:
        u = cycle(time)
        return (Pose(x, y, small * (large / small) ** u, tilt, _fade(u)),)

    return motion


def _spinning(rng: np.random.Generator) -> Motion:
    x, y = rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1)
    size = rng.uniform(0.46, 0.6)
    cycle = _draw_cycle(rng, 1.3, 2.0)
    return lambda time: (Pose(x, y, size, 2 * math.pi * cycle(time)),)


def _orbiting(rng: np.random.Generator) -> Motion:
    radius, x, y = rng.uniform(0.2, 0.26), rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.05)
    size, tilt = rng.uniform(0.32, 0.4), _draw_tilt(rng)
    cycle = _draw_cycle(rng, 1.1, 1.7)

    def motion(time: float) -> tuple[Pose, ...]:
        angle = 2 * math.pi * cycle(time)
        return (Pose(x + radius * math.cos(angle), y + radius * math.sin(angle), size, tilt),)

    return motion


def _meeting(rng: np.random.Generator) -> Motion:
    far, near = rng.uniform(0.31, 0.37), rng.uniform(0.08, 0.11)
    angle, size = rng.uniform(0, 2 * math.pi), rng.uniform(0.27, 0.34)
    tilts = _draw_tilt(rng), _draw_tilt(rng)
    cycle = _draw_cycle(rng, 1.1, 1.6)

    def motion(time: float) -> tuple[Pose, ...]:
        u = cycle(time)
        distance = far + (near - far) * u
        x, y = distance * math.cos(angle), distance * math.sin(angle)
        first = Pose(x, y, size, tilts[0], _fade(u))
        return first, replace(first, x=-x, y=-y, tilt=tilts[1])

    return motion


def _oscillating(channel: int) -> Draw:
    """Return a `Draw` of a sine motion in one channel: 0 horizontal, 1 vertical, 2 swing, 3 brightness."""

    def draw(rng: np.random.Generator) -> Motion:
        size, upright = rng.uniform(0.34, 0.44), _draw_tilt(rng)
        phases = rng.uniform(0, 2 * math.pi, size=4)
        speed = 2 * math.pi / rng.uniform(0.8, 1.15)
        still = [math.sin(phase) for phase in phases]

        def motion(time: float) -> tuple[Pose, ...]:
            values = list(still)
            values[channel] = math.sin(phases[channel] + speed * time)
            horizontal, vertical, swing, light = values
            hang = 0.7 * swing  # radians from the vertical, about a pivot 0.24 above
            return (
                Pose(
                    x=0.19 * horizontal - 0.24 * math.sin(hang),
                    y=0.19 * vertical + 0.24 * (math.cos(hang) - 0.87),
                    size=size,
                    tilt=upright + hang,
                    glow=0.36 + 0.36 * light,
                ),
            )

        return motion

    return draw


def _transpose(draw: Draw) -> Draw:
    """Return a `Draw` whose motions have x and y exchanged."""

    def drawn(rng: np.random.Generator) -> Motion:
        motion = draw(rng)
        return lambda time: tuple(replace(p, x=p.y, y=p.x) for p in motion(time))

    return drawn


def _reverse(draw: Draw) -> Draw:
    """Return a `Draw` whose motions run backwards in time."""

    def drawn(rng: np.random.Generator) -> Motion:
        motion = draw(rng)
        return lambda time: motion(-time)

    return drawn


def _draw_cycle(rng: np.random.Generator, shortest: float, longest: float) -> Callable[[float], float]:
    """Draw a function from a time in seconds to the position in the cycle, 0 to 1."""
    period, phase = rng.uniform(shortest, longest), rng.uniform()
    return lambda time: (time / period + phase) % 1.0


def _fade(u: float) -> float:
    """Opacity: 1 in the middle of a cycle, low where it jumps back to its start."""
    return min(1.0, 0.05 + 9 * min(u, 1 - u))


def _draw_tilt(rng: np.random.Generator) -> float:
    return float(rng.uniform(-0.4, 0.4))


_MOTIONS: dict[str, Draw] = {
    "rising": _rising,
    "falling": _reverse(_rising),
    "moving left": _transpose(_rising),
    "moving right": _reverse(_transpose(_rising)),
    "growing": _growing,
    "shrinking": _reverse(_growing),
    "spinning clockwise": _spinning,
    "spinning anticlockwise": _reverse(_spinning),
    "orbiting clockwise": _orbiting,
    "orbiting anticlockwise": _reverse(_orbiting),
    "coming together": _meeting,
    "drifting apart": _reverse(_meeting),
    "shaking sideways": _oscillating(0),
    "bouncing": _oscillating(1),
    "swinging": _oscillating(2),
    "blinking": _oscillating(3),
}


SHAPES = (
    "ball", "square", "triangle", "star", "heart", "ring", "cross", "moon", "arrow", "fish",
    "house",
)  # fmt: skip

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (226, 44, 52),
    "orange": (247, 134, 26),
    "yellow": (250, 214, 40),
    "green": (52, 178, 74),
    "blue": (42, 104, 230),
    "purple": (140, 66, 200),
    "pink": (246, 110, 178),
    "turquoise": (34, 196, 200),
}

_OVERSAMPLING = 3  # shapes are drawn this much larger, then reduced
_MARGIN = 1.25  # side of a sprite divided by the diameter of its shape; leaves room for the halo


class Sprite:
    """An image of a shape that can be drawn at any position, size and tilt.

    Args:
        shape: one of `SHAPES`.
        colour: RGB.
        largest: the largest diameter at which it is drawn, in pixels.
        mirrored: swap left and right.
    """

    def __init__(self, shape: str, colour: tuple[int, int, int], largest: float, mirrored: bool = False) -> None:
        side = max(16, round(largest * _MARGIN))
        image = _paint(shape, colour, side)
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        # Premultiplied alpha, so that transforms do not mix in the colour of transparent pixels.
        levels = [image.convert("RGBa")]
        while levels[-1].width > 24:
            levels.append(levels[-1].reduce(2))
        self._levels = levels

    def draw(self, frame: NDArray[np.uint8], pose: Pose) -> None:
        """Draw the shape in a pose on ``frame`` (H, W, 3), in place."""
        height, width = frame.shape[:2]
        short = min(height, width)
        x, y = width / 2 + pose.x * short, height / 2 + pose.y * short
        side = pose.size * short * _MARGIN
        left, right = max(0, math.floor(x - side / 2)), min(width, math.ceil(x + side / 2))
        top, bottom = max(0, math.floor(y - side / 2)), min(height, math.ceil(y + side / 2))
        if left >= right or top >= bottom:
            return
        source = next((s for s in reversed(self._levels) if s.width >= side), self._levels[0])
        zoom = source.width / side
        cos, sin = zoom * math.cos(pose.tilt), zoom * math.sin(pose.tilt)
        middle = source.width / 2
        patch = source.transform(
            (right - left, bottom - top),
            Image.Transform.AFFINE,
            (
                *(cos, sin, middle - cos * (x - left) - sin * (y - top)),
                *(-sin, cos, middle + sin * (x - left) - cos * (y - top)),
            ),
            Image.Resampling.BILINEAR,
        )
        _blend(frame[top:bottom, left:right], np.asarray(patch), pose.alpha, pose.glow)


def _blend(below: NDArray[np.uint8], patch: NDArray[np.uint8], alpha: float, glow: float) -> None:
    """Blend a premultiplied RGBA patch over ``below`` (H, W, 3), in place; ``glow`` mixes in white."""
    cover = patch[..., 3:].astype(np.float32)
    colour = patch[..., :3].astype(np.float32)
    if glow:
        colour += (cover - colour) * np.float32(glow)
    cover *= np.float32(alpha / 255)
    colour *= np.float32(alpha)
    below[...] = below * (1 - cover) + colour + np.float32(0.5)


def _paint(shape: str, colour: tuple[int, int, int], side: int) -> Image.Image:
    """Paint an RGBA image of ``side`` pixels: dark halo, white rim, the shape in its colour, half shaded."""
    fine = side * _OVERSAMPLING
    inside = _shape_mask(shape, fine)
    rim = inside.filter(ImageFilter.GaussianBlur(fine * 0.022)).point([0] * 16 + [255] * 240)
    halo = rim.filter(ImageFilter.GaussianBlur(fine * 0.035)).point([v // 2 for v in range(256)])
    half = Image.new("L", (fine, fine))
    ImageDraw.Draw(half).polygon([(0, fine), (fine, 0), (fine, fine)], fill=255)
    image = Image.new("RGB", (fine, fine), (12, 14, 22))
    image.paste((250, 250, 246), mask=rim)
    image.paste(colour, mask=inside)
    shade = tuple(int(channel * 0.5) for channel in colour)
    image.paste(shade, mask=ImageChops.darker(inside, half))
    image.putalpha(ImageChops.lighter(rim, halo))
    return image.resize((side, side), Image.Resampling.BOX)


def _shape_mask(shape: str, side: int) -> Image.Image:
    """Return a square mask of ``side`` pixels: 255 inside the shape, 0 outside, with a margin."""
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)

    def at(x: float, y: float) -> tuple[float, float]:
        return (side / 2) * (1 + x / _MARGIN), (side / 2) * (1 + y / _MARGIN)

    def disc(x: float, y: float, across: float, down: float, fill: int = 255) -> None:
        pen.ellipse([at(x - across, y - down), at(x + across, y + down)], fill=fill)

    def polygon(*corners: tuple[float, float]) -> None:
        pen.polygon([at(x, y) for x, y in corners], fill=255)

    if shape == "ball":
        disc(0, 0, 0.92, 0.92)
    elif shape == "square":
        polygon((-0.76, -0.76), (0.76, -0.76), (0.76, 0.76), (-0.76, 0.76))
    elif shape == "triangle":
        polygon((0, -0.98), (0.9, 0.66), (-0.9, 0.66))
    elif shape == "star":
        polygon(*(_polar(1.0 if i % 2 == 0 else 0.46, -90 + 36 * i) for i in range(10)))
    elif shape == "heart":
        polygon(*(_heart(2 * math.pi * i / 60) for i in range(60)))
    elif shape == "ring":
        disc(0, 0, 0.95, 0.95)
        disc(0, 0, 0.42, 0.42, fill=0)
    elif shape == "cross":
        polygon((-0.3, -0.95), (0.3, -0.95), (0.3, 0.95), (-0.3, 0.95))
        polygon((-0.95, -0.3), (0.95, -0.3), (0.95, 0.3), (-0.95, 0.3))
    elif shape == "moon":
        disc(0, 0, 0.95, 0.95)
        disc(0.5, -0.12, 0.72, 0.72, fill=0)
    elif shape == "arrow":
        polygon((0, -1), (0.8, -0.1), (-0.8, -0.1))
        polygon((-0.34, -0.12), (0.34, -0.12), (0.34, 0.9), (-0.34, 0.9))
    elif shape == "fish":
        disc(-0.2, 0, 0.74, 0.52)
        polygon((0.25, 0), (0.96, -0.6), (0.96, 0.6))
        disc(-0.58, -0.12, 0.11, 0.11, fill=0)
    elif shape == "house":
        polygon((-0.66, -0.15), (0.66, -0.15), (0.66, 0.82), (-0.66, 0.82))
        polygon((0, -0.98), (0.96, -0.05), (-0.96, -0.05))
    else:
        raise ValueError(f"shape {shape!r} is unknown; it must be one of {', '.join(SHAPES)}")
    return mask


def _polar(radius: float, degrees: float) -> tuple[float, float]:
    return radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees))


def _heart(t: float) -> tuple[float, float]:
    """Return the point (x right, y down) of a heart's outline at parameter ``t``, 0 to 2π."""
    x = 16 * math.sin(t) ** 3
    y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return x / 17, -(y + 2) / 17
