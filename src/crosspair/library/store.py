"""A library on disk: a folder that holds all that searching it needs.

``library.json`` says what it was made with; ``model/`` is a copy of the model, so that retraining
or moving the original breaks nothing; ``windows.lance`` is a LanceDB table with a row a window;
``broken.csv`` names the videos that could not be read. Every change of the table is one version of
it, there whole or not at all.
"""

from __future__ import annotations

import csv
import datetime
import fcntl
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from crosspair.corpora.tables import csv_text
from crosspair.errors import CrosspairError
from crosspair.evaluation.windows import Windows
from crosspair.files import write_atomically
from crosspair.models.cpd import CPD

ABOUT_FILE, MODEL_FOLDER, LOCK_FILE, TABLE = "library.json", "model", ".lock", "windows"
FORMAT = 1
EXACT_UP_TO = 100_000  # windows; looking at each of them takes milliseconds
KEPT = datetime.timedelta(minutes=10)  # old versions stay as long, for who reads them just now
AT_ONCE = 10_000  # names in one SQL expression

FileState = tuple[
    int, int
]  # of a file: its size in bytes, and when it was modified, in ns since 1970
MISSING_FILE: FileState = (-1, -1)


class LibraryError(CrosspairError):
    """A library cannot be opened, written, or searched as asked."""


@dataclass(frozen=True)
class LibraryInfo:
    """What a library was made with."""

    model: str
    """Hash of the model's weights, see `crosspair.models.CPD.hash`."""
    embedding: int
    """Dimensions of the embedding."""
    window: float
    """Length of a window, in s."""
    stride: float
    """From one window's beginning to that of the next, in s."""
    format: int = FORMAT
    """Of the folder."""


@dataclass(frozen=True)
class IndexedVideo:
    """What is known of a video in a library: it counts for as long as its file stays as it was."""

    state: FileState
    title: str | None
    windows: int


class Library:
    """An open library, which sees what others write.

    Args:
        folder: of the library.

    Raises:
        LibraryError: there is none, it is of another format, or LanceDB is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = folder = Path(folder)
        self.about = _about(folder)
        self.windows = Windows(self.about.window, self.about.stride)
        try:
            self.table = _connected(folder).open_table(TABLE)
        except (ValueError, OSError, RuntimeError) as error:
            raise LibraryError(f"library {folder} cannot be opened: {_line(error)}") from error

    @classmethod
    def create(cls, folder: Path, model: CPD, windows: Windows) -> Self:
        """Make an empty library; what a kill left of one is replaced.

        Raises:
            LibraryError: the folder holds something else, or cannot be written.
        """
        if not is_library(folder):
            check_library_path(folder)
            shutil.rmtree(folder / f"{TABLE}.lance", ignore_errors=True)
            database = _connected(folder)
            model.save_pretrained(folder / MODEL_FOLDER)
            database.create_table(TABLE, schema=schema(model.head.embedding), mode="overwrite")
            about = LibraryInfo(model.hash, model.head.embedding, windows.length, windows.stride)
            write_atomically(folder / ABOUT_FILE, json.dumps(asdict(about), indent=2) + "\n")
        return cls(folder)

    @property
    def model_folder(self) -> Path:
        return self.folder / MODEL_FOLDER

    def __len__(self) -> int:
        """Windows."""
        return int(self.table.count_rows())

    def videos(self) -> dict[str, IndexedVideo]:
        """All videos by their names."""
        names = ["video", "size", "modified"]
        found = (
            self.table.search()
            .select([*names, "title", "start"])
            .to_arrow()
            .group_by(names)
            .aggregate([("title", "max"), ("start", "count")])
        )
        return {
            row["video"]: IndexedVideo(
                (row["size"], row["modified"]), row["title_max"], row["start_count"]
            )
            for row in found.to_pylist()
        }

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add windows, all in one version."""
        if not rows:
            return
        with self._changing():
            self.table.add(pa.Table.from_pylist(list(rows), schema=schema(self.about.embedding)))

    def remove(self, videos: Sequence[str]) -> None:
        """Take videos out."""
        with self._changing():
            for i in range(0, len(videos), AT_ONCE):
                self.table.delete(
                    f"video IN ({', '.join(map(sql_quote, videos[i : i + AT_ONCE]))})"
                )

    def rename(self, titles: Mapping[str, str | None]) -> None:
        """Give videos other titles, all in one version."""
        strings = pa.string()
        table = pa.table(
            [pa.array(titles, strings), pa.array(titles.values(), strings)], ["video", "title"]
        )
        with self._changing():
            self.table.merge_insert("video").when_matched_update_all().execute(table)

    def optimize(self) -> None:
        """Join small files, drop old versions, and keep the index that a large library needs."""
        with self._changing():
            if len(self) > EXACT_UP_TO and not self.table.list_indices():
                from lancedb.index import IvfSq

                # A graph (HNSW) took sixteen times as long to make of 100,000 windows, and found
                # no more.
                self.table.create_index("vector", config=IvfSq(distance_type="cosine"))
            # Nobody else writes: a file that belongs to no version is what a kill left.
            self.table.optimize(cleanup_older_than=KEPT, delete_unverified=True)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            raise LibraryError(
                f"library {self.folder} cannot be written: {_line(error)}"
            ) from error


def schema(dimensions: int) -> pa.Schema:
    """The columns of a library's table."""
    return pa.schema([
        pa.field("vector", pa.list_(pa.float32(), dimensions)),  # f_v, of unit norm
        ("video", pa.string()),  # the path, with "#t=start,end" where it is a part of a file
        ("path", pa.string()),  # absolute, or a URL
        ("start", pa.float64()),  # s of the file
        ("end", pa.float64()),
        ("title", pa.string()),
        ("thumbnail", pa.binary()),  # JPEG
        ("size", pa.int64()),  # of the file, in bytes; 0 of a URL
        ("modified", pa.int64()),  # ns since 1970; 0 of a URL
    ])  # fmt: skip


def file_state(path: str) -> FileState:
    """The state of a file; nobody asks for that of a URL's."""
    if "://" in path:
        return 0, 0
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return MISSING_FILE
    return status.st_size, status.st_mtime_ns


def is_library(folder: Path) -> bool:
    """Whether a library was made there."""
    return (folder / ABOUT_FILE).is_file()


def check_library_path(folder: Path) -> None:
    """See that a library may be made there, or be there.

    Raises:
        LibraryError: the folder holds something else, or is a file.
    """
    if is_library(folder) or not folder.exists():
        return
    if not folder.is_dir():
        raise LibraryError(f"{folder} is a file, not a folder; a library is a folder of its own")
    # A model and a table without library.json are what a kill left of making a library.
    ours = {MODEL_FOLDER, f"{TABLE}.lance"}
    foreign = [path.name for path in folder.iterdir() if path.name not in ours]
    foreign = sorted(name for name in foreign if not name.startswith("."))
    if foreign:
        raise LibraryError(
            f"{folder} is there already and no library: it holds {foreign[0]}; name another folder"
        )


@contextmanager
def library_lock(folder: Path) -> Iterator[None]:
    """Be the only one who writes to a library. The lock ends with its process, however that ends.

    Raises:
        LibraryError: somebody else writes, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise LibraryError(f"library {folder} cannot be written: {error.strerror}") from error
    with lock:
        try:
            # Unlike flock's, these locks are not inherited by decoding processes, which may live
            # on for seconds.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise LibraryError(
                f"library {folder} is being written by process {lock.read() or '?'}; "
                "wait for its end, or end it"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def sql_quote(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"


def _about(folder: Path) -> LibraryInfo:
    if not is_library(folder):
        raise LibraryError(
            f'{folder} is no library; "crosspair index VIDEOS --library {folder} --model MODEL" '
            "makes one"
        )
    try:
        about = LibraryInfo(**json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise LibraryError(f"{folder / ABOUT_FILE} cannot be read: {_line(error)}") from error
    if about.format != FORMAT:
        raise LibraryError(
            f"library {folder} has format {about.format}; this version of crosspair reads {FORMAT}"
        )
    return about


def _connected(folder: Path) -> Any:
    # It tells the terminal of every table that it makes, and of every process for decoding, which
    # knows nothing of tables.
    os.environ.setdefault("LANCEDB_LOG", "error")
    warnings.filterwarnings("ignore", "lancedb fork support is experimental")
    try:
        import lancedb
    except ImportError as error:
        raise LibraryError('a library needs the extra: pip install "crosspair[search]"') from error
    # Whoever searches for hours sees what was added meanwhile.
    return lancedb.connect(folder, read_consistency_interval=datetime.timedelta(0))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


BROKEN_FILE = "broken.csv"
_COLUMNS = ("video", "reason", "windows", "size", "modified")


@dataclass(frozen=True)
class BrokenVideo:
    """A video that could not be read, all of it or in part.

    Attributes:
        state: of its file, then; it is tried again once that has changed.
        reason: for people, in one line.
        windows: of it that could be read.
    """

    state: FileState
    reason: str
    windows: int = 0


def read_broken(folder: Path) -> dict[str, BrokenVideo]:
    """The list of a library by its videos' names; empty where there is none, or not a whole one."""
    broken = {}
    with (
        suppress(OSError, ValueError, KeyError, csv.Error),
        (folder / BROKEN_FILE).open(encoding="utf-8", newline="") as lines,
    ):
        for line in csv.DictReader(lines):
            state = int(line["size"]), int(line["modified"])
            broken[line["video"]] = BrokenVideo(state, line["reason"], int(line["windows"]))
    return broken


def write_broken(folder: Path, broken: Mapping[str, BrokenVideo]) -> None:
    """Write the list; where there is nothing to tell, no file is."""
    if not broken:
        (folder / BROKEN_FILE).unlink(missing_ok=True)
        return
    rows = [(name, each.reason, each.windows, *each.state) for name, each in sorted(broken.items())]
    write_atomically(folder / BROKEN_FILE, csv_text(_COLUMNS, rows))
