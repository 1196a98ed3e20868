"""Render a corpus: plan all pairs, render the missing files, write the manifest."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import av
import numpy as np
from av.video.stream import VideoStream

from crosspair.corpora.manifest import Manifest, manifest_from_rows
from crosspair.corpora.rendered.scene import ACTIONS, Scene, draw_scene, render_frames
from crosspair.corpora.rendered.titles import compose_titles
from crosspair.errors import ManifestError
from crosspair.files import atomic_write
from crosspair.workers import WorkerFailure, cpu_count, map_isolated

_VERSION = 1  # increase it if the same settings would give other scenes, titles or files
_SETTINGS = "rendered.json"
_MANIFEST = "manifest.parquet"
_SECONDS = 300.0  # time limit of a file; it takes less than 1 s
_FEW = 12  # rendering these takes as long as starting a process
_LABELS = 4  # random stream of the order of actions, see `scene`

# Assigned in turn to the pairs sorted by action: any 10 in a row contain a val pair, any 7 a test
# pair.
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
        """The pair's index in the corpus, with five digits."""
        return f"{self.scene.index:05d}"

    @property
    def path(self) -> str:
        """Path of the video relative to the manifest."""
        return f"videos/{self.pair_id}.{ENCODINGS[self.scene.codec].container}"

    @property
    def row(self) -> dict[str, Any]:
        """Row of the manifest."""
        row = {"pair_id": self.pair_id, "path": self.path, "title": self.title, "split": self.split}
        row |= {key: getattr(self.scene, key) for key in ("label", "width", "height", "frames", "codec")}
        return row | {"fps": float(self.scene.fps), "duration": self.scene.seconds}


def render_corpus(
    out: str | os.PathLike[str],
    pairs: int = 1200,
    seed: int = 0,
    noise: float = 0.3,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Manifest:
    """Render videos and write their titles; 1,200 pairs take half a minute on 2 cores.

    Equal arguments give equal files and titles, for any number of workers. An interrupted call
    leaves only complete files, and the next call renders the missing ones.

    Args:
        out: folder for ``manifest.parquet`` and ``videos/``; created if missing.
        pairs: number of pairs, at least one per action; from 200 on, every action is in every split
            (75 % train, 10 % val, 15 % test).
        seed: 0 or more; determines scenes and titles.
        noise: 0 (clean titles) to 1 (all wrong); see `compose_titles`.
        workers: processes; by default one per available core.
        progress: called after every file with the number of finished and of all files.

    Returns:
        The manifest, with ``label``, ``split`` and the probed columns filled in every row.

    Raises:
        ManifestError: an argument is out of range, ``out`` holds other files, a file cannot be
            written, or a rendering process was killed.
    """
    workers = cpu_count() if workers is None else workers
    limits = {"pairs": (pairs, len(ACTIONS), math.inf), "seed": (seed, 0, math.inf), "noise": (noise, 0, 1)}
    for name, (value, lowest, highest) in {**limits, "workers": (workers, 1, math.inf)}.items():
        if not lowest <= value <= highest:
            raise ManifestError(f"{name} is {value}; it must be in [{lowest}, {highest}]")
    out = Path(out)
    settings = {"version": _VERSION, "pairs": pairs, "seed": seed, "noise": float(noise)}
    complete = _is_complete(out, settings)
    planned = plan(pairs, seed, noise)
    missing = [pair for pair in planned if not (out / pair.path).is_file()]
    if complete and not missing and (out / _MANIFEST).is_file():
        return Manifest.read(out / _MANIFEST)
    _write_settings(out, {**settings, "complete": False})
    jobs = [(pair.scene, out / pair.path) for pair in missing]
    # Closed if `progress` raises, so that all worker processes end.
    with closing(_render(jobs, workers)) as answers:
        for done, (_, failure) in enumerate(answers, pairs - len(missing) + 1):
            if failure:
                raise ManifestError(
                    f"{out}: rendering failed ({failure.reason}). Repeat the command to resume, if "
                    "necessary with fewer workers."
                )
            progress(done, pairs)
    manifest = manifest_from_rows((pair.row for pair in planned), out / _MANIFEST).write(out / _MANIFEST)
    _write_settings(out, {**settings, "complete": True})
    return manifest


def plan(pairs: int, seed: int = 0, noise: float = 0.3) -> list[Pair]:
    """Plan all pairs of a corpus without rendering them.

    >>> pair = plan(16)[0]
    >>> pair.pair_id, pair.scene.label in ACTIONS
    ('00000', True)
    """
    labels: list[str] = []
    for block in range(math.ceil(pairs / len(ACTIONS))):  # of all actions, in random order
        order = np.random.default_rng((seed, block, _LABELS)).permutation(len(ACTIONS))
        labels += [ACTIONS[i] for i in order]
    scenes = [draw_scene(seed, index, label) for index, label in enumerate(labels[:pairs])]
    by_label = sorted(scenes, key=lambda scene: (scene.label, scene.index))
    splits = {scene.index: _SPLITS[place % len(_SPLITS)] for place, scene in enumerate(by_label)}
    titles = compose_titles(scenes, noise)
    return [Pair(scene, title, splits[scene.index]) for scene, title in zip(scenes, titles, strict=True)]


def _is_complete(out: Path, settings: dict[str, Any]) -> bool:
    """Return whether ``out`` holds a complete corpus; ManifestError for one of other settings, or other files."""
    file = out / _SETTINGS
    if not file.is_file():
        if (out / _MANIFEST).exists() or any((out / "videos").glob("[!.]*")):
            raise ManifestError(
                f"{out} holds a manifest or videos that were not rendered there. Choose another folder."
            )
        return False
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        complete = held.pop("complete") is True
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise ManifestError(f"{file} cannot be read. Delete {out} and render again.") from error
    if held != settings:
        names = [name for name in settings if held.get(name) != settings[name]]
        raise ManifestError(
            f"{out} holds a corpus rendered with {', '.join(f'{n} {held.get(n)}' for n in names)}, "
            f"not {', '.join(str(settings[n]) for n in names)}. "
            "Choose another folder, or delete this one."
        )
    return complete


def _write_settings(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings as JSON and create the folder ``videos``."""
    with atomic_write(out / _SETTINGS, ManifestError) as partial:
        (out / "videos").mkdir(exist_ok=True)
        partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _render(jobs: Sequence[tuple[Scene, Path]], workers: int) -> Generator[tuple[int, WorkerFailure | None]]:
    """Render to files; yield (index of the job, `WorkerFailure` or None)."""
    if workers == 1 or len(jobs) <= _FEW:
        for place, job in enumerate(jobs):
            write_video(job)
            yield place, None
    else:
        yield from map_isolated(write_video, jobs, timeout=_SECONDS, workers=workers)


class Encoding(NamedTuple):
    """Encoder settings of one codec."""

    encoder: str
    container: str
    options: Mapping[str, str]
    bit_rate: int | None = None


ENCODINGS: Mapping[str, Encoding] = {
    "h264": Encoding("libx264", "mp4", {"preset": "ultrafast", "crf": "23"}),
    "mpeg4": Encoding("mpeg4", "avi", {}, bit_rate=500_000),
    "vp9": Encoding("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8", "crf": "34"}, bit_rate=0),
}


def encode_scene(scene: Scene) -> bytes:
    """Render a scene and encode it as a video file; equal scenes give equal bytes."""
    encoding = ENCODINGS[scene.codec]
    file = io.BytesIO()
    # Without bitexact, WebM files contain random identifiers.
    options = {"fflags": "+bitexact"}
    with av.open(file, "w", format=encoding.container, options=options) as container:
        stream = cast(
            VideoStream, container.add_stream(encoding.encoder, rate=scene.fps, options=dict(encoding.options))
        )
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
        context = stream.codec_context
        context.gop_size = scene.gop
        context.thread_count = 1
        if encoding.bit_rate is not None:
            context.bit_rate = encoding.bit_rate
        if scene.codec == "h264" and scene.gop > 12:
            context.max_b_frames = 2  # to cover files whose decoding order differs
        for image in render_frames(scene):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def write_video(job: tuple[Scene, Path]) -> None:
    """Render a scene to a file, atomically; the task of a worker process."""
    scene, path = job
    with atomic_write(path, ManifestError) as partial:
        partial.write_bytes(encode_scene(scene))
