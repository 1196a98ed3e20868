"""Render a corpus: plan every pair, render the files that are missing, write the manifest."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.video.stream import VideoStream

from crosspair.corpora.manifest import Manifest, manifest_from_rows
from crosspair.corpora.rendered.actions import ACTIONS
from crosspair.corpora.rendered.scene import Scene, draw_scene, render_frames
from crosspair.corpora.rendered.titles import compose_titles
from crosspair.errors import ManifestError, RunError
from crosspair.files import atomic_write, write_atomically
from crosspair.workers import WorkerFailure, cpu_count, map_isolated

_VERSION = 1  # of scenes, titles and files: raise it when the same settings would give others
_SETTINGS = "rendered.json"
_MANIFEST = "manifest.parquet"
_SECONDS = 300.0  # for a file that takes a part of one
_FEW = 12  # files that take as long as a process to begin
_LABELS = 4  # the stream of random numbers that orders the actions

# Dealt in turn to the pairs of one action, then of the next: of any 10 in a row one is val, of any
# 7 one is test.
_NOT_TRAIN = {3: "val", 13: "val", 6: "test", 12: "test", 19: "test"}
_SPLITS = tuple(_NOT_TRAIN.get(place, "train") for place in range(20))


@dataclass(frozen=True)
class Pair:
    """One video to be rendered, with its title and split."""

    scene: Scene
    title: str
    split: str

    @property
    def pair_id(self) -> str:
        """Unique in the corpus; says nothing about the scene."""
        return f"{self.scene.index:05d}"

    @property
    def path(self) -> str:
        """Of the video, relative to the manifest."""
        return f"videos/{self.pair_id}.{ENCODINGS[self.scene.codec].container}"

    @property
    def row(self) -> dict[str, Any]:
        """Of the manifest."""
        scene = self.scene
        return {
            "pair_id": self.pair_id,
            "path": self.path,
            "title": self.title,
            "label": scene.label,
            "split": self.split,
            "width": scene.width,
            "height": scene.height,
            "fps": float(scene.fps),
            "frames": scene.frames,
            "duration": scene.seconds,
            "codec": scene.codec,
        }


def render_corpus(
    out: str | os.PathLike[str],
    pairs: int = 1200,
    seed: int = 0,
    noise: float = 0.3,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Manifest:
    """Render videos and write titles for them, in about half a minute for 1,200 pairs on 2 cores.

    The same arguments give the same files and titles, whatever ``workers`` is. A call that was
    cut short leaves whole files only, and the next call renders what is missing.

    Args:
        out: folder for ``manifest.parquet`` and ``videos/``; made if absent.
        pairs: how many; at least one for each of `ACTIONS`, and 200 or more give every action a
            place in every split (75 % train, 10 % val, 15 % test).
        seed: 0 or more; another seed gives other scenes and titles.
        noise: 0 (titles right and complete) to 1 (all wrong); see `titles_of`.
        workers: processes; by default one for each core this process may use.
        progress: called with the files done and the files in all, after every file.

    Returns:
        The manifest, with a ``label`` and a ``split`` in every row and the probed columns filled.

    Raises:
        ManifestError: an argument is out of range, ``out`` holds something else, the disk is full,
            or a rendering process was killed.
    """
    _check(pairs, seed, noise, workers)
    out = Path(out)
    settings = {"version": _VERSION, "pairs": pairs, "seed": seed, "noise": float(noise)}
    complete = _held(out, settings)
    planned = plan(pairs, seed, noise)
    missing = [pair for pair in planned if not (out / pair.path).is_file()]
    if complete and not missing and (out / _MANIFEST).is_file():
        return Manifest.read(out / _MANIFEST)
    _note(out, {**settings, "complete": False})
    jobs = [(pair.scene, out / pair.path) for pair in missing]
    # Closed at once when `progress` raises, so that no process renders on.
    with closing(_render(jobs, workers or cpu_count())) as answers:
        for done, (_, fault) in enumerate(answers, pairs - len(missing) + 1):
            if isinstance(fault, WorkerFailure):
                raise ManifestError(
                    f"a rendering process ended abruptly ({fault.reason}); the same call goes on "
                    "from there, with fewer workers if you say so"
                )
            if fault:
                raise ManifestError(fault)
            progress(done, pairs)
    manifest = manifest_from_rows((pair.row for pair in planned), out / _MANIFEST).write(
        out / _MANIFEST
    )
    _note(out, {**settings, "complete": True})
    return manifest


def plan(pairs: int, seed: int = 0, noise: float = 0.3) -> list[Pair]:
    """All that a corpus will hold, without rendering any of it.

    >>> pair = plan(16)[0]
    >>> pair.pair_id, pair.scene.label in ACTIONS
    ('00000', True)
    """
    scenes = [draw_scene(seed, index, label) for index, label in enumerate(_labels(pairs, seed))]
    order = sorted(range(pairs), key=lambda index: (scenes[index].label, index))
    splits = {index: _SPLITS[place % len(_SPLITS)] for place, index in enumerate(order)}
    titles = compose_titles(scenes, noise)
    return [
        Pair(scene, title, splits[scene.index]) for scene, title in zip(scenes, titles, strict=True)
    ]


def _labels(pairs: int, seed: int) -> list[str]:
    """Every action once in each run of as many pairs as there are actions, in a new order."""
    labels: list[str] = []
    for block in range(math.ceil(pairs / len(ACTIONS))):
        order = np.random.default_rng((seed, block, _LABELS)).permutation(len(ACTIONS))
        labels += [ACTIONS[i] for i in order]
    return labels[:pairs]


def _check(pairs: int, seed: int, noise: float, workers: int | None) -> None:
    if pairs < len(ACTIONS):
        raise ManifestError(
            f"pairs is {pairs}, but the rendered corpus has {len(ACTIONS)} actions and needs a "
            f"pair for each: pass {len(ACTIONS)} or more"
        )
    if seed < 0:
        raise ManifestError(f"seed is {seed}: pass 0 or more")
    if not 0 <= noise <= 1:
        raise ManifestError(f"noise is {noise}: pass 0 (clean titles) to 1 (all wrong)")
    if workers is not None and workers < 1:
        raise ManifestError(f"workers is {workers}: pass 1 or more")


def _held(out: Path, settings: dict[str, Any]) -> bool:
    """Whether ``out`` holds a complete corpus of these settings.

    Raises:
        ManifestError: it holds something else.
    """
    noted = out / _SETTINGS
    if not noted.is_file():
        if (out / _MANIFEST).exists() or any((out / "videos").glob("[!.]*")):
            raise ManifestError(
                f"{out} holds a manifest or videos that were not rendered here; "
                "choose another folder"
            )
        return False
    try:
        held = json.loads(noted.read_text(encoding="utf-8"))
        complete = held.pop("complete") is True
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise ManifestError(f"{noted} cannot be read; delete {out} and render again") from error
    if held != settings:
        names = [name for name in settings if held.get(name) != settings[name]]
        raise ManifestError(
            f"{out} holds a corpus rendered with {', '.join(f'{n} {held.get(n)}' for n in names)}, "
            f"not {', '.join(str(settings[n]) for n in names)}; "
            "choose another folder, or delete this one"
        )
    return complete


def _note(out: Path, settings: dict[str, Any]) -> None:
    with atomic_write(out / _SETTINGS, ManifestError) as partial:
        (out / "videos").mkdir(exist_ok=True)
        partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _render(jobs: Sequence[tuple[Scene, Path]], workers: int) -> Generator[tuple[int, Any]]:
    """What `write_video` says of each job, or `Lost`."""
    if workers == 1 or len(jobs) <= _FEW:
        return ((place, write_video(job)) for place, job in enumerate(jobs))
    return map_isolated(
        write_video, jobs, timeout=_SECONDS, workers=workers, name="the renderer"
    )


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


def encode_scene(scene: Scene) -> bytes:
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
        for image in render_frames(scene):
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
        write_atomically(path, encode_scene(scene))
    except RunError as error:
        return str(error)
    return ""
