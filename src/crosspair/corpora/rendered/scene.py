"""What is behind the things: a drifting muted texture, an unsteady camera, dim passers-by."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crosspair.corpora.rendered.actions import COLOURS, THINGS, Pose, Sprite, motion_of

_FASTEST = 6.0  # px/s at which the texture drifts, at most
_SHAKE = 2.0  # px by which the camera strays from its place, at most


class Backdrop:
    """Everything in a scene that says nothing about the action.

    Args:
        width: of the frame, pixels.
        height: of the frame, pixels.
        seconds: how long the scene lasts.
        rng: draws all of it.
    """

    def __init__(self, width: int, height: int, seconds: float, rng: np.random.Generator) -> None:
        self._width, self._height = width, height
        self._short = min(width, height)
        reach = math.ceil(_FASTEST * seconds + _SHAKE) + 1
        texture = _texture(width + 2 * reach, height + 2 * reach, rng)
        self._texture = Image.fromarray(texture)
        self._reach = reach
        speed, heading = rng.uniform(0, _FASTEST), rng.uniform(0, 2 * math.pi)
        self._drift = speed * math.cos(heading), speed * math.sin(heading)
        self._strays = [_stray(rng) for _ in range(4)]
        self._shake = rng.uniform(0, _SHAKE)
        self._passers = [_Passer.drawn(self._short, rng) for _ in range(rng.integers(0, 3))]

    def frame(self, time: float) -> NDArray[np.uint8]:
        """A fresh (H, W, 3) frame to draw on, at ``time`` seconds."""
        east, south = self.sway(time)
        left = self._reach + self._drift[0] * time - east * self._short
        top = self._reach + self._drift[1] * time - south * self._short
        seen = self._texture.resize(
            (self._width, self._height),
            Image.Resampling.BILINEAR,  # a whole-pixel crop would jerk
            box=(left, top, left + self._width, top + self._height),
        )
        frame = np.array(seen)
        for passer in self._passers:
            passer.draw(frame, time, east, south)
        return frame

    def sway(self, time: float) -> tuple[float, float]:
        """How far the unsteady camera moves what is seen, in short sides, right and down."""
        x1, x2, y1, y2 = (stray(time) for stray in self._strays)
        scale = self._shake / 2 / self._short
        return scale * (x1 + x2), scale * (y1 + y2)


def _stray(rng: np.random.Generator) -> Callable[[float], float]:
    """A sine of the time in seconds."""
    speed, phase = 2 * math.pi * rng.uniform(0.2, 1.4), rng.uniform(0, 2 * math.pi)
    return lambda time: math.sin(speed * time + phase)


@dataclass(frozen=True)
class _Passer:
    sprite: Sprite
    start: Pose
    velocity: tuple[float, float]  # short sides a second

    @classmethod
    def drawn(cls, short: int, rng: np.random.Generator) -> _Passer:
        size = rng.uniform(0.09, 0.14)
        colour = _rgb(rng.uniform(), 0.25, rng.uniform(0.45, 0.7))
        thing = THINGS[rng.integers(len(THINGS))]
        speed, heading = rng.uniform(0, 0.08), rng.uniform(0, 2 * math.pi)
        start = Pose(
            x=rng.uniform(-0.6, 0.6),
            y=rng.uniform(-0.6, 0.6),
            size=size,
            tilt=rng.uniform(0, 2 * math.pi),
            alpha=rng.uniform(0.3, 0.5),
        )
        velocity = speed * math.cos(heading), speed * math.sin(heading)
        return cls(Sprite(thing, colour, size * short), start, velocity)

    def draw(self, frame: NDArray[np.uint8], time: float, east: float, south: float) -> None:
        x = self.start.x + self.velocity[0] * time + east
        y = self.start.y + self.velocity[1] * time + south
        self.sprite.draw(frame, replace(self.start, x=x, y=y))


def _texture(width: int, height: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A (height, width, 3) texture between two muted colours of one family."""
    hue, value = rng.uniform(), rng.uniform(0.26, 0.5)
    saturation = rng.uniform(0.12, 0.4)
    dark = np.array(_rgb(hue, saturation, value), np.float32)
    light = np.array(_rgb(hue + rng.uniform(-0.08, 0.08), saturation, value + 0.11), np.float32)
    kind = rng.integers(3)
    clouds = _clouds(width, height, rng)
    if kind == 0:
        mix = clouds
    else:
        # Stripes and checks, softened by clouds so that no two patches are quite alike.
        y, x = np.mgrid[:height, :width].astype(np.float32)
        angle, step = rng.uniform(0, math.pi), rng.uniform(14, 30)
        along = np.sin(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / step)
        across = np.sin(2 * math.pi * (y * math.cos(angle) - x * math.sin(angle)) / step)
        pattern = along if kind == 1 else along * across
        mix = 0.35 * clouds + 0.65 * (0.5 + 0.5 * np.clip(pattern * 3, -1, 1))
    grain = rng.normal(0, 2.0, size=(height, width, 1)).astype(np.float32)
    colours = dark + mix[..., None] * (light - dark) + grain
    texture: NDArray[np.uint8] = np.clip(colours, 0, 255).astype(np.uint8)
    return texture


def _clouds(width: int, height: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth noise from 0 to 1, with features of about 30 px."""
    coarse = rng.integers(0, 256, size=(height // 30 + 3, width // 30 + 3)).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32) / np.float32(255)


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return int(255 * red), int(255 * green), int(255 * blue)


_T = TypeVar("_T")

NTSC = Fraction(30000, 1001)

# Values and how often each is drawn. Most files are cheap to make; the dear ones are there to
# exercise what a folder of real files would.
_CODECS = (("h264", 0.55), ("mpeg4", 0.28), ("vp9", 0.17))
_RATES = (
    *((Fraction(24), 0.27), (Fraction(25), 0.27), (NTSC, 0.2)),
    *((Fraction(30), 0.2), (Fraction(50), 0.03), (Fraction(60), 0.03)),
)
_ASPECTS = ((Fraction(4, 3), 0.5), (Fraction(3, 2), 0.28), (Fraction(4, 5), 0.22))
_SHORT_SIDES = ((96, 0.3), (108, 0.25), (112, 0.2), (120, 0.15), (128, 0.1))
_GOPS = ((12, 0.65), (48, 0.25), (250, 0.1))

_LOOK, _MOTION = 1, 2  # streams of random numbers of a pair; titles draw from a third


@dataclass(frozen=True)
class Scene:
    """The plan of one video; its frames follow from it alone.

    Attributes:
        seed: of the corpus.
        index: of the pair within the corpus.
        label: the action, a key of `ACTIONS`.
        thing: one of `THINGS`.
        colour: a key of `COLOURS`.
        width: pixels, even.
        height: pixels, even.
        fps: frames a second, 24 to 60.
        frames: how many; 2 to 6 s of them.
        codec: ``h264`` (.mp4), ``mpeg4`` (.avi) or ``vp9`` (.webm).
        gop: frames from one keyframe to the next, at most.
    """

    seed: int
    index: int
    label: str
    thing: str
    colour: str
    width: int
    height: int
    fps: Fraction
    frames: int
    codec: str
    gop: int

    @property
    def seconds(self) -> float:
        """The duration."""
        return float(self.frames / self.fps)


def draw_scene(seed: int, index: int, label: str) -> Scene:
    """Draw the scene of pair ``index``; it depends on nothing but the arguments."""
    rng = np.random.default_rng((seed, index))
    aspect, short = _pick(_ASPECTS, rng), _pick(_SHORT_SIDES, rng)
    long = 2 * round(short * max(aspect, 1 / aspect) / 2)
    fps = _pick(_RATES, rng)
    # 2 to 6 s, mostly short: about 2.9 s on average.
    seconds = 2 + 4 * rng.uniform() ** 3.5
    return Scene(
        seed=seed,
        index=index,
        label=label,
        thing=THINGS[rng.integers(len(THINGS))],
        colour=list(COLOURS)[rng.integers(len(COLOURS))],
        width=long if aspect > 1 else short,
        height=short if aspect > 1 else long,
        fps=fps,
        frames=math.ceil(seconds * fps),
        codec=_pick(_CODECS, rng),
        gop=_pick(_GOPS, rng),
    )


def render_frames(scene: Scene) -> Iterator[NDArray[np.uint8]]:
    """Render the frames of a scene in order, each (height, width, 3), RGB.

    The motion is a function of time, so two scenes that differ in their frame rate alone show the
    same motion.
    """
    look = np.random.default_rng((scene.seed, scene.index, _LOOK))
    motion = motion_of(scene.label, np.random.default_rng((scene.seed, scene.index, _MOTION)))
    mirrored = bool(look.uniform() < 0.5)
    backdrop = Backdrop(scene.width, scene.height, scene.seconds, look)
    times = [float(n / scene.fps) for n in range(scene.frames)]
    largest = max(pose.size for time in times for pose in motion(time))
    short = min(scene.width, scene.height)
    sprite = Sprite(scene.thing, COLOURS[scene.colour], largest * short, mirrored)
    for time in times:
        frame = backdrop.frame(time)
        east, south = backdrop.sway(time)
        for pose in motion(time):
            sprite.draw(frame, replace(pose, x=pose.x + east, y=pose.y + south))
        yield frame


def _pick(choices: tuple[tuple[_T, float], ...], rng: np.random.Generator) -> _T:
    """One of the values, each as often as the number beside it says."""
    at = rng.uniform() * sum(often for _, often in choices)
    for value, often in choices:
        at -= often
        if at < 0:
            return value
    return choices[-1][0]
