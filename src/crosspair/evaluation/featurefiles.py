"""The folder that features are kept in.

It holds ``features.safetensors``, with ``visual`` (V, F) and ``embedding`` (V, D) as float32, and
``index.parquet``, with a line for each row of the manifest: ``row``, ``pair_id``, ``clips`` (how
many the means are over, or 0) and ``error``. The V lines with clips are the tensors' rows, in their
order. Both files say in their metadata, under ``crosspair``, what the features depend on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from crosspair.atomic import written
from crosspair.corpora import Manifest
from crosspair.errors import RunError
from crosspair.evaluation.features import Features
from crosspair.evaluation.protocol import Protocol

FEATURES_FILE, INDEX_FILE = "features.safetensors", "index.parquet"
ANEW = "remove the folder or name another, and make them anew"


def write_features(
    folder: Path,
    manifest: Manifest,
    protocol: Protocol,
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
    with written(folder / FEATURES_FILE) as partial:
        try:
            save_file(tensors, partial, {_KEY: protocol.json()})
        except SafetensorError as error:  # so it tells of a full disk
            raise OSError(str(error)) from error
    with written(folder / INDEX_FILE) as partial:
        pq.write_table(table, partial)


def is_whole(folder: Path) -> bool:
    """Whether all features of the folder are there."""
    return (folder / INDEX_FILE).is_file()


def are_of(folder: Path, manifest: Manifest) -> bool:
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
    if not is_whole(folder):
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


def read_protocol(folder: Path) -> Protocol:
    """What the features of a whole folder depend on.

    Raises:
        RunError: there are none, or they do not tell.
    """
    metadata = _read(pq.read_table, folder / INDEX_FILE).schema.metadata or {}
    return protocol_from(metadata.get(_KEY.encode(), b""), folder)


def protocol_from(text: str | bytes, where: Path) -> Protocol:
    """Read what `Protocol.json` gave.

    Raises:
        RunError: it is something else.
    """
    try:
        return Protocol(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise RunError(f"{where} does not tell what its features depend on; {ANEW}") from error


_KEY = "crosspair"


def _read(reader: Callable[[Path], Any], path: Path) -> Any:
    try:
        return reader(path)
    except (OSError, pa.ArrowException, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{path} cannot be read ({reason}); {ANEW}") from error
