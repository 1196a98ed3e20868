"""Ways to damage a video file, and the statuses that a check may return."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crosspair.errors import VideoStatus

USABLE = {kind for kind in VideoStatus if not kind.broken}
# Possible statuses of a randomly damaged file that can be opened.
WORN = {
    VideoStatus.CUT, VideoStatus.CORRUPT_FRAMES, VideoStatus.UNDECODABLE, VideoStatus.DAMAGED_HEADER,
    VideoStatus.NO_VIDEO_STREAM, VideoStatus.ABSURD_SIZE, VideoStatus.NOT_A_VIDEO, VideoStatus.AUDIO_ONLY,
}  # fmt: skip


@dataclass(frozen=True)
class Damaged:
    """A damaged file: what was done to it, and the kinds that a check may find."""

    path: Path
    damage: str
    kinds: set[VideoStatus]


def damaged_files(sources: Sequence[Path], audio: Path, folder: Path, count: int, seed: int) -> list[Damaged]:
    """Make files, each by the next of the ways, of sources drawn by chance."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        damage = [*WAYS, *MADE][number % len(WAYS | MADE)]
        source = audio if damage == "audio only" else draw.choice(sources)
        path = folder / f"{number:04}{source.suffix}"
        if damage in MADE:
            MADE[damage](path)
            made.append(Damaged(path, damage, {VideoStatus.UNREADABLE}))
        else:
            way, kinds = WAYS[damage]
            path.write_bytes(way(source.read_bytes(), draw))
            made.append(Damaged(path, damage, kinds))
    return made


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(1, len(content) * 3 // 4)]


def _flipped(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice([1, 10, 100, 1000])):
        changed[draw.randrange(len(changed))] ^= draw.randrange(1, 256)
    return bytes(changed)


def _zeroed(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    length = draw.randrange(1, len(content) // 2)
    begin = draw.randrange(len(content) - length)
    changed[begin : begin + length] = bytes(length)
    return bytes(changed)


def _headed(header: bytes) -> Callable[[bytes, random.Random], bytes]:
    """Another format's beginning over this file's."""
    return lambda content, _: header + content[len(header) :]


RIFF = b"RIFF\xff\xff\xff\x00AVI LIST"
BOX = b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41"
EBML = b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81\x01B\xf2\x81\x04B\xf3\x81\x08"
HTML = b"<!DOCTYPE html>\n<html><body>404</body></html>\n"
TEXT = b"Not found. Try again later.\n"
WAYS: dict[str, tuple[Callable[[bytes, random.Random], bytes], set[VideoStatus]]] = {
    "cut": (_cut, WORN),
    "flipped bytes": (_flipped, WORN | USABLE),
    "zeroed run": (_zeroed, WORN | USABLE),
    "header of an avi": (_headed(RIFF), WORN | USABLE),
    "cut again": (_cut, WORN),
    "flipped bytes again": (_flipped, WORN | USABLE),
    "header of an mp4": (_headed(BOX), WORN | USABLE),
    "header of a webm": (_headed(EBML), WORN | USABLE),
    "zeroed run again": (_zeroed, WORN | USABLE),
    "empty": (lambda *_: b"", {VideoStatus.EMPTY}),
    "text": (lambda _, draw: TEXT * draw.randrange(1, 500), {VideoStatus.NOT_A_VIDEO}),
    "html": (lambda *_: HTML, {VideoStatus.NOT_A_VIDEO}),
    "audio only": (lambda content, _: content, {VideoStatus.AUDIO_ONLY}),
    "intact": (lambda content, _: content, USABLE),
}
# Things that are no regular file.
MADE = {"symlink loop": lambda path: path.symlink_to(path.name), "folder": Path.mkdir, "pipe": os.mkfifo}
