"""A scene becomes a file: H.264 in MP4, MPEG-4 in AVI or VP9 in WebM."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import av
from av.video.stream import VideoStream

from crosspair.atomic import write_atomically
from crosspair.corpora.rendered.scene import Scene, frames_of
from crosspair.errors import RunError


@dataclass(frozen=True)
class Encoding:
    """How the files of one codec are made."""

    encoder: str
    container: str
    options: Mapping[str, str]
    bit_rate: int | None = None


ENCODINGS: Mapping[str, Encoding] = {
    "h264": Encoding("libx264", "mp4", {"preset": "ultrafast", "crf": "23"}),
    "mpeg4": Encoding("mpeg4", "avi", {}, bit_rate=500_000),
    "vp9": Encoding(
        "libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8", "crf": "34"}, bit_rate=0
    ),
}


def encoded(scene: Scene) -> bytes:
    """The whole file of a scene; the same bytes each time."""
    encoding = ENCODINGS[scene.codec]
    file = io.BytesIO()
    # Without bitexact, a WebM file has random identifiers in it.
    options = {"fflags": "+bitexact"}
    with av.open(file, "w", format=encoding.container, options=options) as container:
        stream = cast(
            VideoStream,
            container.add_stream(encoding.encoder, rate=scene.fps, options=dict(encoding.options)),
        )
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
        context = stream.codec_context
        context.gop_size = scene.gop
        context.thread_count = 1
        if encoding.bit_rate is not None:
            context.bit_rate = encoding.bit_rate
        if scene.codec == "h264" and scene.gop > 12:
            context.max_b_frames = 2  # files from elsewhere have frames out of order, too
        for image in frames_of(scene):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def write_video(job: tuple[Scene, Path]) -> str:
    """Render a scene into a file, which appears only when it is whole: a process's task.

    Returns:
        Why it cannot be written, in one line; empty where it is.
    """
    scene, path = job
    try:
        write_atomically(path, encoded(scene))
    except RunError as error:
        return str(error)
    return ""
