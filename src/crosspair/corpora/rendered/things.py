"""The things that act: flat shapes with a white rim and one shaded half, so that turning shows."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from crosspair.corpora.rendered.actions import Pose

THINGS = (
    *("ball", "square", "triangle", "star", "heart", "ring", "cross", "moon", "arrow", "fish"),
    "house",
)

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

_FINE = 3  # the shape is drawn this much larger, then reduced
_MARGIN = 1.25  # side of a sprite over the diameter of its thing: room for rim and halo


class Sprite:
    """A thing ready to be drawn at any place, size and tilt.

    Args:
        thing: one of `THINGS`.
        colour: RGB.
        largest: the largest diameter, in pixels, at which it will be drawn.
        mirrored: swap its left and right.
    """

    def __init__(
        self, thing: str, colour: tuple[int, int, int], largest: float, mirrored: bool = False
    ) -> None:
        side = max(16, round(largest * _MARGIN))
        image = _painted(thing, colour, side)
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        # Transforms must not bleed the colour of invisible pixels: keep it premultiplied.
        levels = [image.convert("RGBa")]
        while levels[-1].width > 24:
            levels.append(levels[-1].reduce(2))
        self._levels = levels

    def draw(self, frame: NDArray[np.uint8], pose: Pose) -> None:
        """Draw on ``frame`` (H, W, 3), in place."""
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
    cover = patch[..., 3:].astype(np.float32)
    colour = patch[..., :3].astype(np.float32)
    if glow:
        colour += (cover - colour) * np.float32(glow)
    cover *= np.float32(alpha / 255)
    colour *= np.float32(alpha)
    below[...] = below * (1 - cover) + colour + np.float32(0.5)


def _painted(thing: str, colour: tuple[int, int, int], side: int) -> Image.Image:
    """An RGBA image of ``side`` pixels: halo, white rim, colour, shaded half."""
    fine = side * _FINE
    shape = _shape(thing, fine)
    rim = shape.filter(ImageFilter.GaussianBlur(fine * 0.022)).point([0] * 16 + [255] * 240)
    halo = rim.filter(ImageFilter.GaussianBlur(fine * 0.035)).point([v // 2 for v in range(256)])
    half = Image.new("L", (fine, fine))
    ImageDraw.Draw(half).polygon([(0, fine), (fine, 0), (fine, fine)], fill=255)
    image = Image.new("RGB", (fine, fine), (12, 14, 22))
    image.paste((250, 250, 246), mask=rim)
    image.paste(colour, mask=shape)
    shade = tuple(int(channel * 0.5) for channel in colour)
    image.paste(shade, mask=ImageChops.darker(shape, half))
    image.putalpha(ImageChops.lighter(rim, halo))
    return image.resize((side, side), Image.Resampling.BOX)


def _shape(thing: str, side: int) -> Image.Image:
    """The filled outline of a thing as a mask; coordinates run from -1 to 1 over its diameter."""
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)

    def at(x: float, y: float) -> tuple[float, float]:
        return (side / 2) * (1 + x / _MARGIN), (side / 2) * (1 + y / _MARGIN)

    def disc(x: float, y: float, across: float, down: float, fill: int = 255) -> None:
        pen.ellipse([at(x - across, y - down), at(x + across, y + down)], fill=fill)

    def polygon(*corners: tuple[float, float]) -> None:
        pen.polygon([at(x, y) for x, y in corners], fill=255)

    if thing == "ball":
        disc(0, 0, 0.92, 0.92)
    elif thing == "square":
        polygon((-0.76, -0.76), (0.76, -0.76), (0.76, 0.76), (-0.76, 0.76))
    elif thing == "triangle":
        polygon((0, -0.98), (0.9, 0.66), (-0.9, 0.66))
    elif thing == "star":
        polygon(*(_polar(1.0 if i % 2 == 0 else 0.46, -90 + 36 * i) for i in range(10)))
    elif thing == "heart":
        polygon(*(_heart(2 * math.pi * i / 60) for i in range(60)))
    elif thing == "ring":
        disc(0, 0, 0.95, 0.95)
        disc(0, 0, 0.42, 0.42, fill=0)
    elif thing == "cross":
        polygon((-0.3, -0.95), (0.3, -0.95), (0.3, 0.95), (-0.3, 0.95))
        polygon((-0.95, -0.3), (0.95, -0.3), (0.95, 0.3), (-0.95, 0.3))
    elif thing == "moon":
        disc(0, 0, 0.95, 0.95)
        disc(0.5, -0.12, 0.72, 0.72, fill=0)
    elif thing == "arrow":
        polygon((0, -1), (0.8, -0.1), (-0.8, -0.1))
        polygon((-0.34, -0.12), (0.34, -0.12), (0.34, 0.9), (-0.34, 0.9))
    elif thing == "fish":
        disc(-0.2, 0, 0.74, 0.52)
        polygon((0.25, 0), (0.96, -0.6), (0.96, 0.6))
        disc(-0.58, -0.12, 0.11, 0.11, fill=0)
    elif thing == "house":
        polygon((-0.66, -0.15), (0.66, -0.15), (0.66, 0.82), (-0.66, 0.82))
        polygon((0, -0.98), (0.96, -0.05), (-0.96, -0.05))
    else:
        raise ValueError(f"thing {thing!r} is none of {', '.join(THINGS)}")
    return mask


def _polar(radius: float, degrees: float) -> tuple[float, float]:
    return radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees))


def _heart(t: float) -> tuple[float, float]:
    x = 16 * math.sin(t) ** 3
    y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return x / 17, -(y + 2) / 17
