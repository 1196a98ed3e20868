"""Compute the features of a manifest's videos once, and read them from a folder afterwards.

While features are computed, each process appends to a journal below ``parts/``, so that an
interrupted command resumes. A finished folder has ``features.safetensors`` and ``index.parquet``.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from crosspair.corpora.manifest import Manifest, fingerprint
from crosspair.device import dtype_for
from crosspair.distributed import World
from crosspair.errors import RunError
from crosspair.evaluation.encode import CLIPS
from crosspair.evaluation.features import (
    Features,
    VideoFeatures,
    encode_videos,
    gather_failures,
    no_readable_video_error,
    shard_batches,
    usable_rows,
)
from crosspair.files import JsonlWriter, atomic_write, read_jsonl, write_atomically
from crosspair.models.cpd import CPD

logger = logging.getLogger(__name__)

FEATURES_FILE, INDEX_FILE = "features.safetensors", "index.parquet"
POLL_INTERVAL = 0.2  # s between checks for the files of other processes
_KEY = "crosspair"  # of the specification in the metadata of both files
_FIX = "remove the folder to compute the features again"


def cached_features(
    model: CPD,
    manifest: Manifest,
    folder: Path,
    *,
    clips: int = CLIPS,
    batch_size: int = 32,
    workers: int = 2,
    world: World | None = None,
    precision: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    encode: Callable[..., Iterator[VideoFeatures]] = encode_videos,
) -> Features:
    """Read features from a folder; compute what is missing first.

    Videos that could not be read when the features were computed, and rows with an error, are skipped.

    Args:
        model, manifest, clips, batch_size, workers, precision: see `crosspair.evaluation.extract_features`.
        folder: folder for the features of these videos by this model, shared by all processes.
        world: processes that compute the features together; each of them calls this function.
        progress: called with the approximate number of clips done by all processes, and of all clips.
        encode: computes the features; same arguments as `crosspair.evaluation.features.encode_videos`.

    Raises:
        RunError: the folder has other files, features of another model, videos or protocol, or cannot be written.
        VideoError: no video can be read.
    """
    world = world or World()
    spec = feature_spec(model, manifest, clips=clips, precision=precision, device=world.device)
    journals = FeatureJournal(folder / "parts", world)
    _check_folder(folder, journals, spec)
    world.barrier()
    if not is_complete(folder):
        usable, errors = usable_rows(manifest)
        done = journals.begin(spec)
        groups = [g for g in shard_batches(usable, clips, batch_size, World()) if not done.issuperset(g)]
        rows = [row for group in groups[world.rank :: world.size] for row in group]
        ready = len(usable) - sum(map(len, groups))
        if ready and world.is_main:
            logger.info("%d of %d videos are encoded already", ready, len(usable))
        added = 0
        with journals.open() as journal:
            for video in encode(
                model, manifest, rows,
                clips=clips, batch_size=batch_size, workers=workers, world=world,
                precision=precision,
            ):  # fmt: skip
                journal.add(_to_entry(video))
                added += 1
                if progress:
                    total = min(ready + world.size * added, len(usable))
                    progress(total * clips, len(usable) * clips)
        journals.wait_for_all()
        if world.is_main:
            _merge_journals(journals, folder, manifest, spec, usable, errors)
        world.barrier()
    return _drop_errors(load_features(folder), manifest, world)


def load_features(folder: Path) -> Features:
    """Read a complete folder of features.

    Raises:
        RunError: the features are missing, incomplete or cannot be read.
    """
    if not is_complete(folder):
        raise RunError(f'{folder} holds no complete features. Run "crosspair features" to compute them')
    rows = _read(pq.read_table, folder / INDEX_FILE).to_pylist()
    tensors = _read(load_file, folder / FEATURES_FILE)
    encoded = [row for row in rows if row["clips"]]
    if [len(tensors.get(name, ())) for name in ("visual", "embedding")] != [len(encoded)] * 2:
        raise RunError(f"{folder / FEATURES_FILE} does not match {INDEX_FILE}; {_FIX}")
    return Features(
        rows=torch.tensor([row["row"] for row in encoded]),
        visual=tensors["visual"],
        embedding=tensors["embedding"],
        clips=encoded[0]["clips"],
        failures=[(row["pair_id"], row["error"]) for row in rows if row["error"]],
    )


def is_complete(folder: Path) -> bool:
    """Return whether a folder has the index file, which is written last; the features are not checked."""
    return (folder / INDEX_FILE).is_file()


def features_match(folder: Path, manifest: Manifest) -> bool:
    """Return whether the pair_ids in the index of complete features equal those of a manifest, in order.

    Raises:
        RunError: the features cannot be read.
    """
    index = _read(pq.read_table, folder / INDEX_FILE)
    return bool(index.column("pair_id").to_pylist() == manifest.column("pair_id"))


def write_features(
    folder: Path,
    manifest: Manifest,
    spec: FeatureSpec,
    tensors: dict[str, torch.Tensor],
    rows: list[int],
    failures: dict[int, str],
) -> None:
    """Write a folder of features.

    Args:
        folder: folder to write.
        manifest: the videos.
        spec: specification of the features.
        tensors: ``visual`` (V, F) and ``embedding`` (V, D), float32.
        rows: the V rows of the manifest, ascending.
        failures: maps rows that could not be read to messages.

    Raises:
        RunError: the folder cannot be written.
    """
    encoded, every = set(rows), range(len(manifest))
    table = pa.table({
        "row": pa.array(every, pa.int64()),
        "pair_id": manifest.table.column("pair_id"),
        "clips": pa.array([spec.clips if row in encoded else 0 for row in every], pa.int32()),
        "error": pa.array(map(failures.get, every), pa.string()),
    }).replace_schema_metadata({_KEY: spec.json()})  # fmt: skip
    with atomic_write(folder / FEATURES_FILE) as partial:
        try:
            save_file(tensors, partial, {_KEY: spec.json()})
        except SafetensorError as error:  # raised if the disk is full
            raise OSError(str(error)) from error
    with atomic_write(folder / INDEX_FILE) as partial:
        pq.write_table(table, partial)


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that the features of a manifest's videos depend on."""

    model: str
    """Hash of the weights, see `crosspair.models.CPD.hash`."""
    videos: str
    """Hash of the videos, see `crosspair.corpora.manifest.fingerprint`. It ignores titles, labels
    and splits, which features do not depend on."""
    clips: int
    """Number of evenly spaced clips per video."""
    frames: int
    """Number of frames per clip."""
    stride: int
    """Distance between frames in 1/30 s."""
    size: int
    """Side of the square crop, in pixels."""
    short_side: int
    """Short side of the resized frames, in pixels."""
    precision: str
    """Precision of the network: "bf16" or "fp32"."""

    @property
    def folder(self) -> str:
        """Folder name for features of this model and these videos."""
        return f"features-{self.model}-{self.videos}-{self.clips}-{self.precision}"

    def difference(self, wanted: FeatureSpec) -> str:
        """Return a text of the fields that differ from ``wanted``, with both values; empty if there are none."""
        fields = [field.name for field in dataclasses.fields(FeatureSpec)]
        differing = [name for name in fields if getattr(self, name) != getattr(wanted, name)]
        if not differing:
            return ""
        kind = {"model": "another model", "videos": "other videos"}.get(differing[0], "another protocol")
        values = [f"{name} {getattr(self, name)}, not {getattr(wanted, name)}" for name in differing]
        return f"{kind} ({'; '.join(values)})"

    def json(self) -> str:
        """Return the specification as the text of a JSON object."""
        return json.dumps(dataclasses.asdict(self))


def feature_spec(model: CPD, manifest: Manifest, *, clips: int, precision: str, device: torch.device) -> FeatureSpec:
    """Build the specification of the features of a manifest's videos by a model.

    Args:
        model: model that computes the features.
        manifest: the videos.
        clips: number of clips per video.
        precision: see `crosspair.config.TrainingConfig`.
        device: device of the computation, which decides the meaning of precision "auto".
    """
    clip = model.clip
    return FeatureSpec(
        model=model.hash,
        videos=fingerprint(manifest),
        clips=clips,
        frames=clip.frames,
        stride=clip.stride,
        size=clip.size,
        short_side=round(clip.test_scale * clip.size),
        precision="bf16" if dtype_for(device, precision) == torch.bfloat16 else "fp32",
    )


def _parse_spec(text: str | bytes, path: Path) -> FeatureSpec:
    """Parse the JSON of `FeatureSpec.json`; raise RunError, naming ``path``, if it is invalid."""
    try:
        return FeatureSpec(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} has no valid specification of its features; {_FIX}") from error


def _check_folder(folder: Path, journals: FeatureJournal, spec: FeatureSpec) -> None:
    """Raise RunError unless a folder is absent, empty, or has begun or complete features of the given specification."""
    if is_complete(folder):
        metadata = _read(pq.read_table, folder / INDEX_FILE).schema.metadata or {}
        found = _parse_spec(metadata.get(_KEY.encode(), b""), folder)
    elif text := journals.read_spec():
        found = _parse_spec(text, folder)
    elif folder.exists() and not (folder.is_dir() and _is_empty(folder)):
        raise RunError(f"{folder} exists and holds no features; choose another folder")
    else:
        return
    if difference := found.difference(spec):
        raise RunError(f"{folder} holds features of {difference}; choose another folder, or remove this one")


def _is_empty(folder: Path) -> bool:
    """Return whether a folder contains no file, at any depth, except unfinished ``.partial`` files."""
    # A killed process may have left an unfinished first file.
    return not any(p.is_file() and p.suffix != ".partial" for p in folder.rglob("*"))


def _merge_journals(
    journals: FeatureJournal,
    folder: Path,
    manifest: Manifest,
    spec: FeatureSpec,
    usable: list[int],
    errors: dict[int, str],
) -> None:
    """Write the features of all journals to the folder, each video once; then delete these. Raise if one is missing."""
    failures: dict[int, str] = {}
    positions = {row: i for i, row in enumerate(usable)}
    found = torch.zeros(len(usable), dtype=torch.bool)
    tensors: dict[str, torch.Tensor] = {}
    for video in journals.read():
        position = positions.get(video.row)
        if position is None:
            continue  # the row was given an error since
        if video.error:
            failures[video.row] = video.error
            continue
        found[position] = True
        for name, values in (("visual", video.visual), ("embedding", video.embedding)):
            tensor = tensors.setdefault(name, torch.empty(len(usable), len(values)))
            tensor[position] = values
    rows = [row for row in usable if found[positions[row]]]
    failures = {row: message for row, message in failures.items() if not found[positions[row]]}
    missing = len(usable) - len(rows) - len(failures)
    if missing:
        raise RunError(
            f"{folder}: {missing} of {len(usable)} videos are in no journal. Use a folder that all "
            "processes share, and run the same command again to encode the missing videos"
        )
    failures |= errors
    if not rows:
        journals.remove()
        raise no_readable_video_error(manifest, failures)
    if len(rows) < len(usable):
        tensors = {name: tensor[found] for name, tensor in tensors.items()}
    write_features(folder, manifest, spec, tensors, rows, failures)
    journals.remove()


def _drop_errors(features: Features, manifest: Manifest, world: World) -> Features:
    """Drop features of rows that now have an error in the manifest; add these errors to the failures and log all."""
    _, errors = usable_rows(manifest)
    row_of = {pair_id: row for row, pair_id in enumerate(manifest.column("pair_id"))}
    failures = {row_of[pair_id]: message for pair_id, message in features.failures} | errors
    all_failures = gather_failures(manifest, failures, world)
    keep = torch.tensor([row not in errors for row in features.rows.tolist()])
    return dataclasses.replace(
        features, rows=features.rows[keep], visual=features.visual[keep],
        embedding=features.embedding[keep], failures=all_failures,
    )  # fmt: skip


def _read(reader: Callable[[Path], Any], path: Path) -> Any:
    """Return ``reader(path)``; raise RunError with the path and how to fix it if the file is damaged or absent."""
    try:
        return reader(path)
    except (OSError, pa.ArrowException, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{path} cannot be read ({reason}); {_FIX}") from error


class FeatureJournal:
    """Folder with a journal (JSON lines) of the encoded videos per process.

    Args:
        folder: folder shared by all processes; created by `begin`.
        world: processes that fill the folder together.
    """

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        self._spec_file = folder / "protocol.json"

    def read_spec(self) -> str:
        """Read the JSON text of the specification given to `begin`; empty if there is none."""
        try:
            return self._spec_file.read_text(encoding="utf-8")
        except OSError:
            return ""

    def begin(self, spec: FeatureSpec) -> set[int]:
        """Create the folder if necessary; every process calls this before any opens its journal.

        Returns:
            The rows of the manifest that are finished, readable or not.

        Raises:
            RunError: the folder cannot be written, or a journal cannot be read.
        """
        if self.world.is_main and not self.read_spec():
            write_atomically(self._spec_file, spec.json())
        self.world.barrier()
        self._done_file(self.world.rank).unlink(missing_ok=True)
        done = {video.row for video in self.read()}
        self.world.barrier()
        return done

    def open(self) -> JsonlWriter:
        """Open this process's journal for appending."""
        return JsonlWriter(self.folder / f"{self.world.rank}.jsonl")

    def wait_for_all(self) -> None:
        """Mark the journal of this process as finished, and wait until those of all processes are."""
        if self.world.size == 1:
            return
        # Processes may finish hours apart, but a barrier times out after minutes: poll files first.
        write_atomically(self._done_file(self.world.rank), "")
        while not all(self._done_file(rank).exists() for rank in range(self.world.size)):
            time.sleep(POLL_INTERVAL)
        self.world.barrier()

    def read(self) -> Iterator[VideoFeatures]:
        """Yield the entries of all journals, except damaged ones; a video that was encoded twice occurs twice.

        Raises:
            RunError: a journal cannot be read.
        """
        for path in sorted(self.folder.glob("*.jsonl")):
            for entry in read_jsonl(path):
                try:
                    row, visual, embedding, error = entry
                    video = VideoFeatures(row, _decode(visual), _decode(embedding), error)
                except (TypeError, ValueError):
                    continue  # a damaged entry: the video is encoded again
                yield video

    def remove(self) -> None:
        """Delete the folder with the journals of all processes; errors are ignored."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _done_file(self, rank: int) -> Path:
        """Return the path of the empty file that marks the journal of a process as finished."""
        return self.folder / f"{rank}.done"


def _to_entry(video: VideoFeatures) -> list[Any]:
    """Convert features to a journal entry: row, visual and embedding in base64 (which keeps floats exact), error."""
    return [video.row, _encode(video.visual), _encode(video.embedding), video.error]


def _encode(values: torch.Tensor) -> str:
    """Encode the values of a float tensor as base64 of little-endian float32, without its shape."""
    return b64encode(values.numpy().astype("<f4").tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    """Decode the text of `_encode` to a flat float32 tensor."""
    return torch.from_numpy(np.frombuffer(b64decode(text), "<f4").astype(np.float32))
