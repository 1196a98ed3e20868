"""Features of a manifest's videos that are made once, and taken from a folder ever after."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
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
    """The features in a folder; they are made there, or the rest of them, where they are not.

    A video that could not be read then is left out ever after; one whose row was given an error
    since is left out, too.

    Args:
        model, manifest, clips, batch_size, workers, precision: as for
            `crosspair.evaluation.extract_features`.
        folder: for this model's features of these videos alone; shared by all processes.
        world: the processes that make them together; each of them calls this.
        progress: called with the clips done and their number, over all processes about.
        encode: what computes them, called as `crosspair.evaluation.features.encode_videos`.

    Raises:
        RunError: the folder is of another model, of other videos or another protocol, or holds
            something else, or cannot be written.
        VideoError: none of the videos can be read, or decoding ended.
    """
    world = world or World()
    protocol = feature_spec(model, manifest, clips=clips, precision=precision, device=world.device)
    parts = FeatureJournal(folder / "parts", world)
    _check(folder, parts, protocol)
    world.barrier()
    if not is_complete(folder):
        usable, errors = usable_rows(manifest)
        done = parts.begin(protocol.json())
        groups = [
            g for g in shard_batches(usable, clips, batch_size, World()) if not done.issuperset(g)
        ]
        waiting = [row for group in groups for row in group]
        mine = [row for group in groups[world.rank :: world.size] for row in group]
        ready = len(usable) - len(waiting)
        if ready and world.is_main:
            logger.info("%d of %d videos are encoded already", ready, len(usable))
        added = 0
        with parts.journal() as journal:
            for encoded in encode(
                model, manifest, mine,
                clips=clips, batch_size=batch_size, workers=workers, world=world,
                precision=precision,
            ):  # fmt: skip
                journal.add(*journal_lines([encoded]))
                added += 1
                if progress:
                    all_done = min(ready + world.size * added, len(usable))
                    progress(all_done * clips, len(usable) * clips)
        parts.wait_for_all()
        if world.is_main:
            _join(parts, folder, manifest, protocol, usable, errors)
        world.barrier()
    return _without_errors(load_features(folder), manifest, world)


def _check(folder: Path, parts: FeatureJournal, protocol: FeatureSpec) -> None:
    if is_complete(folder):
        found = read_protocol(folder)
    elif parts.protocol:
        found = protocol_from(parts.protocol, folder)
    elif folder.exists() and not (folder.is_dir() and _is_empty(folder)):
        raise RunError(f"{folder} is there already and holds no features; name another folder")
    else:
        return
    difference = found.difference(protocol)
    if difference:
        raise RunError(
            f"{folder} holds features of {difference}; name another folder, or remove this one"
        )


def _is_empty(folder: Path) -> bool:
    # What a kill leaves of the first file does not count.
    return not any(p.is_file() and p.suffix != ".partial" for p in folder.rglob("*"))


def _join(
    parts: FeatureJournal,
    folder: Path,
    manifest: Manifest,
    protocol: FeatureSpec,
    usable: list[int],
    errors: dict[int, str],
) -> None:
    """Put all parts together: every video once."""
    failures: dict[int, str] = {}
    place = {row: i for i, row in enumerate(usable)}
    found = torch.zeros(len(usable), dtype=torch.bool)
    tensors: dict[str, torch.Tensor] = {}
    for each in parts.read():
        at = place.get(each.row)
        if at is None:
            continue  # it was given an error since
        if each.error:
            failures[each.row] = each.error
            continue
        found[at] = True
        for name, values in (("visual", each.visual), ("embedding", each.embedding)):
            whole = tensors.setdefault(name, torch.empty(len(usable), len(values)))
            whole[at] = values
    rows = [row for row in usable if found[place[row]]]
    failures = {row: message for row, message in failures.items() if not found[place[row]]}
    missing = len(usable) - len(rows) - len(failures)
    if missing:
        raise RunError(
            f"{folder}: {missing} of {len(usable)} videos are in no part; all processes need "
            "this one folder, and the same command again encodes what is missing"
        )
    failures |= errors
    if not rows:
        parts.remove()
        raise no_readable_video_error(manifest, failures)
    if len(rows) < len(usable):
        tensors = {name: whole[found] for name, whole in tensors.items()}
    write_features(folder, manifest, protocol, tensors, rows, failures)
    parts.remove()


def _without_errors(features: Features, manifest: Manifest, world: World) -> Features:
    """Without the rows that were given an error since the features were made."""
    _, errors = usable_rows(manifest)
    row_of = {pair_id: row for row, pair_id in enumerate(manifest.column("pair_id"))}
    failures = {row_of[pair_id]: message for pair_id, message in features.failures} | errors
    named = gather_failures(manifest, failures, world)
    keep = torch.tensor([row not in errors for row in features.rows.tolist()])
    return dataclasses.replace(
        features, rows=features.rows[keep], visual=features.visual[keep],
        embedding=features.embedding[keep], failures=named,
    )  # fmt: skip


@dataclass(frozen=True)
class FeatureSpec:
    """All that features depend on."""

    model: str
    """Hash of the weights, see `crosspair.models.CPD.hash`."""
    videos: str
    """See `crosspair.corpora.manifest`. Titles, labels and splits may change, as features do not
    depend on them."""
    clips: int
    """Uniformly spread clips a video."""
    frames: int
    """Frames a clip."""
    stride: int
    """Distance between frames in 30ths of a second."""
    size: int
    """Side of the square crop, in pixels."""
    short_side: int
    """What the frames' short side is scaled to, in pixels."""
    precision: str
    """What the network computed in: "bf16" or "fp32"."""

    @property
    def folder(self) -> str:
        """A name for a folder of such features, that other models and manifests do not claim."""
        return f"features-{self.model}-{self.videos}-{self.clips}-{self.precision}"

    def difference(self, wanted: FeatureSpec) -> str:
        """What is not as wanted, for people; empty where all is."""
        fields = [field.name for field in dataclasses.fields(FeatureSpec)]
        differing = [name for name in fields if getattr(self, name) != getattr(wanted, name)]
        if not differing:
            return ""
        kinds = {"model": "another model", "videos": "other videos"}
        each = [f"{name} {getattr(self, name)}, not {getattr(wanted, name)}" for name in differing]
        return f"{kinds.get(differing[0], 'another protocol')} ({'; '.join(each)})"

    def json(self) -> str:
        """As text."""
        return json.dumps(dataclasses.asdict(self))


def feature_spec(
    model: CPD, manifest: Manifest, *, clips: int, precision: str, device: torch.device
) -> FeatureSpec:
    """What the features of a manifest's videos by a model depend on.

    Args:
        model: whose weights, and whose form of clips.
        manifest: the videos.
        clips: a video.
        precision: see `crosspair.config.TrainingConfig`.
        device: where they are computed, which decides what precision "auto" is.
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


FEATURES_FILE, INDEX_FILE = "features.safetensors", "index.parquet"
ANEW = "remove the folder or name another, and make them anew"


def write_features(
    folder: Path,
    manifest: Manifest,
    protocol: FeatureSpec,
    tensors: dict[str, torch.Tensor],
    rows: list[int],
    failures: dict[int, str],
) -> None:
    """Write a folder of features: once the index is there, all is.

    Args:
        tensors: ``visual`` and ``embedding``, of ``rows``.
        rows: of the manifest, ascending.
        failures: row to message.

    Raises:
        RunError: it cannot be written.
    """
    there, every = set(rows), range(len(manifest))
    table = pa.table({
        "row": pa.array(every, pa.int64()),
        "pair_id": manifest.table.column("pair_id"),
        "clips": pa.array([protocol.clips if row in there else 0 for row in every], pa.int32()),
        "error": pa.array(map(failures.get, every), pa.string()),
    }).replace_schema_metadata({_KEY: protocol.json()})  # fmt: skip
    with atomic_write(folder / FEATURES_FILE) as partial:
        try:
            save_file(tensors, partial, {_KEY: protocol.json()})
        except SafetensorError as error:  # so it tells of a full disk
            raise OSError(str(error)) from error
    with atomic_write(folder / INDEX_FILE) as partial:
        pq.write_table(table, partial)


def is_complete(folder: Path) -> bool:
    """Whether all features of the folder are there."""
    return (folder / INDEX_FILE).is_file()


def features_match(folder: Path, manifest: Manifest) -> bool:
    """Whether whole features are of a manifest's pairs, row by row.

    Raises:
        RunError: they cannot be read.
    """
    index = _read(pq.read_table, folder / INDEX_FILE)
    return bool(index.column("pair_id").to_pylist() == manifest.column("pair_id"))


def load_features(folder: Path) -> Features:
    """Read a whole folder of features.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    if not is_complete(folder):
        raise RunError(f'{folder} holds no whole features; "crosspair features" makes them')
    lines = _read(pq.read_table, folder / INDEX_FILE).to_pylist()
    tensors = _read(load_file, folder / FEATURES_FILE)
    there = [line for line in lines if line["clips"]]
    if [len(tensors.get(name, ())) for name in ("visual", "embedding")] != [len(there)] * 2:
        raise RunError(f"{folder / FEATURES_FILE} does not fit {INDEX_FILE} beside it; {ANEW}")
    return Features(
        rows=torch.tensor([line["row"] for line in there]),
        visual=tensors["visual"],
        embedding=tensors["embedding"],
        clips=there[0]["clips"],
        failures=[(line["pair_id"], line["error"]) for line in lines if line["error"]],
    )


def read_protocol(folder: Path) -> FeatureSpec:
    """What the features of a whole folder depend on.

    Raises:
        RunError: there are none, or they do not tell.
    """
    metadata = _read(pq.read_table, folder / INDEX_FILE).schema.metadata or {}
    return protocol_from(metadata.get(_KEY.encode(), b""), folder)


def protocol_from(text: str | bytes, where: Path) -> FeatureSpec:
    """Read what `Protocol.json` gave.

    Raises:
        RunError: it is something else.
    """
    try:
        return FeatureSpec(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise RunError(f"{where} does not tell what its features depend on; {ANEW}") from error


_KEY = "crosspair"


def _read(reader: Callable[[Path], Any], path: Path) -> Any:
    try:
        return reader(path)
    except (OSError, pa.ArrowException, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{path} cannot be read ({reason}); {ANEW}") from error


LOOK_EVERY = 0.2  # s between looks for the other processes' marks


class FeatureJournal:
    """A folder with a journal of each process.

    Args:
        folder: shared by all processes; need not be there.
        world: the processes that fill the folder together.
    """

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        self._protocol_file = folder / "protocol.json"

    @property
    def protocol(self) -> str:
        """What `begin` was given when the folder was made; empty where it is not there."""
        try:
            return self._protocol_file.read_text(encoding="utf-8")
        except OSError:
            return ""

    def begin(self, protocol: str) -> set[int]:
        """Make the folder where there is none; each process calls this before any adds to it.

        Returns:
            The rows of the manifest that are done, readable or not.

        Raises:
            RunError: the folder cannot be written, or a journal cannot be read.
        """
        if self.world.is_main and not self.protocol:
            write_atomically(self._protocol_file, protocol)
        self.world.barrier()
        self._mark(self.world.rank).unlink(missing_ok=True)
        done = {each.row for each in self.read()}
        self.world.barrier()
        return done

    def journal(self) -> JsonlWriter:
        """This process's, open for more; takes what `lines` gives."""
        return JsonlWriter(self.folder / f"{self.world.rank}.jsonl")

    def wait_for_all(self) -> None:
        """Until every process has written all that it will."""
        if self.world.size == 1:
            return
        # By files first: processes may end hours apart, and a barrier gives up after minutes.
        write_atomically(self._mark(self.world.rank), "")
        while not all(self._mark(rank).exists() for rank in range(self.world.size)):
            time.sleep(LOOK_EVERY)
        self.world.barrier()

    def read(self) -> Iterator[VideoFeatures]:
        """What all processes have written; a video that was encoded twice comes twice.

        Raises:
            RunError: a journal cannot be read.
        """
        for path in sorted(self.folder.glob("*.jsonl")):
            for entry in read_jsonl(path):
                try:
                    row, visual, embedding, error = entry
                    encoded = VideoFeatures(row, _tensor(visual), _tensor(embedding), error)
                except (TypeError, ValueError):
                    continue  # spoilt: the video is encoded again
                yield encoded

    def remove(self) -> None:
        """All is done, and kept elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _mark(self, rank: int) -> Path:
        return self.folder / f"{rank}.done"


def journal_lines(encoded: Sequence[VideoFeatures]) -> list[Any]:
    """What a journal holds of videos: floats to the last digit, as base64."""
    return [[e.row, _text(e.visual), _text(e.embedding), e.error] for e in encoded]


def _text(values: torch.Tensor) -> str:
    return b64encode(values.numpy().astype("<f4").tobytes()).decode()


def _tensor(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(b64decode(text), "<f4").astype(np.float32))
