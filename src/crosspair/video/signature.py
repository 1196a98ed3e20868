"""What a file that no demuxer could read seems to be, by its first bytes."""

from __future__ import annotations

import os
import re
from enum import Enum
from pathlib import Path
from typing import Protocol

from crosspair.errors import VideoError

HEAD = 512  # bytes
BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"uuid"})
MAGIC = (
    b"\x1aE\xdf\xa3", b"FLV", b"OggS", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"\x00\x00\x01\xba",
    b"\x00\x00\x01\xb3",
)  # fmt: skip
PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8")
MARKUP = re.compile(rb"\s*(<!doctype html|<html|<head)", re.IGNORECASE)


class Signature(Enum):
    """What a file seems to be. Its value tells people, where FFmpeg's message does not."""

    HTML = "it is an HTML page: a download that failed?"
    TEXT = "it is text"
    PICTURE = "it is a picture"
    CUT_VIDEO = "it begins as a video and its end is missing"
    VIDEO = "it begins as a video, but its header is damaged"
    UNKNOWN = ""


class Readable(Protocol):
    """What looking at a file takes."""

    def read(self, size: int, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...


def signature(path: str, remote: Readable | None) -> Signature:
    """Look at a file's first bytes, and at whether it is as long as they say.

    Args:
        path: of a file.
        remote: what to read from instead, where the video is not a file of this machine.
    """
    try:
        if remote is not None:
            return _signature(remote)
        with Path(path).open("rb") as file:
            return _signature(file)
    except (OSError, VideoError):
        return Signature.UNKNOWN


def _signature(file: Readable) -> Signature:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(HEAD)
    if MARKUP.match(head):
        return Signature.HTML
    if head.startswith(PICTURES):
        return Signature.PICTURE
    if head[4:8] in BOXES or head[:4] == b"RIFF":
        return Signature.CUT_VIDEO if _is_cut(file, size) else Signature.VIDEO
    if head.startswith(MAGIC) or (head[:1] == b"G" and head[188:189] in (b"G", b"")):
        return Signature.VIDEO
    return Signature.TEXT if _is_text(head) else Signature.UNKNOWN


def _is_cut(file: Readable, size: int) -> bool:
    """Whether the boxes of an mp4, or the one chunk of an AVI, go on past the end."""
    file.seek(0)
    first = file.read(8)
    if first[:4] == b"RIFF":
        return 8 + int.from_bytes(first[4:], "little") > size
    at = 0
    while at < size:
        file.seek(at)
        length = int.from_bytes(file.read(4), "big")
        if file.read(4) == b"":
            return True
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length < 8:
            return length == 0 and at > 0  # 0: up to the end, and no index before it
        at += length
    return at > size


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # the last character may be cut
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character.isspace() for character in text)
