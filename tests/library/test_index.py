"""Indexing: only changed videos, a single writer, and a valid library after a kill."""

from __future__ import annotations

import csv
import errno
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.corpora.inputs import probe_missing
from crosspair.errors import ManifestError, VideoError
from crosspair.evaluation import encode
from crosspair.library import (
    InferenceEngine,
    Library,
    LibraryError,
    Searcher,
    Windows,
    index_videos,
    remove_videos,
    store,
)
from crosspair.library import index as indexing
from crosspair.serve.service import LibraryService
from crosspair.video import container, views
from crosspair.video.decode import read_frames
from crosspair.video.integrity import inspect_job
from tests.evaluation.conftest import tiny_model
from tests.library import killed
from tests.library.conftest import WINDOWS

pytest.importorskip("lancedb")

COUNTS = {"1.mp4": 1, "2.mp4": 1, "3.mp4": 2, "4.mp4": 3}


def windows_in(library: Path) -> dict[str, int]:
    """Number of windows by file name; checks that there are no duplicates."""
    rows = Library(library).table.search().select(["video", "start"]).to_list()
    places = Counter((row["video"], row["start"]) for row in rows)
    assert set(places.values()) <= {1}
    return dict(Counter(Path(row["video"]).name for row in rows))


def test_only_what_changed_is_encoded(
    tiny: InferenceEngine, folder: Path, tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    library = tmp_path / "library"
    first = index_videos(library, tiny, [folder], windows=WINDOWS)
    assert (first.added, first.changed, first.removed, first.unchanged) == (5, 0, 0, 0)
    assert first.windows == sum(COUNTS.values())
    assert windows_in(library) == COUNTS
    (line,) = csv.DictReader((library / "broken.csv").open(encoding="utf-8"))
    assert line["video"] == str(folder / "broken.mp4")
    assert line["reason"] == first.broken[str(folder / "broken.mp4")] != ""

    again = index_videos(library, tiny, [folder])
    assert (again.added, again.changed, again.removed, again.unchanged) == (0, 0, 0, 5)
    assert (again.windows, again.broken) == (0, first.broken)

    make_video(folder / "deep" / "5.mp4", frames=20, fps=10)
    make_video(folder / "1.mp4", frames=40, fps=10)
    (folder / "2.mp4").unlink()
    third = index_videos(library, tiny, [folder])
    assert (third.added, third.changed, third.removed, third.unchanged) == (1, 1, 1, 3)
    assert third.windows == 1 + 3
    assert windows_in(library) == {"1.mp4": 3, "3.mp4": 2, "4.mp4": 3, "5.mp4": 1}

    make_video(folder / "broken.mp4", frames=20, fps=10)
    (folder / "4.mp4").write_text("no video any more")
    fourth = index_videos(library, tiny, [folder])
    assert (fourth.added, fourth.changed, fourth.removed) == (0, 2, 0)
    assert list(fourth.broken) == [str(folder / "4.mp4")]
    assert windows_in(library) == {"1.mp4": 3, "3.mp4": 2, "5.mp4": 1, "broken.mp4": 1}
    (folder / "4.mp4").unlink()
    assert index_videos(library, tiny, [folder]).removed == 1
    assert not (library / "broken.csv").exists()


def test_a_file_has_one_name(
    tiny: InferenceEngine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "deep").mkdir()
    index_videos(str(tmp_path / "library"), tiny, ["deep/..", "1.mp4"], windows=WINDOWS)
    again = index_videos(tmp_path / "library", tiny, [folder])
    assert (again.added, again.unchanged) == (0, 5)
    assert remove_videos(str(tmp_path / "library"), ["../videos"]) == 5


def test_progress_is_saved_before_all_videos_are_probed(
    tiny: InferenceEngine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "PROBE_BATCH", 2)
    monkeypatch.setattr(indexing, "COMMIT_SECONDS", 0.0)
    library, progress, probing = tmp_path / "library", list[tuple[int, int]](), list[int]()

    def probe(manifest: Manifest, **choices: bool) -> Manifest:
        probing.append(len(Library(library)))
        return probe_missing(manifest, **choices)

    monkeypatch.setattr(indexing, "probe_missing", probe)
    index_videos(library, tiny, [folder], windows=WINDOWS, progress=lambda *done: progress.append(done))
    assert progress == [(done, 5) for done in range(1, 6)]
    assert probing == [0, 2, 7]  # windows in the library
    assert windows_in(library) == COUNTS


def test_a_partly_readable_video_is_indexed_and_listed(
    tiny: InferenceEngine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(clip, instants, shape, _):
        wanted = instants(4.0)
        if clip.path.endswith("4.mp4") and wanted[-1] > 2.2:
            raise VideoError(f"{clip.path}: damaged")
        return read_frames(clip, lambda _: wanted, shape)

    library = tmp_path / "library"
    index_videos(library, tiny, [folder / "1.mp4"], windows=WINDOWS)
    opening = iter([store.schema(8)])

    def stopped(_: int) -> object:
        for columns in opening:
            return columns
        raise RuntimeError("killed here")

    monkeypatch.setattr(views, "read_frames", damaged)
    monkeypatch.setattr(encode, "CLIPS_PER_JOB", 1)
    with monkeypatch.context() as patch:
        patch.setattr(store, "schema", stopped)  # after broken.csv, before the windows
        with pytest.raises(LibraryError, match="killed here"):
            index_videos(library, tiny, [folder])
    assert "4.mp4" in (library / "broken.csv").read_text()
    found = index_videos(library, tiny, [folder])
    assert windows_in(library) == COUNTS | {"4.mp4": 1}
    assert (found.added, found.changed) == (len(COUNTS | {"4.mp4": 1}) - 1, 0)
    assert found.broken[str(folder / "4.mp4")].startswith(f"{folder / '4.mp4'}: damaged (2 of 3 windows")
    again = index_videos(library, tiny, [folder])
    assert (again.broken, again.windows) == (found.broken, 0)


def test_other_folders_are_kept_and_folders_can_be_removed(
    tiny: InferenceEngine, folder: Path, tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    library = tmp_path / "library"
    make_video(tmp_path / "videos2" / "a.mp4", frames=20, fps=10)
    index_videos(library, tiny, [folder], windows=WINDOWS)
    index_videos(library, tiny, [tmp_path / "videos2"])
    assert windows_in(library) == COUNTS | {"a.mp4": 1}
    shutil.rmtree(folder)
    folder.mkdir()  # a disk that is not mounted looks like this
    with pytest.raises(ManifestError, match=str(folder)):
        index_videos(library, tiny, [folder])
    rows = [{"pair_id": "x", "path": "videos/1.mp4"}, {"pair_id": "y", "path": "videos/3.mp4"}]
    manifest = manifest_from_rows(rows, ".").write(tmp_path / "m.parquet")
    assert remove_videos(library, [manifest.path]) == 2
    assert windows_in(library) == {"2.mp4": 1, "4.mp4": 3, "a.mp4": 1}
    assert remove_videos(library, [folder]) == 3
    assert windows_in(library) == {"a.mp4": 1}
    assert not (library / "broken.csv").exists()
    assert remove_videos(library, [tmp_path / "videos2" / "a.mp4"]) == 1
    assert len(Library(library)) == 0


def test_every_name_can_be_removed(
    tiny: InferenceEngine, tmp_path: Path, make_video: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    library, videos, names = tmp_path / "library", tmp_path / "videos", ["#t=1,2.mp4", "a'b.mp4", "c\nd.mp4", "e#t=1"]
    video = make_video(videos / names[0], frames=20, fps=10)
    for name in [*names[1:], "caf\udce9.mp4"]:
        shutil.copy(video, videos / name)
    index_videos(library, tiny, [videos, videos / names[3]], windows=WINDOWS)
    assert "caf" in caplog.text
    assert windows_in(library) == dict.fromkeys(names, 1)
    with pytest.raises(ManifestError, match="empty"):
        remove_videos(library, [""])
    for name in names:
        assert remove_videos(library, [videos / name]) == 1


def test_titles_come_from_a_file_or_a_manifest(tiny: InferenceEngine, folder: Path, tmp_path: Path) -> None:
    library, titles = tmp_path / "library", tmp_path / "titles.tsv"
    rows = [{"pair_id": "x", "path": "videos/3.mp4", "title": "old", "start": 1.0, "end": 3.0}]
    manifest = manifest_from_rows(rows, ".").write(tmp_path / "m.parquet")
    index_videos(library, tiny, [folder, manifest.path], windows=WINDOWS)
    one, three, part = str(folder / "1.mp4"), str(folder / "3.mp4"), f"{folder / '3.mp4'}#t=1,3"
    videos = Library(library).videos()
    assert (videos[part].title, videos[part].windows, videos[one].title) == ("old", 1, None)
    assert index_videos(library, tiny, [folder]).removed == 0
    titles.write_text("video_id\ttitle\n1\tit's one\n3\tthree\n")
    assert index_videos(library, tiny, [folder], titles=titles).windows == 0
    videos = Library(library).videos()
    assert (videos[one].title, videos[three].title) == ("it's one", "three")
    os.utime(folder / "1.mp4", (1, 1))
    assert index_videos(library, tiny, [folder]).changed == 1  # without the title file
    assert Library(library).videos()[one].title == "it's one"


def test_mismatched_and_invalid_libraries(tiny: InferenceEngine, folder: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    index_videos(library, tiny, [folder / "1.mp4"], windows=WINDOWS)
    other = InferenceEngine(tiny_model(1).eval(), torch.device("cpu"), "fp32", workers=0)
    with pytest.raises(LibraryError, match=f"{tiny.model.hash}.* {other.model.hash}"):
        index_videos(library, other, [folder])
    with pytest.raises(LibraryError, match=r"2 s .* 4 s"):
        index_videos(library, tiny, [folder], windows=Windows(4, 2))
    for place in (folder, folder / "1.mp4"):
        with pytest.raises(LibraryError, match=r"1\.mp4"):
            index_videos(place, tiny, [folder])
    assert not (folder / ".lock").exists()
    for file in (library / "windows.lance" / "data").iterdir():
        file.write_bytes(b"")
    with pytest.raises(LibraryError, match=str(library)):
        index_videos(library, tiny, [folder])
    info = library / "library.json"
    info.write_text(info.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(LibraryError, match="format 9"):
        Library(library)
    with pytest.raises(LibraryError, match=str(tmp_path)):
        Library(tmp_path)


def test_a_library_keeps_its_sampling(
    tiny: InferenceEngine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, old, used = tmp_path / "library", tmp_path / "old", list[str]()
    with pytest.raises(LibraryError, match="image encoder"):
        index_videos(library, tiny, [folder], windows=WINDOWS, sampling="keyframes")
    assert not library.exists()
    index_videos(old, tiny, [folder / "1.mp4"], windows=WINDOWS, sampling="clips")
    monkeypatch.setattr(tiny.model.video_encoder, "image", True, raising=False)
    index_videos(library, tiny, [folder / "1.mp4"], windows=WINDOWS)
    assert Library(library).info.sampling == "auto"
    with pytest.raises(LibraryError, match="auto, not keyframes"):
        index_videos(library, tiny, [folder], sampling="keyframes")
    info = old / "library.json"
    info.write_text(json.dumps({k: v for k, v in json.loads(info.read_text()).items() if k != "sampling"}))

    def encode_windows(*args: Any, sampling: str, **options: Any) -> Any:
        used.append(sampling)
        return encode.encode_windows(*args, sampling=sampling, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(indexing, "encode_windows", encode_windows)
    for each in (library, old):
        index_videos(each, tiny, [folder])
        assert windows_in(each) == COUNTS
    assert used == ["auto", "clips"]
    info.write_text(info.read_text().replace("{", '{"sampling": "all",'))
    with pytest.raises(LibraryError, match="all"):
        Library(old)


def test_only_one_process_writes(tiny: InferenceEngine, folder: Path, tmp_path: Path) -> None:
    here, there = multiprocessing.Pipe()
    other = multiprocessing.get_context("spawn").Process(target=killed.lock, args=(tmp_path, there))
    other.start()
    here.recv()
    with pytest.raises(LibraryError, match=f"process {other.pid}"):
        index_videos(tmp_path / "library", tiny, [folder])
    other.kill()
    other.join()
    with store.library_lock(tmp_path / "library"):  # the lock ended with its process
        pass


def test_missing_lancedb(tmp_path: Path, tiny: InferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(LibraryError, match=r"crosspair\[search\]"):
        Library.create(tmp_path, tiny.model, WINDOWS)


def test_ten_kills_leave_a_valid_library(
    folder: Path, model_folder: Path, tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    for copy in range(4):
        make_video(folder / f"more{copy}.mp4", frames=30, fps=10)
    expected = COUNTS | {f"more{copy}.mp4": 1 for copy in range(4)}  # windows of 4 s every 2 s
    expected |= {"3.mp4": 1, "4.mp4": 1}
    library = tmp_path / "library"
    # Processes forked from one that has done the imports start at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.library.killed"])
    draw = random.Random(0)
    whole, opened = 0.0, 0
    for kill in range(11):
        for path in draw.sample(sorted(folder.iterdir()), 4):
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
        here, there = context.Pipe()
        process = context.Process(target=killed.run, args=(library, folder, model_folder, there))
        process.start()
        here.recv()
        begun = time.monotonic()
        if kill:
            process.join(draw.uniform(0, whole))
            process.kill()
        process.join()
        whole = whole or time.monotonic() - begun
        if store.is_library(library):
            found = windows_in(library)
            assert found.items() <= expected.items()  # each video completely or not at all
            opened += 1
        if kill == 5:
            shutil.rmtree(library)  # the next kills interrupt the creation of a library
    assert opened > 5
    engine = InferenceEngine(tiny_model().eval(), torch.device("cpu"), "fp32", workers=0)
    index_videos(library, engine, [folder])
    assert windows_in(library) == expected


def test_faults_of_system_and_network_are_tried_again(
    tiny: InferenceEngine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, missing = tmp_path / "library", f"{folder.as_uri()}/5.mp4"
    open_container = container.av.open

    def open_fails(source: str, **options: object) -> object:
        if str(source).endswith("/4.mp4"):
            raise OSError(errno.EMFILE, "Too many open files")
        return open_container(source, **options)

    with monkeypatch.context() as patch:
        patch.setattr(container.av, "open", open_fails)
        patch.setattr(indexing, "probe_missing", probe_here)
        first = index_videos(library, tiny, [folder, missing], windows=WINDOWS)
    assert set(first.broken) == {str(folder / "4.mp4"), str(folder / "broken.mp4"), missing}
    shutil.copy(folder / "2.mp4", folder / "5.mp4")
    again = index_videos(library, tiny, [folder / "4.mp4", folder / "broken.mp4", missing])
    assert (again.added, again.unchanged, list(again.broken)) == (2, 1, [str(folder / "broken.mp4")])
    assert windows_in(library) == COUNTS | {"5.mp4": 1}


def probe_here(manifest: Manifest, **_: bool) -> Manifest:
    """Probe in this process."""
    rows = manifest.table.to_pylist()
    for row in rows:
        info, (result,) = inspect_job((row["path"], [(None, None)], False))
        row.update({"error": f"{row['path']}: {result.reason}"} if result.kind.broken else info)
    return manifest_from_rows(rows, manifest.path)


def test_two_leading_slashes_are_one(tiny: InferenceEngine, folder: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    index_videos(library, tiny, [f"/{folder}"], windows=WINDOWS)
    assert index_videos(library, tiny, [folder]).unchanged == 5
    old = tmp_path / "old"  # as an older version stored it
    shutil.copytree(library, old)
    Library(old).table.update(values_sql={"video": "'/' || video", "path": "'/' || path"})
    searcher = Searcher(old, tiny)
    assert LibraryService(searcher, tmp_path, 1).search("dog", 1)[0].path in COUNTS
    index_videos(old, tiny, [folder])
    assert windows_in(old) == COUNTS
