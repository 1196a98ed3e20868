"""What there is to prepare: one file a request, and which files are there already."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import fsspec

from crosspair.clip import Clip
from crosspair.corpora.manifest import Manifest
from crosspair.corpora.prepare.request import Request
from crosspair.corpora.prepare.settings import Settings
from crosspair.corpora.videofiles import absolute, size_of
from crosspair.errors import ManifestError
from crosspair.journal import entries

VERSION = 1  # of the files: raise it when the same request would give other bytes
VIDEOS = "videos"
MANIFEST = "manifest.parquet"
JOURNAL = "prepared.jsonl"
"""A line for each prepared file: its name, its request's key, its size in bytes, what probing it
found. Of two lines for one file the later counts."""

LONGEST = 80  # characters of an id that are kept; file systems take 255 bytes for the whole name


@dataclass(frozen=True)
class Plan:
    """All that a prepared corpus will be, before any of it is made.

    Attributes:
        manifest: of the sources.
        out: the folder for the new manifest and its videos.
        requests: each once, although rows may share it.
        of_row: index of each row's request.
        done: what probing found, for each request whose file is there already.
    """

    manifest: Manifest
    out: Path
    requests: list[Request]
    of_row: list[int]
    done: dict[int, dict[str, Any]]

    @property
    def missing(self) -> list[int]:
        """Requests that are still to be done."""
        return [index for index in range(len(self.requests)) if index not in self.done]


def plan_preparation(manifest: Manifest, out: Path, settings: Settings) -> Plan:
    """Find out what is to be done, without writing anything.

    Raises:
        ManifestError: the manifest has no rows, or ``out`` is not a folder to prepare into.
    """
    if not len(manifest):
        raise ManifestError(f"manifest {manifest.path} has no rows; there is nothing to prepare")
    _check_folder(manifest, out)
    # From the root: whoever answers may be in another folder, and a key holds wherever one is.
    clips = [Clip(absolute(clip.path), clip.start or 0.0, clip.end) for clip in manifest.clips()]
    videos = out.absolute() / VIDEOS
    states = _states(sorted({clip.path for clip in clips}), out)
    requests: list[Request] = []
    of_clip: dict[Clip, int] = {}
    of_row = []
    for clip, name in zip(clips, file_names(manifest.column("pair_id")), strict=True):
        if clip not in of_clip:
            of_clip[clip] = len(requests)
            told = repr((VERSION, astuple(clip), astuple(settings), states[clip.path]))
            key = hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:32]
            requests.append(Request(clip, settings, videos / f"{name}.mp4", key))
        of_row.append(of_clip[clip])
    return Plan(manifest, out, requests, of_row, _done(requests, out))


def file_names(pair_ids: Sequence[str]) -> list[str]:
    """A name without suffix for each id, in order; no two are alike, even in another case.

    An id that is a good name stays as it is; one that had to be changed, or that another repeats
    in another case, ends with a hash of itself.

    Args:
        pair_ids: each different from all others.

    >>> file_names(["v_Rowing_g01_c01", "../Été 2019?"])
    ['v_Rowing_g01_c01', 'Ete_2019-c48bf3989875cf88']
    """
    names = [_safe(each) for each in pair_ids]
    counts = Counter(name.casefold() for name in names)
    return [
        name
        if name == each and counts[name.casefold()] == 1 and not _HASHED.search(name)
        else f"{name}-{hashlib.sha256(each.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
        for each, name in zip(pair_ids, names, strict=True)
    ]


def _check_folder(manifest: Manifest, out: Path) -> None:
    if ":/" in str(out):
        raise ManifestError(f"{out} is no local folder; prepare into one, and copy it from there")
    if out.exists() and not out.is_dir():
        raise ManifestError(f"{out} is a file; prepared videos need a folder")
    if out.resolve() == manifest.path.parent.resolve():
        raise ManifestError(
            f"{out} is the folder of the manifest itself; prepare into another, as {out / 'small'}"
        )
    if not (out / JOURNAL).exists() and (
        (out / MANIFEST).exists() or any((out / VIDEOS).glob("[!.]*"))
    ):
        raise ManifestError(
            f"{out} holds a manifest or videos that were not prepared there; choose another folder"
        )


def _states(paths: list[str], out: Path) -> dict[str, object]:
    """Of each source what changes when its content does.

    Raises:
        ManifestError: a source is one of the files that are to be written.
    """
    made: set[tuple[int, int]] = set()
    if (out / VIDEOS).is_dir():
        with os.scandir(out / VIDEOS) as entries:
            # Compared by number, since links and other spellings lead to the same file.
            made = {(at.st_dev, at.st_ino) for at in map(os.stat, entries) if at.st_ino}

    def state(path: str) -> object:
        try:
            if "://" in path:
                system, within = fsspec.core.url_to_fs(path)
                return system.ukey(within)
            found = Path(path).stat()
        except Exception:  # whatever is wrong with a source is told when it is opened
            return None
        if (found.st_dev, found.st_ino) in made:
            raise ManifestError(
                f"source {path} lies in {out / VIDEOS} and might be overwritten; "
                "choose another folder"
            )
        return found.st_size, found.st_mtime_ns

    with ThreadPoolExecutor() as pool:
        return dict(zip(paths, pool.map(state, paths), strict=True))


def _done(requests: list[Request], out: Path) -> dict[int, dict[str, Any]]:
    latest = {
        entry["file"]: entry
        for entry in entries(out / JOURNAL)
        if isinstance(entry, dict) and entry.keys() >= {"file", "key", "size", "probed"}
    }
    done = {}
    for index, request in enumerate(requests):
        entry = latest.get(request.target.name)
        if entry and entry["key"] == request.key and size_of(request.target) == entry["size"]:
            done[index] = entry["probed"]
    return done


_HASHED = re.compile(r"-[0-9a-f]{16}$", re.IGNORECASE)


def _safe(pair_id: str) -> str:
    plain = unicodedata.normalize("NFKD", pair_id).encode("ascii", "ignore").decode()
    # No dot or hyphen in front: hidden files, and options of commands.
    return re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._-")[:LONGEST] or "clip"
