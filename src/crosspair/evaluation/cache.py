"""Features of a manifest's videos that are made once, and taken from a folder ever after."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from crosspair.corpora import Manifest
from crosspair.distributed import World
from crosspair.errors import RunError
from crosspair.evaluation.featurefiles import (
    is_whole,
    load_features,
    protocol_from,
    read_protocol,
    write_features,
)
from crosspair.evaluation.features import (
    CLIPS,
    Encoded,
    Features,
    encode_videos,
    name_failures,
    none_readable,
    shares,
    usable_rows,
)
from crosspair.evaluation.parts import Parts, lines
from crosspair.evaluation.protocol import Protocol, protocol_of
from crosspair.models import CPD

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
    encode: Callable[..., Iterator[list[Encoded]]] = encode_videos,
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
    protocol = protocol_of(model, manifest, clips=clips, precision=precision, device=world.device)
    parts = Parts(folder / "parts", world)
    _check(folder, parts, protocol)
    world.barrier()
    if not is_whole(folder):
        usable, errors = usable_rows(manifest)
        done = parts.begin(protocol.json())
        groups = [g for g in shares(usable, clips, batch_size, World()) if not done.issuperset(g)]
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
                journal.add(*lines(encoded))
                added += len(encoded)
                if progress:
                    all_done = min(ready + world.size * added, len(usable))
                    progress(all_done * clips, len(usable) * clips)
        parts.wait_for_all()
        if world.is_main:
            _join(parts, folder, manifest, protocol, usable, errors)
        world.barrier()
    return _without_errors(load_features(folder), manifest, world)


def _check(folder: Path, parts: Parts, protocol: Protocol) -> None:
    if is_whole(folder):
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
    parts: Parts,
    folder: Path,
    manifest: Manifest,
    protocol: Protocol,
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
        raise none_readable(manifest, failures)
    if len(rows) < len(usable):
        tensors = {name: whole[found] for name, whole in tensors.items()}
    write_features(folder, manifest, protocol, tensors, rows, failures)
    parts.remove()


def _without_errors(features: Features, manifest: Manifest, world: World) -> Features:
    """Without the rows that were given an error since the features were made."""
    _, errors = usable_rows(manifest)
    row_of = {pair_id: row for row, pair_id in enumerate(manifest.column("pair_id"))}
    failures = {row_of[pair_id]: message for pair_id, message in features.failures} | errors
    named = name_failures(manifest, failures, world)
    keep = torch.tensor([row not in errors for row in features.rows.tolist()])
    return dataclasses.replace(
        features, rows=features.rows[keep], visual=features.visual[keep],
        embedding=features.embedding[keep], failures=named,
    )  # fmt: skip
