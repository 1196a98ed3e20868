"""Features of a manifest's videos: the mean over evenly spaced clips (Section 4.2), in memory or in a folder.

While a folder is filled, each process writes shards of finished videos below ``parts/``, so that an interrupted
command resumes. A finished folder has ``features.safetensors`` and ``index.parquet``.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from crosspair.corpora.manifest import Manifest, fingerprint
from crosspair.device import dtype_for
from crosspair.distributed import World
from crosspair.errors import CrosspairError, ManifestError, RunError, format_error
from crosspair.evaluation.encode import (
    CLIPS,
    InferenceEngine,
    ProgressCallback,
    WindowFeatures,
    check_readable,
    encode_rows,
    eval_mode,
    usable_rows,
)
from crosspair.files import atomic_write, write_atomically
from crosspair.models.cpd import CPD
from crosspair.workers import WorkerFailure, map_on_ray

logger = logging.getLogger(__name__)

FEATURES_FILE, INDEX_FILE, SPEC_FILE = "features.safetensors", "index.parquet", "parts/protocol.json"
SHARD_VIDEOS, SHARD_SECONDS = 256, 20.0  # a shard is written after either: a kill loses less than this
RAY_TASK_VIDEOS = 128  # about: enough to make the start of a task's workers negligible
POLL_INTERVAL = 0.2  # s between checks for the files of other processes
_KEY = "crosspair"  # of the specification in the metadata of both files
_FIX = "remove the folder to compute the features again"


@dataclass(frozen=True)
class Features:
    """Features of the videos of a manifest.

    Attributes:
        rows: (V,) int64, the videos' rows in the manifest, ascending; unreadable ones are absent.
        visual: (V, F) float32, the mean visual feature (before the mapping layer).
        embedding: (V, D) float32, the mean embedding f_v, normalized.
        clips: Number of clips per video.
        failures: (pair_id, message) of each video that was skipped, by any process.
    """

    rows: torch.Tensor
    visual: torch.Tensor
    embedding: torch.Tensor
    clips: int
    failures: list[tuple[str, str]]


def extract_features(
    model: CPD,
    manifest: Manifest,
    *,
    clips: int = CLIPS,
    batch_size: int = 32,
    workers: int = 2,
    world: World | None = None,
    precision: str = "auto",
    progress: ProgressCallback | None = None,
) -> Features:
    """Encode every video of a manifest; unreadable videos and rows with an error are skipped and listed.

    Args:
        model, manifest: The network, set to eval mode while this runs, and the videos.
        clips: Evenly spaced clips per video (10 in the paper).
        batch_size: Maximum number of clips in a call of the network.
        workers: Decoding processes.
        world: Device and processes. Each process encodes some of the videos and gets all features:
            the same as a single process, if each computes on as many threads.
        precision: See `crosspair.config.TrainingConfig`.
        progress: Called with the number of clips encoded by this process and their total.

    Raises:
        ManifestError: The processes read different manifests.
        VideoError: None of the videos can be read.
    """
    world = world or World()
    usable, failures = usable_rows(manifest)
    rows = [row for group in shard_batches(usable, clips, batch_size, world) for row in group]
    engine = InferenceEngine(model, world.device, precision, batch_size, workers)
    videos = list(encode_rows(engine, manifest, rows, clips, progress))
    failures |= {video.row: video.failure for video in videos if not video.spans}
    skipped = gather_failures(manifest, failures, world)
    own = [video.row for video in videos if video.spans]
    visual = torch.cat([torch.empty(0, model.video_encoder.features), *(video.visual for video in videos)])
    embedding = torch.cat([torch.empty(0, model.head.embedding), *(video.embedding for video in videos)])
    encoded, visual, embedding = (
        world.gather_rows(values.to(world.device)).cpu() for values in (torch.tensor(own).long(), visual, embedding)
    )
    if len(encoded) + len(skipped) != len(manifest):
        raise ManifestError(f"{manifest.path}: some rows were encoded twice or never; do all processes read this file?")
    order = encoded.argsort()
    return Features(encoded[order], visual[order], embedding[order], clips, skipped)


def shard_batches(rows: Sequence[int], clips: int, batch_size: int, world: World) -> list[list[int]]:
    """Divide rows into batches of the network, for any number of processes the same; return those of this process."""
    videos = max(1, batch_size // clips)
    groups = [list(rows[i : i + videos]) for i in range(0, len(rows), videos)]
    return groups[world.rank :: world.size]


def gather_failures(manifest: Manifest, failures: dict[int, str], world: World) -> list[tuple[str, str]]:
    """Return (pair_id, message) of the failed rows of all processes, and log them; VideoError if all rows failed."""
    gathered = map(json.loads, world.gather_texts(json.dumps(list(failures.items()))))
    messages = {row: message for pairs in gathered for row, message in pairs}
    ids = manifest.column("pair_id")
    skipped = [(ids[row], message) for row, message in sorted(messages.items())]
    for pair_id, message in skipped if world.is_main else ():
        logger.warning("skipped %s: %s", pair_id, message)
    check_readable(manifest, messages)
    return skipped


@torch.no_grad()
def embed_texts(model: CPD, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
    """Embed texts; return (T, D) float32 embeddings f_t of unit norm, on the CPU."""
    with eval_mode(model):
        parts = [model.encode_text(texts[i : i + batch_size]).cpu() for i in range(0, len(texts), batch_size)]
    return torch.cat(parts) if parts else torch.empty(0, model.head.embedding)


# --- folders of features ------------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that features depend on: weights, videos (not labels), clips, precision ("bf16" or "fp32")."""

    model: str
    videos: str
    clips: int
    frames: int
    stride: int
    size: int
    short_side: int
    precision: str

    @property
    def folder(self) -> str:
        """Folder name for features of this model and these videos."""
        return f"features-{self.model}-{self.videos}-{self.clips}-{self.precision}"

    def json(self) -> str:
        """Return the specification as the text of a JSON object."""
        return json.dumps(asdict(self))


def feature_spec(model: CPD, manifest: Manifest, *, clips: int, precision: str, device: torch.device) -> FeatureSpec:
    """Build the specification of features; the device decides the meaning of precision "auto"."""
    return FeatureSpec(
        model=model.hash,
        videos=fingerprint(manifest),
        clips=clips,
        frames=model.clip.frames,
        stride=model.clip.stride,
        size=model.clip.size,
        short_side=round(model.clip.test_scale * model.clip.size),
        precision="bf16" if dtype_for(device, precision) == torch.bfloat16 else "fp32",
    )


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
    progress: ProgressCallback | None = None,
    encode: Callable[..., Iterator[WindowFeatures]] = encode_rows,
) -> Features:
    """Read features from a folder; compute what is missing first. An interrupted call resumes.

    Args:
        folder: folder for the features of these videos by this model, shared by all processes.
        progress: called with the approximate number of clips done by all processes, and of all clips.
        encode: computes the features: `encode_rows` or `encode_on_ray`. For the other arguments see `extract_features`.

    Raises:
        RunError: the folder has other files, features of another model, videos or protocol, or cannot be written.
        VideoError: no video can be read.
    """
    world = world or World()
    spec = feature_spec(model, manifest, clips=clips, precision=precision, device=world.device)
    _check_folder(folder, spec)
    world.barrier()
    usable, errors = usable_rows(manifest)
    if not (folder / INDEX_FILE).is_file():
        parts = folder / "parts"
        if world.is_main:
            write_atomically(folder / SPEC_FILE, spec.json())
        world.barrier()
        (parts / f"{world.rank}.done").unlink(missing_ok=True)
        done = {row for path in parts.glob("*.parquet") for row in _read(_read_rows, path).column("row").to_pylist()}
        world.barrier()  # all have read the same shards before any is added
        groups = [group for group in shard_batches(usable, clips, batch_size, World()) if not done.issuperset(group)]
        rows = [row for group in groups[world.rank :: world.size] for row in group]
        ready, total = len(usable) - sum(map(len, groups)), len(usable) * clips
        if ready and world.is_main:
            logger.info("%d of %d videos are encoded already", ready, len(usable))

        def advance(done: int, _: int) -> None:
            if progress:
                progress(min(ready * clips + world.size * done, total), total)

        engine = InferenceEngine(model, world.device, precision, batch_size, workers)
        for shard in _group_in_shards(encode(engine, manifest, rows, clips, advance)):
            _write_shard(parts / f"{world.rank}-{time.time_ns()}.parquet", shard)
        # Processes may finish hours apart, but a barrier times out after minutes: poll files first.
        write_atomically(parts / f"{world.rank}.done", "")
        while not all((parts / f"{rank}.done").exists() for rank in range(world.size)):
            time.sleep(POLL_INTERVAL)
        world.barrier()
        if world.is_main:
            _merge_shards(folder, manifest, spec, usable, errors)
        world.barrier()
    features = load_features(folder)
    # Rows may have got an error in the manifest since.
    row_of = {pair_id: row for row, pair_id in enumerate(manifest.column("pair_id"))}
    skipped = gather_failures(manifest, {row_of[name]: text for name, text in features.failures} | errors, world)
    keep = torch.tensor([row not in errors for row in features.rows.tolist()])
    return Features(features.rows[keep], features.visual[keep], features.embedding[keep], features.clips, skipped)


def load_features(folder: Path) -> Features:
    """Read a complete folder of features; raise RunError if they are incomplete or cannot be read."""
    if not (folder / INDEX_FILE).is_file():
        raise RunError(f"{folder} holds no complete features; run the command that computes them again")
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


def _check_folder(folder: Path, spec: FeatureSpec) -> None:
    """Raise RunError unless a folder is absent, empty, or has begun or complete features of the given specification."""
    if (folder / INDEX_FILE).is_file():
        text = (_read(pq.read_table, folder / INDEX_FILE).schema.metadata or {}).get(_KEY.encode(), b"")
    elif (folder / SPEC_FILE).is_file():
        text = _read(Path.read_bytes, folder / SPEC_FILE)
    else:
        # A killed process may have left a partial file.
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".partial"]
        if folder.is_file() or files:
            raise RunError(f"{folder} exists and holds no features; choose another folder")
        return
    try:
        found, wanted = json.loads(text), asdict(spec)
        differing = [f"{name} {found[name]}, not {wanted[name]}" for name in wanted if found[name] != wanted[name]]
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{folder} has no valid specification of its features; {_FIX}") from error
    if differing:
        raise RunError(f"{folder} holds other features ({'; '.join(differing)}); choose another folder, or remove it")


def _group_in_shards(videos: Iterator[WindowFeatures]) -> Iterator[list[WindowFeatures]]:
    shard, begun = list[WindowFeatures](), time.monotonic()
    for video in videos:
        shard.append(video)
        if len(shard) >= SHARD_VIDEOS or time.monotonic() - begun >= SHARD_SECONDS:
            yield shard
            shard, begun = [], time.monotonic()
    if shard:
        yield shard


def _write_shard(path: Path, videos: Sequence[WindowFeatures]) -> None:
    """Write finished videos, readable or not, as one row each."""
    columns = {
        "row": pa.array([video.row for video in videos], pa.int64()),
        "visual": pa.array([video.visual.flatten().numpy() for video in videos], pa.list_(pa.float32())),
        "embedding": pa.array([video.embedding.flatten().numpy() for video in videos], pa.list_(pa.float32())),
        "error": pa.array([None if video.spans else video.failure for video in videos], pa.string()),
    }
    with atomic_write(path) as partial:
        pq.write_table(pa.table(columns), partial)


def _read_rows(path: Path) -> pa.Table:
    return pq.read_table(path, columns=["row"])


def _read_shards(parts: Path) -> pd.DataFrame:
    """Return the videos of all shards, each once, in order of rows."""
    shards = [_read(pq.read_table, path).to_pandas() for path in sorted(parts.glob("*.parquet"))]
    videos = pd.concat(shards or [pd.DataFrame(columns=["row", "visual", "embedding", "error"])])
    # A video is encoded again if others of its batch were not finished.
    return videos.sort_values(["row", "error"], na_position="first").drop_duplicates("row")


def _merge_shards(
    folder: Path, manifest: Manifest, spec: FeatureSpec, usable: list[int], errors: dict[int, str]
) -> None:
    """Write the features of all shards to the folder, the index last, and remove the shards."""
    videos = _read_shards(folder / "parts")
    videos = videos[videos.row.isin(usable)]  # other rows were given an error since
    if missing := len(usable) - len(videos):
        raise RunError(f"{folder}: {missing} videos are in no shard; do all processes share this folder? Run again")
    readable, failed = videos[videos.error.isna()], videos[videos.error.notna()]
    failures = dict(zip(failed.row.tolist(), failed.error, strict=True)) | errors
    if len(readable):
        metadata, every, encoded = {_KEY: spec.json()}, range(len(manifest)), set(readable.row)
        with atomic_write(folder / FEATURES_FILE) as partial:
            try:
                tensors = {name: torch.from_numpy(np.stack(readable[name])) for name in ("visual", "embedding")}
                save_file(tensors, partial, metadata)
            except SafetensorError as error:  # raised if the disk is full
                raise OSError(str(error)) from error
        index = pa.table(
            {
                "row": pa.array(every, pa.int64()),
                "pair_id": manifest.table.column("pair_id"),
                "clips": pa.array([spec.clips if row in encoded else 0 for row in every], pa.int32()),
                "error": pa.array(map(failures.get, every), pa.string()),
            }
        )
        with atomic_write(folder / INDEX_FILE) as partial:
            pq.write_table(index.replace_schema_metadata(metadata), partial)
    shutil.rmtree(folder / "parts", ignore_errors=True)
    check_readable(manifest, failures)


def _read(reader: Callable[[Path], Any], path: Path) -> Any:
    """Return ``reader(path)``; raise RunError with the path and how to fix it if the file is damaged or absent."""
    try:
        return reader(path)
    except (OSError, pa.ArrowException, SafetensorError) as error:
        raise RunError(f"{path} cannot be read ({format_error(error)}); {_FIX}") from error


# --- Ray ----------------------------------------------------------------------------------------


def encode_on_ray(
    engine: InferenceEngine,
    manifest: Manifest,
    rows: Sequence[int],
    clips: int = CLIPS,
    progress: ProgressCallback | None = None,
    *,
    address: str | None = None,
) -> Iterator[WindowFeatures]:
    """Run `encode_rows` in tasks of a Ray cluster; yield features as tasks finish, not in order.

    A task has one GPU, or as many cores as it has workers and one more; that of a lost node is repeated. Videos must
    have the same paths, or URLs, on all nodes. The device of `engine` decides what precision "auto" is.

    Raises:
        RunError: There is no such cluster, or a task failed.
    """
    precision = "bf16" if dtype_for(engine.device, engine.precision) == torch.bfloat16 else "fp32"
    engine = replace(engine, model=engine.model.cpu(), precision=precision)
    group = max(1, engine.batch_size // clips)  # videos that form a batch of the network
    size = group * max(1, RAY_TASK_VIDEOS // group)
    blocks = [list(rows[i : i + size]) for i in range(0, len(rows), size)]
    # Relative paths would start elsewhere in Ray's workers.
    inputs = engine, Manifest(manifest.table, manifest.path.absolute()), clips
    done, cores = 0, engine.workers + 1
    for _, outcome in map_on_ray(_encode_block, blocks, inputs, cores=cores, gpus=True, retries=2, address=address):
        if isinstance(outcome, CrosspairError):
            raise outcome
        if isinstance(outcome, WorkerFailure):
            raise RunError(outcome.reason)
        yield from outcome
        done += len(outcome)
        if progress:
            progress(done * clips, len(rows) * clips)


def _encode_block(
    block: Sequence[int], inputs: tuple[InferenceEngine, Manifest, int]
) -> list[WindowFeatures] | CrosspairError:
    """Encode rows of a manifest in a Ray task, on a GPU if it has one."""
    engine, manifest, clips = inputs
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return list(encode_rows(replace(engine, model=engine.model.to(device), device=device), manifest, block, clips))
    except CrosspairError as error:
        return error
