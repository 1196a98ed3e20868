"""Embeddings as a Parquet file, written as they come: they need not fit into memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crosspair.atomic import written
from crosspair.errors import VideoError
from crosspair.library.encoding import Encoded

GROUP = 4096  # rows that are held before they are written


def write_embeddings(
    path: Path, encoded: Iterable[tuple[str, Encoded]], about: Mapping[str, Any]
) -> tuple[int, dict[str, str]]:
    """Write a row a video or a window, in one step.

    The columns: ``video``, ``start`` and ``end`` (s; null where they are the file's own),
    ``visual``, ``embedding`` (float32), ``error``. What could not be read is a row, too, with
    neither feature.

    Args:
        path: of the file.
        encoded: ids of videos, and what came of them.
        about: goes to the file's metadata as JSON, under ``crosspair``.

    Returns:
        How many rows have features, and the errors by video.

    Raises:
        VideoError: no video could be read; nothing is written then.
        RunError: the file cannot be written.
    """
    count, failures = 0, dict[str, str]()
    with written(path) as partial:
        writer: pq.ParquetWriter | None = None
        try:
            held: list[dict[str, Any]] = []
            for name, each in encoded:
                held += _rows(name, each)
                count += len(each.spans)
                if each.failure:
                    failures[name] = each.failure
                schema = _schema(each, about)
                writer = writer or pq.ParquetWriter(partial, schema)
                if len(held) >= GROUP:
                    writer.write_table(pa.Table.from_pylist(held, schema=schema))
                    held = []
            if not count:
                reason = next(iter(failures.values()), "none are named")
                raise VideoError(f"none of the {len(failures)} videos can be read: {reason}")
            assert writer is not None
            writer.write_table(pa.Table.from_pylist(held, schema=schema))
        finally:
            if writer is not None:
                writer.close()
    return count, failures


def _rows(name: str, each: Encoded) -> Iterable[dict[str, Any]]:
    both = zip(each.spans, each.visual.numpy(), each.embedding.numpy(), strict=True)
    for (start, end), visual, embedding in both:
        yield {
            "video": name,
            "start": start,
            "end": end,
            "visual": visual,
            "embedding": embedding,
        }
    if each.failure:
        yield {"video": name, "error": each.failure}


def _schema(each: Encoded, about: Mapping[str, Any]) -> pa.Schema:
    features, dimensions = each.visual.shape[1], each.embedding.shape[1]
    return pa.schema(
        [
            ("video", pa.string()),
            ("start", pa.float64()),
            ("end", pa.float64()),
            ("visual", pa.list_(pa.float32(), features)),
            ("embedding", pa.list_(pa.float32(), dimensions)),
            ("error", pa.string()),
        ],
        {"crosspair": json.dumps(about)},
    )
