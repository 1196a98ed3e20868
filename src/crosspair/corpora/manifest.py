"""The manifest: one Parquet file a corpus, one row a clip. Every loader takes one, only that."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crosspair.config import Clip
from crosspair.corpora.video_files import file_size
from crosspair.errors import ManifestError
from crosspair.files import atomic_write

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
        # What probing the file found.
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("fps", pa.float64()),
        ("frames", pa.int32()),
        ("duration", pa.float64()),
        ("codec", pa.string()),
        ("error", pa.string()),
    ]
)

TITLES = ("title", "title_clean", "title_tree")
"""The columns of `SCHEMA` that tell what a video shows."""


class Manifest:
    """A checked manifest in memory.

    Args:
        table: rows in the form of `SCHEMA`; columns that are absent are filled with nulls.
        path: the file it was read from; relative video paths start at its folder.

    Raises:
        ManifestError: a column is missing, unknown or of another type, a ``pair_id`` is empty or
            stands twice, or a split is none of train, val and test.
    """

    def __init__(self, table: pa.Table, path: Path) -> None:
        self.path = path
        self.table = _checked(table, path)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read and check a manifest file."""
        path = Path(path)
        if path.is_dir() and (path / "manifest.parquet").is_file():
            path = path / "manifest.parquet"
        if not path.is_file():
            raise ManifestError(
                f"manifest {path} does not exist; make one with "
                f'"crosspair corpus folder VIDEOS --titles titles.tsv --out {path}"'
            )
        try:
            with pq.ParquetFile(path) as file:  # which reads columns of one name, too
                table = file.read()
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ManifestError(f"manifest {path} is not a Parquet file ({reason})") from error
        return cls(table, path)

    def write(self, path: str | os.PathLike[str]) -> Manifest:
        """Write to ``path`` in one step: a reader sees the old file or the new one, never half."""
        path = Path(path)
        with atomic_write(path, ManifestError) as partial:
            pq.write_table(self.table, partial)
        return Manifest(self.table, path)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> list[Any]:
        """One column as a Python list, nulls as ``None``."""
        values: list[Any] = self.table.column(name).to_pylist()
        return values

    def with_columns(self, columns: Mapping[str, Sequence[Any]]) -> Manifest:
        """With other values in some columns."""
        table = self.table
        for name, values in columns.items():
            field = SCHEMA.field(name)
            place = SCHEMA.get_field_index(name)
            table = table.set_column(place, field, pa.array(values, field.type))
        return Manifest(table, self.path)

    def rebased(self, path: Path) -> Manifest:
        """For a file at ``path``: relative paths start at its folder, and lead where they led."""
        old, new = self.path.parent.resolve(), path.parent.resolve()
        if old == new:
            return Manifest(self.table, path)
        paths = [
            each if _is_whole(each) else Path(os.path.relpath(old / each, new)).as_posix()
            for each in self.column("path")
        ]
        return Manifest(self.with_columns({"path": paths}).table, path)

    def take(self, rows: Sequence[int]) -> Manifest:
        """The given rows, in that order."""
        return Manifest(self.table.take(pa.array(rows, pa.int64())), self.path)

    def split(self, name: str) -> Manifest:
        """The rows of one split. A row without a split belongs to ``train``."""
        if name not in SPLITS:
            raise ManifestError(f"split {name!r} is unknown; the splits are {', '.join(SPLITS)}")
        of_rows = self.column("split")
        return self.take([i for i, of in enumerate(of_rows) if (of or "train") == name])

    def clips(self) -> list[Clip]:
        """Where the pixels of every row are, with paths made whole."""
        columns = (self.column(name) for name in ("path", "start", "end"))
        return [
            Clip(path if _is_whole(path) else str(self.path.parent / path), start, end)
            for path, start, end in zip(*columns, strict=True)
        ]

    @property
    def hash(self) -> str:
        """12 hex digits of what the rows say, however and wherever they are stored.

        Of what probing found only whether a video is broken counts: such a row is left out.
        """
        digest = hashlib.sha256()
        rows = self.table.select(SCHEMA.names[:9]).to_pylist()
        for row, error in zip(rows, self.column("error"), strict=True):
            digest.update(repr((*row.values(), *["broken"] * bool(error))).encode())
        return digest.hexdigest()[:12]


def manifest_from_rows(rows: Iterable[Mapping[str, Any]], path: str | os.PathLike[str]) -> Manifest:
    """Make a manifest of row dictionaries; keys that a row lacks become null.

    >>> manifest = manifest_of([{"pair_id": "a", "path": "a.mp4", "title": "A dog"}], "m.parquet")
    >>> len(manifest), manifest.column("label")
    (1, [None])
    """
    rows = list(rows)
    _check_known(sorted({key for row in rows for key in row}), path)
    columns = {name: [row.get(name) for row in rows] for name in SCHEMA.names}
    try:
        table = pa.table(columns, schema=SCHEMA)
    except UnicodeEncodeError as error:
        raise ManifestError(
            f"manifest {path}: {error.object!r} is not UTF-8, which a manifest needs; "
            "rename the file, or mend the text"
        ) from error
    return Manifest(table, Path(path))


def _is_whole(path: str) -> bool:
    return "://" in path or Path(path).is_absolute()


def _checked(table: pa.Table, path: Path) -> pa.Table:
    present = table.column_names
    missing = [name for name in ("pair_id", "path", "title") if name not in present]
    if missing:
        raise ManifestError(
            f"manifest {path} has no column {_quoted(missing)}; it has {_quoted(present)}"
        )
    _check_known(present, path)
    twice = sorted({name for name in present if present.count(name) > 1})
    if twice:
        raise ManifestError(f"manifest {path} has more than one column {_quoted(twice)}")
    columns = []
    for field in SCHEMA:
        if field.name not in present:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        try:
            columns.append(table.column(field.name).cast(field.type))
        except pa.ArrowException as error:
            found = table.schema.field(field.name).type
            raise ManifestError(
                f"manifest {path}: column {field.name!r} is {found}, not {field.type}"
            ) from error
    checked = pa.table(columns, schema=SCHEMA.remove_metadata())
    _check_values(checked, path)
    return checked


def _check_values(table: pa.Table, path: Path) -> None:
    names = ("pair_id", "path", "split", "start", "end")
    columns = (table.column(name).to_pylist() for name in names)
    known = set()
    for row, (pair_id, video, split, start, end) in enumerate(zip(*columns, strict=True)):
        if not pair_id or not video:
            empty = "path" if pair_id else "pair_id"
            raise ManifestError(f"manifest {path}, row {row}: {empty!r} is empty")
        if pair_id in known:
            raise ManifestError(
                f"manifest {path}, row {row}: pair_id {pair_id!r} stands twice; "
                "every row needs its own"
            )
        known.add(pair_id)
        if split is not None and split not in SPLITS:
            raise ManifestError(
                f"manifest {path}, row {row}: split {split!r} is none of {', '.join(SPLITS)}"
            )
        # Written so that a start or an end that is not a number does not pass.
        if not 0 <= (start or 0) < (math.inf if end is None else end):
            raise ManifestError(
                f"manifest {path}, row {row}: start {start} s, end {end} s; "
                "a part begins at 0 or later and ends after it begins"
            )


def _check_known(columns: Sequence[str], path: str | os.PathLike[str]) -> None:
    unknown = [name for name in columns if name not in SCHEMA.names]
    if unknown:
        raise ManifestError(
            f"manifest {path}: column {_quoted(unknown)} is unknown; "
            f"the columns are {', '.join(SCHEMA.names)}"
        )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


@lru_cache(maxsize=16)  # a plan's cells share these; many files take long to ask on a network
def fingerprint(manifest: Manifest) -> str:
    """Hash of the columns pair_id, path, start and end, and of each local file's size.

    Names alone do not tell: corpora prepared at two sizes have the same ones. Titles, labels and
    splits play no part, nor does the folder that the manifest lies in.
    """
    digest = hashlib.sha256()
    rows = manifest.table.select(["pair_id", "path", "start", "end"]).to_pylist()
    for row, clip in zip(rows, manifest.clips(), strict=True):
        digest.update(repr((*row.values(), file_size(clip.path))).encode())
    return digest.hexdigest()[:12]


Rows: TypeAlias = NDArray[np.int64]


def add_title_noise(manifest: Manifest, share: float, seed: int) -> Manifest:
    """Give a share of the train split the titles of other videos, all title columns together.

    A wrong title is that of a pair with another label (of any other pair, where one has none) and
    reads differently. What is wrong at a share is wrong, with the same title, at every larger one.
    Only training is spoilt: validation and test stay as they are, so that what they measure is the
    same at every share.

    Args:
        manifest: the pairs.
        share: of the train split's pairs with a title, 0 to 1; rounded to whole pairs.
        seed: which pairs, and whose titles they get.

    Returns:
        A manifest of the same path, not written.

    Raises:
        ManifestError: the share is not in [0, 1], or a pair has no other to take a title from.
    """
    if not 0 <= share <= 1:
        raise ManifestError(f"the share of wrong titles is {share}; pass 0 to 1")
    rows = _titled(manifest)
    wrong = round(share * len(rows))
    if not wrong:
        return manifest
    order = np.random.default_rng((seed, 0)).permutation(len(rows))[:wrong]
    donors = _donors(manifest, rows, seed)[order]
    taken = np.arange(len(manifest))
    taken[rows[order]] = rows[donors]
    titles = manifest.table.select(TITLES).take(taken)
    return manifest.with_columns({name: titles.column(name).to_pylist() for name in TITLES})


def _titled(manifest: Manifest) -> Rows:
    splits, titles = manifest.column("split"), manifest.column("title")
    return np.array([
        row
        for row, (split, title) in enumerate(zip(splits, titles, strict=True))
        if (split or "train") == "train" and title
    ], dtype=np.int64)  # fmt: skip


def _donors(manifest: Manifest, rows: Rows, seed: int) -> Rows:
    """For each of ``rows`` the position in them of one whose title would be wrong there."""
    given = manifest.column("label")
    # A pair without a label has a label of its own.
    labels = _numbered([given[row] or row for row in rows.tolist()])
    titles = manifest.column("title")
    texts = _numbered([titles[row] for row in rows.tolist()])
    _check_others(manifest, rows, labels, texts)
    rng = np.random.default_rng((seed, 1))
    donors = rng.integers(len(rows), size=len(rows))
    while True:
        fits = (labels[donors] != labels) & (texts[donors] != texts)
        if fits.all():
            return donors
        donors[~fits] = rng.integers(len(rows), size=int((~fits).sum()))


def _numbered(values: list[object]) -> Rows:
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values])


def _check_others(manifest: Manifest, rows: Rows, labels: Rows, texts: Rows) -> None:
    """There is somebody to take a title from for every pair, or drawing would never end."""
    both = list(zip(labels.tolist(), texts.tolist(), strict=True))
    of_label, of_text, of_both = (Counter(each) for each in (labels.tolist(), texts.tolist(), both))
    for position, (label, text) in enumerate(both):
        if of_label[label] + of_text[text] - of_both[label, text] == len(rows):
            pair_id = manifest.column("pair_id")[rows[position]]
            raise ManifestError(
                f"{manifest.path}: no pair of split train has another label and another title than "
                f"{pair_id!r}, so that no title would be wrong there"
            )
