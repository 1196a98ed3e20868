"""Scenes: two shapes at most that perform an action before a moving background, rendered to frames.

Within each group of `PARTNERS`, single frames have exactly the same distribution, so an action can
only be recognised from the order of the frames. The partner of a directed action is the same motion
played backwards, at a phase drawn uniformly over the cycle. Each of the four oscillations moves one
of four channels and holds the other three at values drawn from the same distribution.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

_T = TypeVar("_T")
Rng = np.random.Generator

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

# Values and their probabilities. Most files are cheap to render; the expensive ones are included
# to cover the variety of real folders.
_CODECS = (("h264", 0.55), ("mpeg4", 0.28), ("vp9", 0.17))
_RATES = (
    *((Fraction(24), 0.27), (Fraction(25), 0.27), (Fraction(30000, 1001), 0.2)),
    *((Fraction(30), 0.2), (Fraction(50), 0.03), (Fraction(60), 0.03)),
)
_ASPECTS = ((Fraction(4, 3), 0.5), (Fraction(3, 2), 0.28), (Fraction(4, 5), 0.22))
_SHORT_SIDES = ((96, 0.3), (108, 0.25), (112, 0.2), (120, 0.15), (128, 0.1))
_GOPS = ((12, 0.65), (48, 0.25), (250, 0.1))

_APPEARANCE, _MOTION = 1, 2  # random streams of a pair; 3 is for titles, 4 for labels
_MAX_DRIFT = 6.0  # px/s of the texture
_MAX_SHAKE = 2.0  # px of the camera
_OVERSAMPLING = 3  # shapes are drawn this much larger, then reduced
_MARGIN = 1.25  # side of a sprite divided by the diameter of its shape; leaves room for the halo


@dataclass(frozen=True)
class Scene:
    """The plan of one video; it determines all frames."""

    seed: int  # of the corpus
    index: int  # of the pair within the corpus
    label: str  # the action, one of `ACTIONS`
    shape: str  # a key of `SHAPES`
    colour: str  # a key of `COLOURS`
    width: int  # pixels, even
    height: int  # pixels, even
    fps: Fraction  # 24 to 60
    frames: int  # for 2 to 6 s
    codec: str  # "h264" (.mp4), "mpeg4" (.avi) or "vp9" (.webm)
    gop: int  # maximum number of frames between key frames

    @property
    def seconds(self) -> float:
        """Duration in s."""
        return float(self.frames / self.fps)


def draw_scene(seed: int, index: int, label: str) -> Scene:
    """Choose the scene of pair ``index`` at random, without rendering; it depends only on the arguments."""
    rng = np.random.default_rng((seed, index))
    aspect, short = _pick(_ASPECTS, rng), _pick(_SHORT_SIDES, rng)
    long = 2 * round(short * max(aspect, 1 / aspect) / 2)
    fps = _pick(_RATES, rng)
    # 2 to 6 s, 2.9 s on average.
    seconds = 2 + 4 * rng.uniform() ** 3.5
    return Scene(
        seed=seed,
        index=index,
        label=label,
        shape=_choose(SHAPES, rng),
        colour=_choose(COLOURS, rng),
        width=long if aspect > 1 else short,
        height=short if aspect > 1 else long,
        fps=fps,
        frames=math.ceil(seconds * fps),
        codec=_pick(_CODECS, rng),
        gop=_pick(_GOPS, rng),
    )


def render_frames(scene: Scene) -> Iterator[NDArray[np.uint8]]:
    """Render the frames of a scene in order, each (height, width, 3), RGB.

    The motion is a function of time, so scenes that differ only in frame rate show the same motion.
    """
    rng = np.random.default_rng((scene.seed, scene.index, _APPEARANCE))
    motion = draw_motion(scene.label, np.random.default_rng((scene.seed, scene.index, _MOTION)))
    mirrored = bool(rng.uniform() < 0.5)
    backdrop = Backdrop(scene.width, scene.height, scene.seconds, rng)
    times = [float(n / scene.fps) for n in range(scene.frames)]
    largest = max(pose.size for time in times for pose in motion(time))
    short = min(scene.width, scene.height)
    sprite = Sprite(scene.shape, COLOURS[scene.colour], largest * short, mirrored)
    for time in times:
        frame = backdrop.render(time)
        for pose in motion(time):
            sprite.draw(frame, pose, backdrop.sway(time))
        yield frame


def _pick(choices: tuple[tuple[_T, float], ...], rng: Rng) -> _T:
    """Draw a value; ``choices`` are pairs of value and probability."""
    at = rng.uniform() * sum(probability for _, probability in choices)
    for value, probability in choices:
        at -= probability
        if at < 0:
            return value
    return choices[-1][0]


def _choose(names: Mapping[str, object], rng: Rng) -> str:
    return list(names)[rng.integers(len(names))]


# --- motions ------------------------------------------------------------------------------------


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

Draw = Callable[[Rng], Motion]


def draw_motion(label: str, rng: Rng) -> Motion:
    """Draw a random motion of the action ``label``: its extent, period, phase and position.

    A cycle takes 0.8 to 2 s and repeats, so that any window of 0.93 s shows the action.
    """
    return _MOTIONS[label](rng)


def _rising(rng: Rng) -> Motion:
    reach, x = rng.uniform(0.25, 0.31), rng.uniform(-0.12, 0.12)
    size, tilt = rng.uniform(0.34, 0.46), _draw_tilt(rng)
    return _repeat(rng, 1.1, 1.6, lambda u: (Pose(x, reach * (1 - 2 * u), size, tilt, _fade(u)),))


def _growing(rng: Rng) -> Motion:
    small, large = rng.uniform(0.16, 0.22), rng.uniform(0.58, 0.68)
    x, y, tilt = rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1), _draw_tilt(rng)
    return _repeat(rng, 1.1, 1.6, lambda u: (Pose(x, y, small * (large / small) ** u, tilt, _fade(u)),))


def _spinning(rng: Rng) -> Motion:
    x, y, size = rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1), rng.uniform(0.46, 0.6)
    return _repeat(rng, 1.3, 2.0, lambda u: (Pose(x, y, size, 2 * math.pi * u),))


def _orbiting(rng: Rng) -> Motion:
    radius, x, y = rng.uniform(0.2, 0.26), rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.05)
    size, tilt = rng.uniform(0.32, 0.4), _draw_tilt(rng)

    def poses(u: float) -> tuple[Pose, ...]:
        angle = 2 * math.pi * u
        return (Pose(x + radius * math.cos(angle), y + radius * math.sin(angle), size, tilt),)

    return _repeat(rng, 1.1, 1.7, poses)


def _meeting(rng: Rng) -> Motion:
    far, near = rng.uniform(0.31, 0.37), rng.uniform(0.08, 0.11)
    angle, size = rng.uniform(0, 2 * math.pi), rng.uniform(0.27, 0.34)
    tilts = _draw_tilt(rng), _draw_tilt(rng)

    def poses(u: float) -> tuple[Pose, ...]:
        distance = far + (near - far) * u
        x, y = distance * math.cos(angle), distance * math.sin(angle)
        return Pose(x, y, size, tilts[0], _fade(u)), Pose(-x, -y, size, tilts[1], _fade(u))

    return _repeat(rng, 1.1, 1.6, poses)


def _oscillating(channel: int) -> Draw:
    """Return a `Draw` of a sine motion in one channel: 0 horizontal, 1 vertical, 2 swing, 3 brightness."""

    def draw(rng: Rng) -> Motion:
        size, upright = rng.uniform(0.34, 0.44), _draw_tilt(rng)
        phases = rng.uniform(0, 2 * math.pi, size=4)
        speed = 2 * math.pi / rng.uniform(0.8, 1.15)

        def motion(time: float) -> tuple[Pose, ...]:
            values = [math.sin(phase + (speed * time if i == channel else 0)) for i, phase in enumerate(phases)]
            horizontal, vertical, swing, light = values
            hang = 0.7 * swing  # radians from the vertical, about a pivot 0.24 above
            x, y = 0.19 * horizontal - 0.24 * math.sin(hang), 0.19 * vertical + 0.24 * (math.cos(hang) - 0.87)
            return (Pose(x, y, size, upright + hang, glow=0.36 + 0.36 * light),)

        return motion

    return draw


def _repeat(rng: Rng, shortest: float, longest: float, poses: Callable[[float], tuple[Pose, ...]]) -> Motion:
    """Repeat poses, a function of the position in the cycle (0 to 1), with a random period in s and phase."""
    period, phase = rng.uniform(shortest, longest), rng.uniform()
    return lambda time: poses((time / period + phase) % 1.0)


def _transpose(draw: Draw) -> Draw:
    """Return a `Draw` whose motions have x and y exchanged."""

    def transposed(rng: Rng) -> Motion:
        motion = draw(rng)
        return lambda time: tuple(replace(pose, x=pose.y, y=pose.x) for pose in motion(time))

    return transposed


def _reverse(draw: Draw) -> Draw:
    """Return a `Draw` whose motions run backwards in time."""

    def reversed_draw(rng: Rng) -> Motion:
        motion = draw(rng)
        return lambda time: motion(-time)

    return reversed_draw


def _fade(u: float) -> float:
    """Opacity: 1 in the middle of a cycle, low where it jumps back to its start."""
    return min(1.0, 0.05 + 9 * min(u, 1 - u))


def _draw_tilt(rng: Rng) -> float:
    return float(rng.uniform(-0.4, 0.4))


_DIRECTED = (_rising, _transpose(_rising), _growing, _spinning, _orbiting, _meeting)
_MOTIONS: dict[str, Draw] = {
    **{label: draw for (label, _), draw in zip(PARTNERS[:-1], _DIRECTED, strict=True)},
    **{label: _reverse(draw) for (_, label), draw in zip(PARTNERS[:-1], _DIRECTED, strict=True)},
    **{label: _oscillating(channel) for channel, label in enumerate(PARTNERS[-1])},
}


# --- shapes -------------------------------------------------------------------------------------

Outline = tuple[tuple[float, float], ...]  # corners of a polygon, or two corners of the box around an ellipse


def _disc(x: float, y: float, across: float, down: float) -> Outline:
    return (x - across, y - down), (x + across, y + down)


def _polar(radius: float, degrees: float) -> tuple[float, float]:
    return radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees))


def _heart(t: float) -> tuple[float, float]:
    """Return the point (x right, y down) of a heart's outline at parameter ``t``, 0 to 2π."""
    x = 16 * math.sin(t) ** 3
    y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return x / 17, -(y + 2) / 17


SHAPES: Mapping[str, tuple[Outline, ...]] = {
    "ball": (_disc(0, 0, 0.92, 0.92),),
    "square": (((-0.76, -0.76), (0.76, -0.76), (0.76, 0.76), (-0.76, 0.76)),),
    "triangle": (((0, -0.98), (0.9, 0.66), (-0.9, 0.66)),),
    "star": (tuple(_polar(1.0 if i % 2 == 0 else 0.46, -90 + 36 * i) for i in range(10)),),
    "heart": (tuple(_heart(2 * math.pi * i / 60) for i in range(60)),),
    "ring": (_disc(0, 0, 0.95, 0.95),),
    "cross": (
        ((-0.3, -0.95), (0.3, -0.95), (0.3, 0.95), (-0.3, 0.95)),
        ((-0.95, -0.3), (0.95, -0.3), (0.95, 0.3), (-0.95, 0.3)),
    ),
    "moon": (_disc(0, 0, 0.95, 0.95),),
    "arrow": (((0, -1), (0.8, -0.1), (-0.8, -0.1)), ((-0.34, -0.12), (0.34, -0.12), (0.34, 0.9), (-0.34, 0.9))),
    "fish": (_disc(-0.2, 0, 0.74, 0.52), ((0.25, 0), (0.96, -0.6), (0.96, 0.6))),
    "house": (
        ((-0.66, -0.15), (0.66, -0.15), (0.66, 0.82), (-0.66, 0.82)),
        ((0, -0.98), (0.96, -0.05), (-0.96, -0.05)),
    ),
}
"""Outlines by name, for a diameter of 2: x right, y down."""

_HOLES: Mapping[str, Outline] = {
    "ring": _disc(0, 0, 0.42, 0.42),
    "moon": _disc(0.5, -0.12, 0.72, 0.72),
    "fish": _disc(-0.58, -0.12, 0.11, 0.11),
}


class Sprite:
    """An image of a shape that can be drawn at any position and tilt, with a diameter of at most ``largest`` pixels."""

    def __init__(self, shape: str, colour: tuple[int, int, int], largest: float, mirrored: bool = False) -> None:
        image = _paint(shape, colour, max(16, round(largest * _MARGIN)))
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        # Premultiplied alpha, so that transforms do not mix in the colour of transparent pixels.
        self._levels = [image.convert("RGBa")]
        while self._levels[-1].width > 24:
            self._levels.append(self._levels[-1].reduce(2))

    def draw(self, frame: NDArray[np.uint8], pose: Pose, sway: tuple[float, float] = (0.0, 0.0)) -> None:
        """Draw the shape in a pose, displaced by ``sway``, on ``frame`` (H, W, 3), in place."""
        height, width = frame.shape[:2]
        short = min(height, width)
        x, y = width / 2 + (pose.x + sway[0]) * short, height / 2 + (pose.y + sway[1]) * short
        side = pose.size * short * _MARGIN
        left, right = max(0, math.floor(x - side / 2)), min(width, math.ceil(x + side / 2))
        top, bottom = max(0, math.floor(y - side / 2)), min(height, math.ceil(y + side / 2))
        if left >= right or top >= bottom:
            return
        source = next((s for s in reversed(self._levels) if s.width >= side), self._levels[0])
        zoom = source.width / side
        cos, sin = zoom * math.cos(pose.tilt), zoom * math.sin(pose.tilt)
        middle = source.width / 2
        affine = (
            *(cos, sin, middle - cos * (x - left) - sin * (y - top)),
            *(-sin, cos, middle + sin * (x - left) - cos * (y - top)),
        )
        size = (right - left, bottom - top)
        patch = source.transform(size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
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
    inside, half = Image.new("L", (fine, fine)), Image.new("L", (fine, fine))
    for outline in SHAPES[shape]:
        _fill(inside, outline, 255)
    if shape in _HOLES:
        _fill(inside, _HOLES[shape], 0)
    rim = inside.filter(ImageFilter.GaussianBlur(fine * 0.022)).point([0] * 16 + [255] * 240)
    halo = rim.filter(ImageFilter.GaussianBlur(fine * 0.035)).point([v // 2 for v in range(256)])
    ImageDraw.Draw(half).polygon([(0, fine), (fine, 0), (fine, fine)], fill=255)
    image = Image.new("RGB", (fine, fine), (12, 14, 22))
    image.paste((250, 250, 246), mask=rim)
    image.paste(colour, mask=inside)
    shade = tuple(int(channel * 0.5) for channel in colour)
    image.paste(shade, mask=ImageChops.darker(inside, half))
    image.putalpha(ImageChops.lighter(rim, halo))
    return image.resize((side, side), Image.Resampling.BOX)


def _fill(mask: Image.Image, outline: Outline, value: int) -> None:
    """Fill an outline in a square mask, with a margin."""
    middle = mask.width / 2
    points = [(middle * (1 + x / _MARGIN), middle * (1 + y / _MARGIN)) for x, y in outline]
    pen = ImageDraw.Draw(mask)
    draw = pen.ellipse if len(points) == 2 else pen.polygon
    draw(points, fill=value)


# --- background ---------------------------------------------------------------------------------


class Backdrop:
    """The parts of a scene that are independent of the action: texture, camera shake, moving dim shapes."""

    def __init__(self, width: int, height: int, seconds: float, rng: Rng) -> None:
        self._width, self._height, self._short = width, height, min(width, height)
        self._reach = math.ceil(_MAX_DRIFT * seconds + _MAX_SHAKE) + 1
        self._texture = Image.fromarray(_texture(width + 2 * self._reach, height + 2 * self._reach, rng))
        self._drift = _draw_velocity(_MAX_DRIFT, rng)
        self._oscillations = [(2 * math.pi * rng.uniform(0.2, 1.4), rng.uniform(0, 2 * math.pi)) for _ in range(4)]
        self._shake = rng.uniform(0, _MAX_SHAKE)
        self._distractors = [_draw_distractor(self._short, rng) for _ in range(rng.integers(0, 3))]

    def render(self, time: float) -> NDArray[np.uint8]:
        """Render a new (H, W, 3) background frame at ``time`` seconds."""
        east, south = self.sway(time)
        left = self._reach + self._drift[0] * time - east * self._short
        top = self._reach + self._drift[1] * time - south * self._short
        box = (left, top, left + self._width, top + self._height)
        # Cropping at whole pixels would make the motion jerky.
        texture = self._texture.resize((self._width, self._height), Image.Resampling.BILINEAR, box)
        frame = np.array(texture)
        for sprite, start, velocity in self._distractors:
            pose = replace(start, x=start.x + velocity[0] * time, y=start.y + velocity[1] * time)
            sprite.draw(frame, pose, (east, south))
        return frame

    def sway(self, time: float) -> tuple[float, float]:
        """Return the displacement by the shaking camera, in short sides, right and down."""
        x1, x2, y1, y2 = (math.sin(speed * time + phase) for speed, phase in self._oscillations)
        scale = self._shake / 2 / self._short
        return scale * (x1 + x2), scale * (y1 + y2)


def _draw_distractor(short: int, rng: Rng) -> tuple[Sprite, Pose, tuple[float, float]]:
    """Draw a dim shape, its pose at 0 s, and its velocity in short sides per s; a short side has ``short`` pixels."""
    size = rng.uniform(0.09, 0.14)
    colour = _rgb(rng.uniform(), 0.25, rng.uniform(0.45, 0.7))
    shape = _choose(SHAPES, rng)
    velocity = _draw_velocity(0.08, rng)
    x, y = rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6)
    start = Pose(x, y, size, tilt=rng.uniform(0, 2 * math.pi), alpha=rng.uniform(0.3, 0.5))
    return Sprite(shape, colour, size * short), start, velocity


def _draw_velocity(fastest: float, rng: Rng) -> tuple[float, float]:
    speed, heading = rng.uniform(0, fastest), rng.uniform(0, 2 * math.pi)
    return speed * math.cos(heading), speed * math.sin(heading)


def _texture(width: int, height: int, rng: Rng) -> NDArray[np.uint8]:
    """Draw a (height, width, 3) texture between two muted colours of similar hue."""
    hue, value = rng.uniform(), rng.uniform(0.26, 0.5)
    saturation = rng.uniform(0.12, 0.4)
    dark = np.array(_rgb(hue, saturation, value), np.float32)
    light = np.array(_rgb(hue + rng.uniform(-0.08, 0.08), saturation, value + 0.11), np.float32)
    kind = rng.integers(3)
    # Smooth noise in [0, 1] with features of about 30 px.
    coarse = rng.integers(0, 256, size=(height // 30 + 3, width // 30 + 3)).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    mix = np.asarray(smooth, np.float32) / np.float32(255)
    if kind != 0:
        # Stripes or checks, mixed with the noise so that patches differ.
        y, x = np.mgrid[:height, :width].astype(np.float32)
        angle, step = rng.uniform(0, math.pi), rng.uniform(14, 30)
        along = np.sin(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / step)
        across = np.sin(2 * math.pi * (y * math.cos(angle) - x * math.sin(angle)) / step)
        pattern = along if kind == 1 else along * across
        mix = 0.35 * mix + 0.65 * (0.5 + 0.5 * np.clip(pattern * 3, -1, 1))
    grain = rng.normal(0, 2.0, size=(height, width, 1)).astype(np.float32)
    colours = dark + mix[..., None] * (light - dark) + grain
    texture: NDArray[np.uint8] = np.clip(colours, 0, 255).astype(np.uint8)
    return texture


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return int(255 * red), int(255 * green), int(255 * blue)
