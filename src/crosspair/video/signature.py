"""What a file that no demuxer could read seems to be, by its first bytes."""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path
from typing import BinaryIO

from crosspair.faults import Kind, Verdict
from crosspair.video.remote import RemoteFile

HEAD = 512  # bytes
BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"uuid"})
MAGIC = (
    b"\x1aE\xdf\xa3", b"FLV", b"OggS", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"\x00\x00\x01\xba",
    b"\x00\x00\x01\xb3",
)  # fmt: skip
PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8")
MARKUP = re.compile(rb"\s*(<!doctype html|<html|<head)", re.IGNORECASE)
UNKNOWN = Verdict(Kind.NOT_A_VIDEO)


def signature(path: str, remote: RemoteFile | None) -> Verdict:
    """Look at a file's first bytes, and at whether it is as long as they say.

    Args:
        path: of a file.
        remote: what to read from instead, where the video is not a file of this machine.

    Returns:
        Its kind, and what it seems to be; `UNKNOWN`, which has no reason, where that is not told.
    """
    try:
        if remote is not None:
            return _signature(remote)
        with Path(path).open("rb") as file:
            return _signature(file)
    except OSError:
        return UNKNOWN


def _signature(file: RemoteFile | BinaryIO) -> Verdict:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(HEAD)
    if MARKUP.match(head):
        return Verdict(Kind.NOT_A_VIDEO, "it is an HTML page: a download that failed?")
    if head.startswith(PICTURES):
        return Verdict(Kind.NOT_A_VIDEO, "it is a picture")
    sized = head[4:8] in BOXES or head[:4] == b"RIFF"
    if sized and _is_cut(file, size):
        return Verdict(Kind.CUT, "it begins as a video and its end is missing")
    if sized or head.startswith(MAGIC) or (head[:1] == b"G" and head[188:189] in (b"G", b"")):
        return Verdict(Kind.DAMAGED_HEADER, "it begins as a video, but its header is damaged")
    return Verdict(Kind.NOT_A_VIDEO, "it is text") if _is_text(head) else UNKNOWN


def _is_cut(file: RemoteFile | BinaryIO, size: int) -> bool:
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
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)
