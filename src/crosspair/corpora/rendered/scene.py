"""Scenes: their random plan, background (texture, camera shake, moving shapes), and frames."""

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

from crosspair.corpora.rendered.actions import COLOURS, SHAPES, Pose, Sprite, draw_motion

_MAX_DRIFT = 6.0  # px/s of the texture
_MAX_SHAKE = 2.0  # px of the camera


class Backdrop:
    """The parts of a scene that are independent of the action.

    Args:
        width: of the frame, in pixels.
        height: of the frame, in pixels.
        seconds: duration of the scene.
        rng: source of all random values.
    """

    def __init__(self, width: int, height: int, seconds: float, rng: np.random.Generator) -> None:
        self._width, self._height = width, height
        self._short = min(width, height)
        reach = math.ceil(_MAX_DRIFT * seconds + _MAX_SHAKE) + 1
        texture = _texture(width + 2 * reach, height + 2 * reach, rng)
        self._texture = Image.fromarray(texture)
        self._reach = reach
        speed, heading = rng.uniform(0, _MAX_DRIFT), rng.uniform(0, 2 * math.pi)
        self._drift = speed * math.cos(heading), speed * math.sin(heading)
        self._oscillations = [_draw_oscillation(rng) for _ in range(4)]
        self._shake = rng.uniform(0, _MAX_SHAKE)
        self._distractors = [_Distractor.draw(self._short, rng) for _ in range(rng.integers(0, 3))]

    def frame(self, time: float) -> NDArray[np.uint8]:
        """Render a new (H, W, 3) background frame at ``time`` seconds."""
        east, south = self.sway(time)
        left = self._reach + self._drift[0] * time - east * self._short
        top = self._reach + self._drift[1] * time - south * self._short
        texture = self._texture.resize(
            (self._width, self._height),
            Image.Resampling.BILINEAR,  # cropping at whole pixels would make the motion jerky
            box=(left, top, left + self._width, top + self._height),
        )
        frame = np.array(texture)
        for distractor in self._distractors:
            distractor.render(frame, time, east, south)
        return frame

    def sway(self, time: float) -> tuple[float, float]:
        """Return the displacement by the shaking camera, in short sides, right and down."""
        x1, x2, y1, y2 = (oscillate(time) for oscillate in self._oscillations)
        scale = self._shake / 2 / self._short
        return scale * (x1 + x2), scale * (y1 + y2)


def _draw_oscillation(rng: np.random.Generator) -> Callable[[float], float]:
    """Draw a sine function of the time in seconds."""
    speed, phase = 2 * math.pi * rng.uniform(0.2, 1.4), rng.uniform(0, 2 * math.pi)
    return lambda time: math.sin(speed * time + phase)


@dataclass(frozen=True)
class _Distractor:
    """A dim shape that moves on a straight line in the background."""

    sprite: Sprite
    start: Pose
    velocity: tuple[float, float]  # short sides a second

    @classmethod
    def draw(cls, short: int, rng: np.random.Generator) -> _Distractor:
        """Create a random one for frames whose short side has ``short`` pixels."""
        size = rng.uniform(0.09, 0.14)
        colour = _rgb(rng.uniform(), 0.25, rng.uniform(0.45, 0.7))
        shape = SHAPES[rng.integers(len(SHAPES))]
        speed, heading = rng.uniform(0, 0.08), rng.uniform(0, 2 * math.pi)
        start = Pose(
            x=rng.uniform(-0.6, 0.6),
            y=rng.uniform(-0.6, 0.6),
            size=size,
            tilt=rng.uniform(0, 2 * math.pi),
            alpha=rng.uniform(0.3, 0.5),
        )
        velocity = speed * math.cos(heading), speed * math.sin(heading)
        return cls(Sprite(shape, colour, size * short), start, velocity)

    def render(self, frame: NDArray[np.uint8], time: float, east: float, south: float) -> None:
        """Draw it on a frame, in place, displaced right and down in short sides of the frame."""
        x = self.start.x + self.velocity[0] * time + east
        y = self.start.y + self.velocity[1] * time + south
        self.sprite.draw(frame, replace(self.start, x=x, y=y))


def _texture(width: int, height: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a (height, width, 3) texture between two muted colours of similar hue."""
    hue, value = rng.uniform(), rng.uniform(0.26, 0.5)
    saturation = rng.uniform(0.12, 0.4)
    dark = np.array(_rgb(hue, saturation, value), np.float32)
    light = np.array(_rgb(hue + rng.uniform(-0.08, 0.08), saturation, value + 0.11), np.float32)
    kind = rng.integers(3)
    clouds = _clouds(width, height, rng)
    if kind == 0:
        mix = clouds
    else:
        # Stripes or checks, mixed with clouds so that patches differ.
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
    """Draw smooth noise in [0, 1] with features of about 30 px."""
    coarse = rng.integers(0, 256, size=(height // 30 + 3, width // 30 + 3)).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32) / np.float32(255)


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return int(255 * red), int(255 * green), int(255 * blue)


_T = TypeVar("_T")

NTSC = Fraction(30000, 1001)

# Values and their probabilities. Most files are cheap to render; the expensive ones are included
# to cover the variety of real folders.
_CODECS = (("h264", 0.55), ("mpeg4", 0.28), ("vp9", 0.17))
_RATES = (
    (Fraction(24), 0.27), (Fraction(25), 0.27), (NTSC, 0.2),
    (Fraction(30), 0.2), (Fraction(50), 0.03), (Fraction(60), 0.03),
)  # fmt: skip
_ASPECTS = ((Fraction(4, 3), 0.5), (Fraction(3, 2), 0.28), (Fraction(4, 5), 0.22))
_SHORT_SIDES = ((96, 0.3), (108, 0.25), (112, 0.2), (120, 0.15), (128, 0.1))
_GOPS = ((12, 0.65), (48, 0.25), (250, 0.1))

_APPEARANCE, _MOTION = 1, 2  # random streams of a pair; 3 is for titles, 4 for labels


@dataclass(frozen=True)
class Scene:
    """The plan of one video; it determines all frames.

    Attributes:
        seed: of the corpus.
        index: of the pair within the corpus.
        label: the action, a key of `ACTIONS`.
        shape: one of `SHAPES`.
        colour: a key of `COLOURS`.
        width: pixels, even.
        height: pixels, even.
        fps: frame rate, 24 to 60.
        frames: number of frames, for 2 to 6 s.
        codec: ``h264`` (.mp4), ``mpeg4`` (.avi) or ``vp9`` (.webm).
        gop: maximum number of frames between key frames.
    """

    seed: int
    index: int
    label: str
    shape: str
    colour: str
    width: int
    height: int
    fps: Fraction
    frames: int
    codec: str
    gop: int

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
        shape=SHAPES[rng.integers(len(SHAPES))],
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
        frame = backdrop.frame(time)
        east, south = backdrop.sway(time)
        for pose in motion(time):
            sprite.draw(frame, replace(pose, x=pose.x + east, y=pose.y + south))
        yield frame


def _pick(choices: tuple[tuple[_T, float], ...], rng: np.random.Generator) -> _T:
    """Draw a value; ``choices`` are pairs of value and probability."""
    at = rng.uniform() * sum(probability for _, probability in choices)
    for value, probability in choices:
        at -= probability
        if at < 0:
            return value
    return choices[-1][0]
