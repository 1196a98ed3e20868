"""A scene: what one video of the rendered corpus shows, and its frames."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from crosspair.corpora.rendered.actions import motion_of
from crosspair.corpora.rendered.backdrop import Backdrop
from crosspair.corpora.rendered.things import COLOURS, THINGS, Sprite

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


def scene_of(seed: int, index: int, label: str) -> Scene:
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


def frames_of(scene: Scene) -> Iterator[NDArray[np.uint8]]:
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
