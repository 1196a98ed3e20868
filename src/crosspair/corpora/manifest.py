"""The manifest: one Parquet file per corpus, one row per clip; the input of every loader."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crosspair.config import Clip
from crosspair.corpora.video_files import file_size
from crosspair.errors import ManifestError
from crosspair.files import atomic_write, check_output

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")

SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        ("start", pa.float64()),  # s from the beginning of the file
        ("end", pa.float64()),
        ("title", pa.string()),
        ("title_clean", pa.string()),
        ("title_tree", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        # Filled by probing the file:
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("fps", pa.float64()),
        ("frames", pa.int32()),
        ("duration", pa.float64()),
        ("codec", pa.string()),
        ("error", pa.string()),
        # Only in manifests with several captions per clip:
        ("titles", pa.list_(pa.string())),  # all captions; the first one is ``title``
    ]
)

TITLES = ("title", "title_clean", "title_tree")
"""The columns of `SCHEMA` that hold text paired with the video."""


class Manifest:
    """A validated manifest in memory.

    Args:
        table: rows in the form of `SCHEMA`; only ``pair_id``, ``path`` and ``title`` are required.
        path: the file of the manifest; relative video paths start at its folder.

    Raises:
        ManifestError: a column is missing, unknown or of another type, a ``pair_id`` is empty or
            duplicated, a split is unknown, ``start`` and ``end`` are no interval, or ``titles`` is an
            empty list, contains an empty caption, or does not begin with ``title``.
    """

    def __init__(self, table: pa.Table, path: Path) -> None:
        self.path = path
        self.table = _validate_columns(table, path)
        _validate_rows(self.table, path)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read and validate a manifest file, or ``manifest.parquet`` in a folder."""
        path = Path(path)
        if path.is_dir() and (path / "manifest.parquet").is_file():
            path = path / "manifest.parquet"
        if not path.is_file():
            raise ManifestError(
                f"manifest {path} does not exist. Create one with "
                f'"crosspair corpus folder VIDEOS --titles titles.tsv --out {path}".'
            )
        try:
            with pq.ParquetFile(path) as file:  # unlike read_table, accepts duplicate column names
                table = file.read()
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ManifestError(f"manifest {path} is not a Parquet file ({reason})") from error
        return cls(table, path)

    def write(self, path: str | os.PathLike[str]) -> Manifest:
        """Write the table to ``path`` atomically and return the manifest of that file.

        Relative video paths are not changed; see `rebased`. An empty column ``titles`` is not written.
        """
        path = Path(path)
        check_output(path, "a manifest", error_type=ManifestError)
        has_captions = self.table["titles"].null_count < len(self)
        with atomic_write(path, ManifestError) as partial:
            pq.write_table(self.table if has_captions else self.table.drop_columns("titles"), partial)
        return Manifest(self.table, path)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> list[Any]:
        """Return one column as a list; nulls are ``None``."""
        values: list[Any] = self.table.column(name).to_pylist()
        return values

    def with_columns(self, columns: Mapping[str, Sequence[Any]]) -> Manifest:
        """Return a copy with the values of some columns replaced."""
        table = self.table
        for name, values in columns.items():
            field = SCHEMA.field(name)
            position = SCHEMA.get_field_index(name)
            table = table.set_column(position, field, pa.array(values, field.type))
        return Manifest(table, self.path)

    def rebased(self, path: Path) -> Manifest:
        """Return a copy for a file at ``path``, with relative video paths adapted to its folder."""
        old, new = self.path.parent.resolve(), path.parent.resolve()
        if old == new:
            return Manifest(self.table, path)
        paths = [
            video if _is_absolute(video) else Path(os.path.relpath(old / video, new)).as_posix()
            for video in self.column("path")
        ]
        return Manifest(self.with_columns({"path": paths}).table, path)

    def take(self, rows: Sequence[int]) -> Manifest:
        """Return the given rows, in that order."""
        return Manifest(self.table.take(pa.array(rows, pa.int64())), self.path)

    def split(self, name: str) -> Manifest:
        """Return the rows of one split; rows without a split belong to ``train``."""
        if name not in SPLITS:
            raise ManifestError(f"split {name!r} is unknown; it must be one of {', '.join(SPLITS)}")
        return Manifest(self.table.filter(_in_split(self.table, name)), self.path)

    def drop_unusable(self, column: str) -> Manifest:
        """Return the rows with a value in a column and without an error; log the others."""
        error, value = (pc.fill_null(self.table.column(name), "") for name in ("error", column))
        usable = pc.and_(pc.equal(error, ""), pc.not_equal(value, ""))
        for row in self.table.filter(pc.invert(usable)).select(["pair_id", "error"]).to_pylist():
            logger.warning("skipped %s: %s", row["pair_id"], row["error"] or f"no {column}")
        return Manifest(self.table.filter(usable), self.path)

    def clips(self) -> list[Clip]:
        """Return the file and interval of every row, with paths joined to the manifest's folder."""
        columns = (self.column(name) for name in ("path", "start", "end"))
        return [
            Clip(path if _is_absolute(path) else str(self.path.parent / path), start, end)
            for path, start, end in zip(*columns, strict=True)
        ]

    @cached_property  # with 250,000 rows it takes seconds
    def hash(self) -> str:
        """Hash of the rows' values, 12 hex digits, independent of the manifest's own path and encoding.

        Of the probed columns, only whether ``error`` is set counts; ``titles`` counts where it is set.
        """
        rows = zip(
            self.table.select(SCHEMA.names[:9]).to_pylist(), self.column("error"), self.column("titles"), strict=True
        )
        return _digest(
            (*row.values(), *["broken"] * bool(error), *[titles] * bool(titles)) for row, error, titles in rows
        )


def manifest_from_rows(rows: Iterable[Mapping[str, Any]], path: str | os.PathLike[str]) -> Manifest:
    """Create a manifest from row dictionaries; missing keys become null.

    >>> manifest = manifest_from_rows(
    ...     [{"pair_id": "a", "path": "a.mp4", "title": "A dog"}], "m.parquet"
    ... )
    >>> len(manifest), manifest.column("label")
    (1, [None])
    """
    rows = list(rows)
    _check_known(sorted({key for row in rows for key in row}), path)
    columns = {name: [row.get(name) for row in rows] for name in SCHEMA.names}
    try:
        table = pa.table(columns, schema=SCHEMA)
    except UnicodeEncodeError as error:
        source = f"manifest {path}: ".removeprefix("manifest .: ")  # no file
        raise ManifestError(f"{source}{error.object!r} is not valid UTF-8. Rename the file or fix the text.") from error
    return Manifest(table, Path(path))


@lru_cache(maxsize=16)  # an ablation asks repeatedly, and file sizes are slow to get on a network
def fingerprint(manifest: Manifest) -> str:
    """Hash the columns pair_id, path, start and end, and the size of each local file.

    Sizes are included because corpora prepared with different settings have the same names. Titles,
    labels, splits and the manifest's folder are ignored, as are sizes of missing and remote files.
    """
    rows = manifest.table.select(["pair_id", "path", "start", "end"]).to_pylist()
    return _digest((*row.values(), file_size(clip.path)) for row, clip in zip(rows, manifest.clips(), strict=True))


def _digest(rows: Iterable[tuple[object, ...]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode())
    return digest.hexdigest()[:12]


Indices: TypeAlias = NDArray[np.int64]


def add_title_noise(manifest: Manifest, fraction: float, seed: int) -> Manifest:
    """Give a fraction of the training pairs the titles of other pairs, in all title columns and ``titles``.

    A wrong title comes from a pair with another label (any other pair if there is no label) and has
    a different text. The wrong titles at one fraction are a subset of those at any larger fraction.
    Validation and test rows are unchanged, so evaluation is comparable between fractions.

    Args:
        manifest: the pairs.
        fraction: of the train pairs that have a title, in [0, 1]; rounded to whole pairs.
        seed: selects the pairs and the titles they get.

    Returns:
        A manifest with the same path; nothing is written.

    Raises:
        ManifestError: ``fraction`` is not in [0, 1], or no other pair has a title that would be
            wrong for some pair.
    """
    if not 0 <= fraction <= 1:
        raise ManifestError(f"the fraction of wrong titles is {fraction}; it must be in [0, 1]")
    titled = pc.fill_null(pc.not_equal(manifest.table.column("title"), ""), False)
    rows = np.flatnonzero(pc.and_(_in_split(manifest.table, "train"), titled))
    wrong = round(fraction * len(rows))
    if not wrong:
        return manifest
    order = np.random.default_rng((seed, 0)).permutation(len(rows))[:wrong]
    donors = _draw_donors(manifest, rows, seed)[order]
    source_row = np.arange(len(manifest))
    source_row[rows[order]] = rows[donors]
    titles = manifest.table.select([*TITLES, "titles"]).take(source_row)
    return manifest.with_columns({name: titles.column(name).to_pylist() for name in titles.column_names})


def _draw_donors(manifest: Manifest, rows: Indices, seed: int) -> Indices:
    """Draw, for each of ``rows``, the position in ``rows`` of a pair with a wrong title for it."""
    label_column, title_column = manifest.column("label"), manifest.column("title")
    # A pair without a label gets its row number as a label of its own.
    labels = _to_codes([label_column[row] or row for row in rows.tolist()])
    texts = _to_codes([title_column[row] for row in rows.tolist()])
    both = _to_codes(list(zip(labels.tolist(), texts.tolist(), strict=True)))
    same = np.bincount(labels)[labels] + np.bincount(texts)[texts] - np.bincount(both)[both]
    if (same == len(rows)).any():
        pair_id = manifest.column("pair_id")[rows[np.argmax(same == len(rows))]]
        raise ManifestError(
            f"{manifest.path}: no pair of split train has another label and another title than "
            f"{pair_id!r}, so it has no possible wrong title"
        )
    rng = np.random.default_rng((seed, 1))
    donors = rng.integers(len(rows), size=len(rows))
    while True:
        valid = (labels[donors] != labels) & (texts[donors] != texts)
        if valid.all():
            return donors
        donors[~valid] = rng.integers(len(rows), size=int((~valid).sum()))


def _to_codes(values: Sequence[object]) -> Indices:
    """Return an integer for each value, the same for equal values, from 0 in order of first occurrence."""
    codes: dict[object, int] = {}
    return np.array([codes.setdefault(value, len(codes)) for value in values])


def _in_split(table: pa.Table, name: str) -> pa.ChunkedArray:
    return pc.equal(pc.fill_null(table.column("split"), "train"), name)


def _is_absolute(path: str) -> bool:
    """Return whether a path is absolute or a URL."""
    return "://" in path or Path(path).is_absolute()


def _validate_columns(table: pa.Table, path: Path) -> pa.Table:
    """Return the table with the columns and types of `SCHEMA`, absent ones null; ManifestError if invalid."""
    present = table.column_names
    missing = [name for name in ("pair_id", "path", "title") if name not in present]
    if missing:
        raise ManifestError(f"manifest {path} has no column {_quote(missing)}; it has {_quote(present)}")
    _check_known(present, path)
    duplicates = sorted({name for name in present if present.count(name) > 1})
    if duplicates:
        raise ManifestError(f"manifest {path} has more than one column {_quote(duplicates)}")
    columns = []
    for field in SCHEMA:
        column = table.column(field.name) if field.name in present else pa.nulls(table.num_rows)
        try:
            columns.append(column.cast(field.type))
        except pa.ArrowException as error:
            raise ManifestError(
                f"manifest {path}: column {field.name!r} has type {column.type}; it must be {field.type}"
            ) from error
    return pa.table(columns, schema=SCHEMA.remove_metadata())


def _validate_rows(table: pa.Table, path: Path) -> None:
    """Raise ManifestError for an empty or duplicate id, empty path, unknown split, invalid interval or captions."""
    codes = pc.index_in(table["pair_id"], table["pair_id"].unique()).to_numpy()
    is_again = np.ones(len(table), bool)
    is_again[np.unique(codes, return_index=True)[1]] = False
    start, end = pc.fill_null(table["start"], 0.0), pc.fill_null(table["end"], math.inf)
    # Inverted, so that NaN is rejected too.
    is_no_interval = pc.invert(pc.and_(pc.greater_equal(start, 0.0), pc.less(start, end)))
    captioned = np.flatnonzero(pc.is_valid(table["titles"]))
    has_wrong_titles = np.zeros(len(table), bool)
    has_wrong_titles[captioned] = [
        not all(row["titles"]) or row["titles"][:1] != [row["title"]]
        for row in table.select(["title", "titles"]).take(captioned).to_pylist()
    ]
    checks = {
        "'pair_id' is empty": pc.equal(pc.fill_null(table["pair_id"], ""), ""),
        "'path' is empty": pc.equal(pc.fill_null(table["path"], ""), ""),
        "pair_id {pair_id!r} is duplicated; every row needs a unique pair_id": pa.array(is_again),
        f"split {{split!r}} is unknown; it must be one of {', '.join(SPLITS)}": pc.invert(
            pc.is_in(table["split"], pa.array([*SPLITS, None]))
        ),
        "start {start} s, end {end} s; start must be 0 or more and less than end": is_no_interval,
        "'titles' must be null or a list of captions that are not empty, beginning with 'title' ({title!r})": pa.array(
            has_wrong_titles
        ),
    }
    for message, is_wrong in checks.items():
        row = pc.index(is_wrong, True).as_py()
        if row >= 0:
            (values,) = table.slice(row, 1).to_pylist()
            raise ManifestError(f"manifest {path}, row {row}: {message.format(**values)}")


def _check_known(columns: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Raise ManifestError if a column is not in `SCHEMA`."""
    unknown = [name for name in columns if name not in SCHEMA.names]
    if unknown:
        raise ManifestError(
            f"manifest {path}: column {_quote(unknown)} is unknown; the columns are {', '.join(SCHEMA.names)}"
        )


def _quote(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
