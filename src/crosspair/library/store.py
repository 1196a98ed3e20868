"""A library on disk.

The folder contains ``library.json`` (settings), ``model/`` (a copy of the model, so that the
library does not depend on the original), ``windows.lance`` (a LanceDB table with one row per
window) and ``broken.csv`` (videos that cannot be read). Each change of the table is atomic.
"""

from __future__ import annotations

import csv
import datetime
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, get_args

import pyarrow as pa

from crosspair.corpora.tables import csv_text
from crosspair.corpora.video_files import FileState
from crosspair.errors import TRY_LATER, CrosspairError, format_error
from crosspair.evaluation.windows import Sampling, Windows
from crosspair.files import check_output_folder, file_lock, read_json, write_atomically
from crosspair.models.cpd import CPD

INFO_FILE, BROKEN_FILE, LOCK_FILE = "library.json", "broken.csv", ".lock"
MODEL_FOLDER, TABLE = "model", "windows"
FORMAT = 1
EXACT_UP_TO = 100_000  # windows; an exhaustive search of as many takes milliseconds
VERSION_LIFETIME = datetime.timedelta(minutes=10)  # old versions are kept for concurrent readers
DELETE_BATCH = 10_000  # names per SQL expression

UNWRITTEN: FileState = (-2, -2)  # of a video to encode again: differs from the state of any file


class LibraryError(CrosspairError):
    """A library cannot be opened, written or searched."""


@dataclass(frozen=True)
class LibraryInfo:
    """Settings of a library, saved in ``library.json``."""

    model: str  # hash of the weights, see `crosspair.models.CPD.hash`
    embedding: int  # dimensions
    window: float  # length of a window in s
    stride: float  # distance between the starts of two windows in s
    format: int = FORMAT
    sampling: Sampling = "clips"  # the only one of older libraries

    def __post_init__(self) -> None:
        numbers = (self.embedding, self.window, self.stride)
        if not (isinstance(self.model, str) and all(isinstance(number, int | float) for number in numbers)):
            raise TypeError("a value has another type")
        if self.sampling not in get_args(Sampling):
            raise ValueError(f"sampling is {self.sampling!r}")


@dataclass(frozen=True)
class IndexedVideo:
    """A video in a library: its windows, and why it, or a part of it, cannot be read.

    It is encoded again when the state of its file changes, or after a fault of the system or the network.
    """

    state: FileState
    title: str | None
    windows: int
    failure: str = ""


class Library:
    """An open library. Changes by other processes are visible.

    Raises:
        LibraryError: the folder is not a library, has an unsupported format, or LanceDB is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = folder = Path(folder)
        self.info = _read_info(folder)
        with lance_errors(f"library {folder} cannot be opened"):
            self.windows = Windows(self.info.window, self.info.stride)
            self.table = _connect(folder).open_table(TABLE)
            if not self.table.schema.equals(expected := schema(self.info.embedding)):
                raise ValueError(f"its table has not the columns {', '.join(expected.names)} or not their types")

    @classmethod
    def create(cls, folder: Path, model: CPD, windows: Windows, sampling: Sampling = "clips") -> Self:
        """Create an empty library, replacing an incomplete one that an interruption left; open a complete one as it is.

        The folder must satisfy `check_library_path`.
        """
        if not is_library(folder):
            shutil.rmtree(folder / f"{TABLE}.lance", ignore_errors=True)
            database = _connect(folder)
            model.save_pretrained(folder / MODEL_FOLDER)
            database.create_table(TABLE, schema=schema(model.head.embedding), mode="overwrite")
            sizes = (model.head.embedding, windows.length, windows.stride)
            info = LibraryInfo(model.hash, *sizes, sampling=sampling)
            write_atomically(folder / INFO_FILE, json.dumps(asdict(info), indent=2) + "\n")
        return cls(folder)

    @property
    def model_folder(self) -> Path:
        """Folder of the library's copy of the model."""
        return self.folder / MODEL_FOLDER

    def __len__(self) -> int:
        """Number of windows."""
        return self.count()

    def count(self, condition: str | None = None) -> int:
        """Return the number of windows that meet an SQL condition; LibraryError if the library cannot be read."""
        with lance_errors(f"library {self.folder} cannot be read"):
            return int(self.table.count_rows(condition))

    def indexed_columns(self) -> set[str]:
        """Return the columns with an index: "vector" in a large library, "title" if a video has a title."""
        with lance_errors(f"library {self.folder} cannot be read"):
            return {column for index in self.table.list_indices() for column in index.columns}

    def videos(self) -> dict[str, IndexedVideo]:
        """Return all videos by name, including unreadable ones, from the table and ``broken.csv``."""
        keys = ["video", "size", "modified"]
        with lance_errors(f"library {self.folder} cannot be read"):
            windows = self.table.search().select([*keys, "title", "start"]).to_arrow()
            if windows["video"].null_count:
                raise ValueError("a window has no video")
        table = windows.group_by(keys).aggregate([("title", "max"), ("start", "count")])
        videos = {
            row["video"]: IndexedVideo((row["size"], row["modified"]), row["title_max"], row["start_count"])
            for row in table.to_pylist()
        }
        for name, broken in self._read_broken().items():
            if name in videos:
                videos[name] = replace(videos[name], failure=broken.failure)
            else:  # if a part was readable, an interruption has prevented that its windows were written
                videos[name] = replace(broken, windows=0, state=UNWRITTEN if broken.windows else broken.state)
            if TRY_LATER in broken.failure:
                videos[name] = replace(videos[name], state=UNWRITTEN)
        return videos

    def add(self, rows: Sequence[Mapping[str, Any]], broken: Mapping[str, IndexedVideo]) -> None:
        """Append windows, rows with the columns of `schema`, atomically, after adding videos to ``broken.csv``."""
        if broken:
            self._write_broken({**self._read_broken(), **broken})
        if rows:
            with self._write_errors():
                self.table.add(pa.Table.from_pylist(list(rows), schema=schema(self.info.embedding)))

    def remove(self, videos: Sequence[str]) -> None:
        """Remove the videos with the given names: all their windows, and their lines in ``broken.csv``."""
        with self._write_errors():
            for i in range(0, len(videos), DELETE_BATCH):
                names = ", ".join(map(sql_quote, videos[i : i + DELETE_BATCH]))
                self.table.delete(f"video IN ({names})")
        removed = set(videos)
        self._write_broken({name: video for name, video in self._read_broken().items() if name not in removed})

    def set_titles(self, titles: Mapping[str, str | None]) -> None:
        """Set the titles of the videos with the given names, in all their windows, atomically."""
        table = pa.table({"video": list(titles), "title": pa.array(titles.values(), pa.string())})
        with self._write_errors():
            self.table.merge_insert("video").when_matched_update_all().execute(table)

    def optimize(self) -> None:
        """Compact files, delete versions older than 10 minutes, and index titles and more than 100,000 vectors."""
        from lancedb.index import FTS, IvfSq

        with self._write_errors():
            indexed = self.indexed_columns()
            if len(self) > EXACT_UP_TO and "vector" not in indexed:
                # HNSW takes 16 times as long to build for 100,000 windows, with the same recall.
                self.table.create_index("vector", config=IvfSq(distance_type="cosine"))
            if "title" not in indexed and self.count("title != ''"):
                # Positions can crash the compaction. ICU also divides languages without spaces into words.
                self.table.create_index("title", config=FTS(base_tokenizer="icu", with_position=False))
            # The lock excludes other writers: unreferenced files are from an interrupted process.
            self.table.optimize(cleanup_older_than=VERSION_LIFETIME, delete_unverified=True)

    def _read_broken(self) -> dict[str, IndexedVideo]:
        broken = {}
        with (
            suppress(OSError, ValueError, KeyError, csv.Error),  # keep the lines before one that a user made invalid
            (self.folder / BROKEN_FILE).open(encoding="utf-8", newline="") as lines,
        ):
            for line in csv.DictReader(lines):
                state = int(line["size"]), int(line["modified"])
                broken[line["video"]] = IndexedVideo(state, None, int(line["windows"]), line["reason"])
        return broken

    def _write_broken(self, broken: Mapping[str, IndexedVideo]) -> None:
        if not broken:
            (self.folder / BROKEN_FILE).unlink(missing_ok=True)
            return
        columns = ("video", "reason", "windows", "size", "modified")
        rows = [(name, video.failure, video.windows, *video.state) for name, video in sorted(broken.items())]
        write_atomically(self.folder / BROKEN_FILE, csv_text(columns, rows))

    def _write_errors(self) -> AbstractContextManager[None]:
        return lance_errors(f"library {self.folder} cannot be written")


@contextmanager
def lance_errors(message: str) -> Iterator[None]:
    """Convert exceptions of LanceDB to LibraryError."""
    try:
        yield
    except CrosspairError:
        raise
    except Exception as error:  # damaged files cause many types, also panics of Rust code
        raise LibraryError(f"{message}: {format_error(error)}") from error


def schema(dimensions: int) -> pa.Schema:
    """Return the columns of a library's table, with vectors of ``dimensions`` float32."""
    return pa.schema([
        pa.field("vector", pa.list_(pa.float32(), dimensions)),  # f_v, unit norm
        ("video", pa.string()),  # the path, with "#t=start,end" for a segment of a file
        ("path", pa.string()),  # absolute path or URL
        ("start", pa.float64()),  # s of the file
        ("end", pa.float64()),
        ("title", pa.string()),
        ("thumbnail", pa.binary()),  # JPEG
        ("size", pa.int64()),  # of the file in bytes; 0 for a URL
        ("modified", pa.int64()),  # ns since 1970; 0 for a URL
    ])  # fmt: skip


def sql_quote(text: str) -> str:
    """Return a text as an SQL string literal, in single quotes, with those inside doubled."""
    return "'" + text.replace("'", "''") + "'"


def is_library(folder: Path) -> bool:
    """Return whether a folder is a complete library: has ``library.json``, which is written last."""
    return (folder / INFO_FILE).is_file()


def check_library_path(folder: Path) -> None:
    """Check that a folder is a library, or that a library can be created there.

    Raises:
        LibraryError: it is a file, or contains something else, hidden files excepted.
    """
    # An interrupted creation leaves a model and a table without library.json.
    check_output_folder(folder, "a library", INFO_FILE, MODEL_FOLDER, f"{TABLE}.lance", error_type=LibraryError)


def library_lock(folder: Path) -> AbstractContextManager[None]:
    """Hold the exclusive lock for writing to a library; raise LibraryError if another process holds it."""
    message = f"library {folder} is being written; wait until it has finished, or stop it"
    return file_lock(folder / LOCK_FILE, message, LibraryError)


def _read_info(folder: Path) -> LibraryInfo:
    if not is_library(folder):
        raise LibraryError(
            f'{folder} is not a library; run "crosspair index VIDEOS --library {folder} --model MODEL" to create it'
        )
    try:
        info = LibraryInfo(**read_json(folder / INFO_FILE))
    except (OSError, ValueError, TypeError) as error:
        raise LibraryError(f"{folder / INFO_FILE} is invalid: {format_error(error)}") from error
    if info.format != FORMAT:
        raise LibraryError(
            f"library {folder} has format {info.format}; this version of crosspair supports format {FORMAT}"
        )
    return info


def _connect(folder: Path) -> Any:
    # LanceDB logs every table that it creates, and warns in every decoding process that is forked.
    os.environ.setdefault("LANCEDB_LOG", "error")
    warnings.filterwarnings("ignore", "lancedb fork support is experimental")
    try:
        import lancedb
    except ImportError as error:
        raise LibraryError('LanceDB is not installed; run pip install "crosspair[search]"') from error
    # Interval 0: a long-running search sees what other processes add.
    return lancedb.connect(folder, read_consistency_interval=datetime.timedelta(0))
