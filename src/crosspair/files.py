"""Checks of output files, atomic writes, JSON Lines journals, file locks and strict YAML."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self

import yaml

from crosspair.errors import CrosspairError, RecipeError, RunError, format_error

logger = logging.getLogger(__name__)


@contextmanager
def _report_os_errors(subject: object, failure: str, error_type: type[CrosspairError] = RunError) -> Iterator[None]:
    """Raise an OSError of the block as ``error_type``: "``subject`` cannot be ``failure``: …"."""
    try:
        yield
    except OSError as error:
        raise error_type(f"{subject} cannot be {failure}: {format_error(error)}") from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file atomically; see `atomic_write`."""
    with atomic_write(path) as partial:
        partial.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


@contextmanager
def atomic_write(path: Path, error_type: type[CrosspairError] = RunError) -> Iterator[Path]:
    """Yield a temporary file that replaces ``path`` when the block ends without an error, else is removed.

    Readers see the old file or the new one, never a partial one. Missing parent folders are created.

    Raises:
        CrosspairError: of class ``error_type``: the file cannot be written; an existing file is unchanged.
    """
    with _report_os_errors(path, "written", error_type):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file() and not path.is_dir():  # a device
            raise error_type(f"{path} cannot be written: not a regular file")
        partial, lock = _open_partial(path)
        try:
            yield partial
            with partial.open("r+b") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            with lock, suppress(OSError):
                partial.unlink(missing_ok=True)


def _open_partial(path: Path) -> tuple[Path, IO[bytes]]:
    """Create the temporary file of a path, and lock it for as long as it is open.

    It has the same name each time, so that the file of a killed process is reused, but another one
    while a living process uses that.
    """
    partial = path.with_name(f".{path.name}.partial")
    file = partial.open("ab")
    with suppress(OSError):  # locked, a file system without locks, or replaced in the meantime
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), partial.stat()):
            file.truncate(0)
            return partial, file
    file.close()
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    return partial, partial.open("xb")


NFS_CACHE_TIMEOUT_S = 90  # longest time until a network file system shows a new file
_ENDS = 2**16  # bytes at the beginning and at the end of a file
_PARQUET_KINDS = {
    "a manifest": {"pair_id", "path"},
    "a file of embeddings": {"video", "visual", "embedding"},
}  # columns
_KINDS = {  # first bytes, and bytes near the beginning or the end
    "a results file": (b"{", b'"provenance"'),
    "a record of a run's inputs": (b'{"manifest"', b'"file"'),
    "a record of prepared videos": (b'{"file"', b""),
    "a list of problems": (b"pair_id,path,kind,message", b""),
    "a list of skipped pairs": (b"video_id,reason,detail", b""),
    "accuracies of classes": (b"class,accuracy,videos", b""),
    "a model card": (b"---", b"cross-modal-pair-discrimination"),
    "a contact sheet": (b"\x89PNG", b"crosspair"),
    "an edit decision list": (b"TITLE: crosspair", b"* OTIO "),
    "a Final Cut Pro project": (b"<?xml", b"<!-- Written by crosspair -->"),
    "a list of search results": (b"rank,path,start,end,start_time,end_time,score,title", b""),
    "an exported ONNX model": (b"\x08", b"crosspair"),
    "an exported PyTorch program": (b"PK", b"crosspair"),
    "a report": (b"<!doctype html>", b"default-src 'none'; img-src data:"),
    "a list of clean titles": (b"pair_id,title,title_clean,title_tree", b""),
    "a list of word overlaps": (b"titles_of,class,pairs", b""),
}


def check_output(path: Path, kind: str, *others: str, error_type: type[CrosspairError] = RunError) -> None:
    """Check that an output file can be written and replaces only a file of its own kind, before it is computed.

    Args:
        path: the file.
        kind: a key of `_KINDS` or `_PARQUET_KINDS`.
        others: names of files that are written next to it, and may exist only with it.

    Raises:
        CrosspairError: of class ``error_type``: the path is a folder or another file, a parent is a
            file, or the folder is not writable.
    """
    place = Path(os.path.realpath(path.parent), path.name)  # "..": also behind a folder that does not exist yet
    with _report_os_errors(path, "written", error_type):
        if place.is_dir():
            raise error_type(f"{path} is a folder; give a file")
        _check_writable(path, place.parent, error_type)
        for file in (place, *map(place.with_name, others)):
            if file.exists() and not _is_kind(place, kind):
                raise error_type(f"{file} exists and is not {kind} of crosspair; choose another output, or remove it")


def check_output_folder(
    folder: Path, kind: str, mark: str, *parts: str, error_type: type[CrosspairError] = RunError
) -> None:
    """Check that an output folder can be written and is absent, empty or of its own kind, before the work starts.

    Args:
        folder: the folder; hidden files do not count.
        kind: its kind, for messages.
        mark: path, within the folder, of a file that each complete folder of this kind has.
        parts: names of entries that it may have before that file exists.

    Raises:
        CrosspairError: of class ``error_type``: the folder or a parent is a file, it has other content, or it is
            not writable.
    """
    with _report_os_errors(folder, "written", error_type):
        _check_writable(folder, folder, error_type)
        if (folder / mark).is_file() or not folder.exists():
            return
        for path in sorted(folder.iterdir()):
            if path.name not in parts and not path.name.startswith("."):
                raise error_type(f"{folder} exists and is not {kind}: it contains {path.name}; choose another folder")


def _check_writable(output: Path, folder: Path, error_type: type[CrosspairError]) -> None:
    """Raise an error of the given class if an output's folder is, or is in, a file; OSError if it is read-only."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise error_type(f"{output}: {path} is a file, not a folder")
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    tempfile.TemporaryFile(dir=existing).close()  # os.access is always true for root


def _is_kind(path: Path, kind: str) -> bool:
    """Return whether a file has the content of a kind of output, or none."""
    if not path.exists() or not path.stat().st_size:
        return path.exists()
    if kind in _PARQUET_KINDS:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return set(pq.read_schema(path).names) >= _PARQUET_KINDS[kind]
        except pa.ArrowException:
            return False
    first, mark = _KINDS[kind]
    with path.open("rb") as file:
        content = file.read(_ENDS)
        file.seek(max(0, path.stat().st_size - _ENDS))
        return content.startswith(first) and mark in content + file.read()


MAX_JSON = 2**24  # bytes; parsed, they take up to 25 times the memory


def check_regular_file(path: Path, max_bytes: float = math.inf) -> None:
    """Raise ValueError if a path is not a regular file, which may block or never end, or a larger one; or OSError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path.name} is not a regular file")
    if status.st_size > max_bytes:
        raise ValueError(f"{path.name} has {status.st_size:,} bytes, more than {max_bytes:,}")


def read_json(path: Path, max_bytes: int = MAX_JSON) -> Any:
    """Parse a JSON file from any origin; OSError or ValueError if it is not a regular file of JSON of this size."""
    check_regular_file(path, max_bytes)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deeply") from error


def wait_for_file(path: Path) -> bool:
    """Wait until a file that another machine has written is visible; return False if it does not appear."""
    for _ in range(NFS_CACHE_TIMEOUT_S):
        if path.exists():
            return True
        time.sleep(1)
    return False


class JsonlWriter:
    """Append to a JSON Lines file. Use it as a context manager; `read_jsonl` reads the file.

    Args:
        path: created, with its parent folders, if it does not exist. An incomplete last line, left
            by a killed process, is terminated.

    Raises:
        RunError: the file cannot be written; `add` raises it, too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _report_os_errors(path, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+")
            if self._file.tell():
                self._file.seek(-1, os.SEEK_END)
                if self._file.read() != b"\n":
                    self._file.write(b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # `add` has reported it
            self._file.close()

    def add(self, *entries: Any) -> None:
        """Append one line for each JSON-serialisable entry, and flush."""
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        with _report_os_errors(self.path, "written"):
            self._file.write(lines.encode(errors="backslashreplace"))  # surrogates of file names: valid JSON
            self._file.flush()


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield the entries of a JSON Lines file, oldest first; none if the file does not exist.

    Incomplete lines, left by a killed process, are skipped.

    Raises:
        RunError: the file cannot be read.
    """
    with (
        _report_os_errors(path, "read"),
        suppress(FileNotFoundError, NotADirectoryError),
        path.open(encoding="utf-8", errors="replace") as lines,
    ):
        for line in lines:
            with suppress(ValueError):
                yield json.loads(line)


@contextmanager
def file_lock(
    path: Path, message: str, error_type: type[CrosspairError] = RunError, *, timeout: float = 0.0
) -> Iterator[None]:
    """Hold an exclusive lock on a file between processes.

    The system releases the lock when the process ends, even if it is killed. Child processes do not
    hold it. The file stays and holds the process ID of its last owner. File systems without locks
    proceed unlocked.

    Args:
        path: lock file; created, with its parent folders, if it does not exist.
        message: error message if another process holds the lock. Its process ID is appended.
        error_type: class of the exception to raise.
        timeout: seconds to wait for another process.

    Raises:
        CrosspairError: another process holds the lock, or the file cannot be written.
    """
    deadline, waiting = time.monotonic() + timeout, False
    with _report_os_errors(path, "written", error_type):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8", errors="replace")
    with file:
        file.seek(0)
        if not re.fullmatch(r"\d*", file.read(20)):
            raise error_type(f"{path} exists and is not a lock file of crosspair; choose another folder, or remove it")
        while not _try_lock(file, path, error_type):
            file.seek(0)
            owner = f"{message} (process {file.read() or 'unknown'})"
            if time.monotonic() >= deadline:
                raise error_type(owner)
            if not waiting:
                logger.info("%s; waiting for it", owner)
                waiting = True
            time.sleep(0.2)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _try_lock(file: IO[str], path: Path, error_type: type[CrosspairError]) -> bool:
    """Return whether the file is locked now, or cannot be locked on this file system."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EAGAIN}:
            return False
        if error.errno not in {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}:
            raise error_type(f"{path} cannot be locked: {format_error(error)}") from error
    return True


def read_yaml(content: str | Path, source: str) -> Any:
    """Parse YAML text, or a UTF-8 file, and reject duplicate keys; ``source`` names it in error messages.

    Keys are strings as written: ``3``, ``no`` and ``2024-01-01`` are not converted.

    Raises:
        RecipeError: the file cannot be read, is not valid YAML, or has a duplicate key.

    >>> read_yaml("{epochs: 3, 4: no}", "example")
    {'epochs': 3, '4': False}
    """
    try:
        text = content.read_text(encoding="utf-8") if isinstance(content, Path) else content
        return yaml.load(text, _UniqueKeyLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{source} cannot be read: {format_error(error)}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{source}{line}: invalid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
        raise RecipeError(f"{source}: invalid YAML: {format_error(error)}") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Reject duplicate keys and keys that are not scalars, and keep the others as strings."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(None, None, "a key must be a string", key.start_mark)
            if key.value in seen:
                problem = f"duplicate key {key.value!r}"
                raise yaml.MarkedYAMLError(None, None, problem, key.start_mark)
            seen.add(key.value)
            if key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"
        return node
