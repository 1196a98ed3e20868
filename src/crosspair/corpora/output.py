"""What a reader writes: the manifest, and beside it the list of what is left out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from crosspair.atomic import write_atomically
from crosspair.corpora.manifest import Manifest, manifest_of
from crosspair.corpora.probing import probe_all
from crosspair.corpora.table import csv_text, some
from crosspair.errors import ManifestError

logger = logging.getLogger(__name__)

NO_FILE, NO_TITLE, BROKEN = "no file", "no title", "broken file"


class LeftOut(NamedTuple):
    """A pair that a corpus' lists promise and a training cannot use; ``detail`` is for people."""

    video_id: str
    reason: str
    detail: str


class Output:
    """Where a manifest goes. Looked at before the work, so that its end does not fail.

    Args:
        out: a file with the suffix ``.parquet``, or a folder.
        name: of the file in the folder.

    Raises:
        ManifestError: it cannot be written, or would replace something that is no manifest.
    """

    def __init__(self, out: Path, name: str = "manifest.parquet") -> None:
        self.path = out if out.suffix == ".parquet" else out / name
        self.left_out = left_out_file(self.path)
        _check_folder(self.path)
        if self.path.exists() and not _is_manifest(self.path):
            raise ManifestError(
                f"output {self.path} exists and is no manifest; it is not replaced, name another"
            )
        if self.left_out.exists() and not _is_list(self.left_out):
            raise ManifestError(
                f"{self.left_out}, the list of what is left out, exists and is no such list; "
                "it is not replaced, move it away or name another output"
            )

    def write(self, rows: list[dict[str, Any]], left_out: list[LeftOut]) -> Manifest:
        """Write the manifest, and the list where there is something to list.

        Args:
            rows: probed; their paths are those from where the command runs.
            left_out: so far; the rows with an error are added here.
        """
        relative = _relative_to(self.path.parent)
        manifest = manifest_of([{**row, "path": relative(row["path"])} for row in rows], self.path)
        for row in rows:
            if row.get("error"):
                left_out.append(LeftOut(row["pair_id"], BROKEN, row["error"]))
        if left_out:
            _tell(self.path.name, left_out)
            write_atomically(self.left_out, csv_text(LeftOut._fields, left_out))
        else:
            self.left_out.unlink(missing_ok=True)
        return manifest.write(self.path)


def left_out_file(manifest: Path) -> Path:
    """Where the list of what is left out of a manifest lies, if there is something to list.

    >>> left_out_file(Path("pairs.parquet")).name
    'pairs.left-out.csv'
    """
    return manifest.with_name(f"{manifest.stem}.left-out.csv")


def probe_rows(rows: Sequence[dict[str, Any]], progress: Callable[[int, int], None]) -> None:
    """Fill the columns of rows that probing finds; ``progress`` is told rows done, and all."""
    paths = [row["path"] for row in rows]
    found = probe_all(paths, progress=lambda done: progress(done, len(rows)))
    for row, columns in zip(rows, found, strict=True):
        row.update(columns)


def _tell(of: str, left_out: Sequence[LeftOut]) -> None:
    """Log one line a reason, with the first few names."""
    for reason in dict.fromkeys(pair.reason for pair in left_out):
        ids = [pair.video_id for pair in left_out if pair.reason == reason]
        count = "1 pair" if len(ids) == 1 else f"{len(ids)} pairs"
        logger.warning("%s: %s: %s (%s)", of, reason, count, some(ids))


def _relative_to(folder: Path) -> Callable[[str], str]:
    start = folder.resolve()

    # Resolved first: a step up from a linked folder leads elsewhere. Once a folder, not a file:
    # resolving asks the disk.
    @cache
    def of_folder(parent: str) -> str:
        return os.path.relpath(Path(parent).resolve(), start)

    def relative(path: str) -> str:
        parent, name = os.path.split(path)
        return os.path.normpath(os.path.join(of_folder(parent), name))  # noqa: PTH118

    return relative


def _check_folder(path: Path) -> None:
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise ManifestError(
            f"output {folder} is a file, not a folder; "
            "a manifest is a folder, or a file with the suffix .parquet"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ManifestError(f"output {path} cannot be written: no right to write in {folder}")


def _is_manifest(path: Path) -> bool:
    try:
        return {"pair_id", "path"} <= set(pq.read_schema(path).names)
    except (pa.ArrowException, OSError):
        return False


def _is_list(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.readline().strip() == ",".join(LeftOut._fields).encode()
    except OSError:
        return False
