"""Preparing a corpus: results, resuming, broken sources and errors."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.config import Clip
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.corpora.prepare import (
    LOCK,
    PreparationEstimate,
    PreparationPlan,
    TranscodeOutcome,
    TranscodeRequest,
    estimate_cost,
    file_names,
    plan_preparation,
    prepare_corpus,
    run_request,
    transcode_locally,
)
from crosspair.corpora.transcode import TranscodeSettings
from crosspair.errors import ManifestError, RunError
from crosspair.files import read_jsonl
from crosspair.video.decode import read_frames
from tests.corpora import dying
from tests.test_files import hold

SMALL = TranscodeSettings(short_side=32)


class Here:
    """The engine of these tests: this very process. Notes what it was asked to do."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, requests: Sequence[TranscodeRequest]) -> Any:
        for index, request in enumerate(requests):
            self.asked.append(request.target.name)
            yield index, run_request(request)


class Corpus:
    """A folder with a manifest of a few small videos."""

    def __init__(self, root: Path, make_video: Any) -> None:
        self.root, self.out = root, root / "out"
        self.rows: list[dict[str, Any]] = []
        for name, fps in (("a", 24), ("b", 30)):
            make_video(root / f"{name}.mp4", fps=fps, frames=2 * fps)
            self.add(name, f"{name}.mp4")

    def add(self, pair_id: str, path: str, **columns: Any) -> None:
        self.rows.append({"pair_id": pair_id, "path": path, "title": f"Title {pair_id}", **columns})

    def manifest(self) -> Manifest:
        return manifest_from_rows(self.rows, self.root / "manifest.parquet").write(self.root / "manifest.parquet")

    def plan(self, settings: TranscodeSettings = SMALL) -> PreparationPlan:
        return plan_preparation(self.manifest(), self.out, settings)

    def prepare(self, settings: TranscodeSettings = SMALL) -> tuple[Manifest, list[str]]:
        """The new manifest, and the files that were made for it."""
        engine = Here()
        return prepare_corpus(self.plan(settings), engine), engine.asked

    def files(self) -> list[str]:
        return sorted(str(p.relative_to(self.out)) for p in self.out.rglob("[!.]*") if p.is_file())


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, make_video) -> Path:
    root = tmp_path_factory.mktemp("pristine")
    Corpus(root, make_video)
    return root


@pytest.fixture
def corpus(tmp_path: Path, pristine: Path) -> Corpus:
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    return Corpus(tmp_path, lambda *_, **__: None)


def broken(corpus: Corpus) -> None:
    (corpus.root / "bad.mp4").write_bytes(b"")
    corpus.add("bad", "bad.mp4", start=0.5)


def test_manifest_of_prepared_files(corpus: Corpus, make_video) -> None:
    corpus.rows[0] |= {"label": "x", "split": "test", "title_clean": "c", "title_tree": "t"}
    corpus.rows[0]["titles"] = [corpus.rows[0]["title"], "another caption"]
    corpus.rows[1] |= {"start": 0.5, "end": 1.5, "width": 9999}
    manifest, made = corpus.prepare()
    assert made == ["a.mp4", "b.mp4"]
    assert corpus.files() == ["manifest.parquet", "prepared.jsonl", "videos/a.mp4", "videos/b.mp4"]
    probed = {"width": 64, "height": 32, "codec": "h264", "error": None, "start": None, "end": None}
    none = dict.fromkeys(("label", "split", "title_clean", "title_tree", "titles"))
    assert Manifest.read(corpus.out).table.to_pylist() == [
        {**probed, **corpus.rows[0], "path": "videos/a.mp4", "fps": 24.0, "frames": 48, "duration": 2.0},
        {**none, **corpus.rows[1], **probed, "path": "videos/b.mp4", "fps": 30.0, "frames": 30, "duration": 1.0},
    ]
    frames = read_frames(manifest.clips()[1], lambda _: [0.0, 0.9], lambda w, h: (w, h))
    assert make_video.numbers(frames) == [15, 42]


def test_rows_with_equal_clips_use_one_file(corpus: Corpus) -> None:
    corpus.add("c", "a.mp4", start=0.5)
    corpus.add("d", "a.mp4", start=0.0)  # as row a says it, too
    corpus.add("e", str(corpus.root / "a.mp4"), start=0.5)
    manifest, made = corpus.prepare()
    names = ["a.mp4", "b.mp4", "c.mp4", "a.mp4", "c.mp4"]
    assert [Path(path).name for path in manifest.column("path")] == names
    assert made == ["a.mp4", "b.mp4", "c.mp4"]


def test_a_source_may_be_a_url(corpus: Corpus) -> None:
    corpus.add("url", (corpus.root / "a.mp4").as_uri())
    corpus.prepare()
    one, two = (corpus.out / "videos" / name for name in ("a.mp4", "url.mp4"))
    assert one.read_bytes() == two.read_bytes()
    assert corpus.prepare()[1] == []
    os.utime(corpus.root / "a.mp4", (1, 1))
    assert corpus.prepare()[1] == ["a.mp4", "url.mp4"]


def test_a_broken_source_keeps_its_row(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    broken(corpus)
    corpus.rows = corpus.rows[::-1]
    calls: list[tuple[int, int]] = []
    with caplog.at_level(logging.WARNING):
        manifest = prepare_corpus(corpus.plan(), Here(), lambda *state: calls.append(state))
    fault, *others = manifest.column("error")
    assert fault.startswith(str(corpus.root / "bad.mp4"))
    assert others == [None, None]
    assert manifest.column("path")[0] == "videos/bad.mp4"
    assert caplog.messages == [f"broken: {fault}"]
    assert calls == [(0, 0), (1, 1), (2, 1), (3, 1)]
    assert not (corpus.out / "videos" / "bad.mp4").exists()
    assert corpus.prepare()[1] == ["bad.mp4"]  # it may have been replaced


def test_results_do_not_depend_on_processes(corpus: Corpus) -> None:
    broken(corpus)
    here, _ = corpus.prepare()
    files = {name: (corpus.out / name).read_bytes() for name in corpus.files()}
    shutil.rmtree(corpus.out)
    there = prepare_corpus(corpus.plan(), partial(transcode_locally, workers=2))
    assert there.table.equals(here.table)
    del files["prepared.jsonl"]  # its lines come as the videos are done
    assert {name: (corpus.out / name).read_bytes() for name in files} == files


def test_paths_are_the_same_from_every_folder(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus.prepare()
    monkeypatch.chdir(corpus.root)
    plan = plan_preparation(Manifest.read("manifest.parquet"), Path("out"), SMALL)
    assert plan.missing == []
    assert [request.clip.path for request in plan.requests] == [str(corpus.root / name) for name in ("a.mp4", "b.mp4")]
    assert plan.requests[0].target == corpus.out / "videos" / "a.mp4"


@pytest.mark.parametrize(
    ("change", "made"),
    [
        (lambda c: (c.out / "videos" / "a.mp4").unlink(), ["a.mp4"]),
        (lambda c: (c.out / "videos" / "b.mp4").write_bytes(b"cut"), ["b.mp4"]),
        (lambda c: os.utime(c.root / "b.mp4", (1, 1)), ["b.mp4"]),
        (lambda c: shutil.copy(c.root / "b.mp4", c.root / "a.mp4"), ["a.mp4"]),
        (lambda c: c.rows[0].update(end=1.0), ["a.mp4"]),
        (lambda c: c.rows[0].update(path="b.mp4"), ["a.mp4"]),
        (lambda c: c.rows[0].update(title="Another", split="val"), []),
        (lambda c: c.add("new", "a.mp4", start=1.0), ["new.mp4"]),
        (lambda c: (c.out / "prepared.jsonl").write_text(""), ["a.mp4", "b.mp4"]),
    ],
    ids=["lost", "cut", "touched", "replaced", "part", "path", "title", "row", "journal"],
)
def test_only_changes_are_prepared_again(corpus: Corpus, change: Callable[[Corpus], object], made: list[str]) -> None:
    corpus.prepare()
    change(corpus)
    first, again = corpus.prepare(), corpus.prepare()
    assert (first[1], again[1]) == (made, [])
    assert again[0].table.equals(first[0].table)


def test_other_settings_prepare_all_again(corpus: Corpus) -> None:
    corpus.prepare()
    assert corpus.prepare(TranscodeSettings(short_side=32, gop=8))[1] == ["a.mp4", "b.mp4"]


def test_an_interrupted_run_resumes(corpus: Corpus) -> None:
    def stop(done: int, _: int) -> None:
        if done == 1:
            (corpus.out / "videos" / ".b.mp4.partial").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_corpus(corpus.plan(), Here(), stop)
    assert corpus.files() == ["prepared.jsonl", "videos/a.mp4"]
    assert corpus.prepare()[1] == ["b.mp4"]


def test_partial_files_are_removed(corpus: Corpus) -> None:
    corpus.prepare()
    (corpus.out / "videos" / ".b.mp4.partial").write_bytes(b"half")
    with (corpus.out / "prepared.jsonl").open("a") as journal:
        journal.write('7\n{"file": "a.mp4"}\n{"file": "a.mp4", "key": "torn')
    assert corpus.prepare()[1] == []
    assert corpus.files() == ["manifest.parquet", "prepared.jsonl", "videos/a.mp4", "videos/b.mp4"]
    known = list(read_jsonl(corpus.out / "prepared.jsonl"))
    assert [entry["file"] for entry in known[:2]] == ["a.mp4", "b.mp4"]
    assert known[2:] == [7, {"file": "a.mp4"}]


def test_outdated_file_of_a_broken_source_is_removed(corpus: Corpus) -> None:
    corpus.prepare()
    (corpus.root / "a.mp4").write_bytes(b"")
    manifest, made = corpus.prepare()
    assert made == ["a.mp4"]
    assert [error is None for error in manifest.column("error")] == [False, True]
    assert corpus.files() == ["manifest.parquet", "prepared.jsonl", "videos/b.mp4"]


# --- shards --------------------------------------------------------------------------------------


def run_shard(corpus: Corpus, number: int, count: int) -> tuple[Manifest | None, list[str]]:
    engine = Here()
    plan = plan_preparation(corpus.manifest(), corpus.out, SMALL, (number, count))
    return prepare_corpus(plan, engine), engine.asked


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_shards_give_the_complete_manifest(corpus: Corpus, order: tuple[int, ...]) -> None:
    broken(corpus)
    corpus.add("c", "a.mp4", start=1.0)
    corpus.add("again", "a.mp4")
    whole, _ = corpus.prepare()
    videos = {path.name: path.read_bytes() for path in (corpus.out / "videos").iterdir()}
    shutil.rmtree(corpus.out)
    made = {}
    for number in order:
        assert not (corpus.out / "manifest.parquet").exists()
        manifest, made[number] = run_shard(corpus, number, 3)
    assert made == {1: ["a.mp4", "c.mp4"], 2: ["b.mp4"], 3: ["bad.mp4"]}
    assert manifest is not None
    assert manifest.table.equals(whole.table)
    assert Manifest.read(corpus.out).table.equals(whole.table)
    assert {path.name: path.read_bytes() for path in (corpus.out / "videos").iterdir()} == videos
    assert run_shard(corpus, 1, 3)[1] == []
    assert corpus.prepare()[1] == ["bad.mp4"]  # a run without shards tries broken sources again


SHARD = """
import sys
from functools import partial
from pathlib import Path
from crosspair.corpora import Manifest
from crosspair.corpora.prepare import plan_preparation, prepare_corpus, transcode_locally
from crosspair.corpora.transcode import TranscodeSettings
plan = plan_preparation(Manifest.read(sys.argv[1]), Path(sys.argv[2]), TranscodeSettings(32), (int(sys.argv[3]), 2))
prepare_corpus(plan, partial(transcode_locally, workers=1))
"""


def test_shards_run_at_the_same_time(corpus: Corpus) -> None:
    for number in range(6):
        corpus.add(f"part {number}", "b.mp4", start=number / 10)
    manifest = corpus.manifest().path
    arguments = [sys.executable, "-c", SHARD, str(manifest), str(corpus.out)]
    processes = [subprocess.Popen([*arguments, number]) for number in "12"]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(Manifest.read(corpus.out)) == 8
    assert corpus.prepare()[1] == []


def test_a_run_without_shards_completes_those_that_are_missing(corpus: Corpus) -> None:
    assert run_shard(corpus, 2, 2) == (None, ["b.mp4"])
    assert corpus.prepare()[1] == ["a.mp4"]
    (corpus.out / "videos" / "a.mp4").unlink()
    assert run_shard(corpus, 2, 2) == (None, [])
    assert run_shard(corpus, 1, 2)[1] == ["a.mp4"]


def test_a_shard_keeps_partial_files_of_others(corpus: Corpus) -> None:
    (corpus.out / "videos").mkdir(parents=True)
    (corpus.out / "prepared.jsonl").touch()
    for name in "ab":
        (corpus.out / "videos" / f".{name}.mp4.partial").touch()
    run_shard(corpus, 1, 2)
    assert {path.name for path in (corpus.out / "videos").iterdir()} == {"a.mp4", ".b.mp4.partial"}


def test_only_other_shards_run_at_the_same_time(corpus: Corpus) -> None:
    corpus.out.mkdir()
    process = hold(corpus.out / f"{LOCK}-1-of-2")
    for run in (lambda: run_shard(corpus, 1, 2), corpus.prepare):
        with pytest.raises(RunError, match=str(corpus.out)):
            run()
    assert run_shard(corpus, 2, 2)[1] == ["b.mp4"]
    process.communicate()
    assert run_shard(corpus, 1, 2)[1] == ["a.mp4"]


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (-1, -1)])
def test_invalid_shard(corpus: Corpus, shard: tuple[int, int]) -> None:
    with pytest.raises(ManifestError, match=f"{shard[0]}/{shard[1]}"):
        run_shard(corpus, *shard)


# --- what goes wrong around it ------------------------------------------------------------------


def test_a_full_disk_and_resuming(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    real = run_request

    def full(request: TranscodeRequest) -> TranscodeOutcome:
        if request.target.name == "b.mp4":
            monkeypatch.setattr(os, "fsync", no_space)
        return real(request)

    with monkeypatch.context() as patch:
        patch.setattr(f"{__name__}.run_request", full)
        with pytest.raises(RunError) as caught:
            prepare_corpus(corpus.plan(), Here())
        monkeypatch.undo()
    assert str(caught.value).startswith(str(corpus.out / "videos" / "b.mp4"))
    assert "No space left on device" in str(caught.value)
    assert corpus.files() == ["prepared.jsonl", "videos/a.mp4"]
    assert corpus.prepare()[1] == ["b.mp4"]


def no_space(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_an_error_or_crash_fails_only_its_file(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(clip: Clip, settings: TranscodeSettings) -> bytes:
        raise ValueError("never seen before\nsecond line")

    with monkeypatch.context() as patch:
        patch.setattr("crosspair.corpora.prepare.transcode", fail)
        assert "never seen before)" in corpus.prepare()[0].column("error")[0]
    monkeypatch.setattr("crosspair.corpora.prepare.run_request", dying.attempt)
    broken(corpus)
    manifest = prepare_corpus(corpus.plan(), partial(transcode_locally, workers=1))
    *others, error = manifest.column("error")
    assert others == [None, None]
    assert str(corpus.root / "bad.mp4") in error
    assert "signal 11" in error


def test_one_run_at_a_time(corpus: Corpus) -> None:
    plan = corpus.plan()
    corpus.out.mkdir()
    process = hold(corpus.out / LOCK)
    with pytest.raises(RunError, match=str(corpus.out)):
        prepare_corpus(plan, Here())
    process.communicate()
    assert len(prepare_corpus(plan, Here())) == 2


def test_invalid_folders(corpus: Corpus) -> None:
    def refused(message: str) -> None:
        before = sorted(corpus.root.rglob("*"))
        with pytest.raises(ManifestError, match=message):
            corpus.plan()
        assert sorted(corpus.root.rglob("*")) == before

    corpus.manifest()
    corpus.out = corpus.root
    refused(str(corpus.root))
    corpus.out = corpus.root / "x" / ".."
    corpus.out.parent.mkdir()
    refused(str(corpus.out))
    corpus.out = corpus.root / "a.mp4"
    refused(r"a\.mp4")
    corpus.out = Path("s3://bucket/out")
    refused("s3:/bucket/out")
    for name in ("manifest.parquet", "videos/mine.mp4", "prepared.jsonl"):
        corpus.out = corpus.root / Path(name).stem
        (corpus.out / name).parent.mkdir(parents=True)
        (corpus.out / name).write_bytes(b"mine")
        refused(str(corpus.out))


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_sources_are_never_overwritten(corpus: Corpus, link: Callable[..., None]) -> None:
    corpus.prepare()
    link(corpus.out / "videos" / "a.mp4", corpus.root / "c.mp4")
    corpus.add("c", "c.mp4")
    with pytest.raises(ManifestError, match=r"c\.mp4 .*videos"):
        corpus.plan()


def test_a_folder_that_cannot_be_written(corpus: Corpus) -> None:
    plan = corpus.plan()
    corpus.out.write_text("in the way")
    with pytest.raises(RunError, match=r"out/.*(File exists|Not a directory)"):
        prepare_corpus(plan, Here())


def test_an_estimate_writes_nothing_and_counts_what_is_missing(corpus: Corpus) -> None:
    for number in range(6):
        corpus.add(f"part {number}", "b.mp4", start=number / 10)
    broken(corpus)
    found = estimate_cost(corpus.plan(), Here(), sample=100)
    assert not corpus.out.exists()
    corpus.prepare()
    size = sum(p.stat().st_size for p in (corpus.out / "videos").iterdir())
    assert found == PreparationEstimate(8, 8, 1, found.work, size)
    assert found.work > 0
    assert estimate_cost(corpus.plan(), Here(), sample=100).missing == 1
    corpus.out = corpus.root / "other"
    first, again = (estimate_cost(corpus.plan(), Here(), sample=3) for _ in range(2))
    assert (first.sampled, first.size) == (again.sampled, again.size)
    assert first.sampled == 3


# --- names of files -----------------------------------------------------------------------------


@given(st.lists(st.text(min_size=1), unique=True))
def test_names_are_safe_and_unique(pair_ids: list[str]) -> None:
    names = file_names(pair_ids)
    assert len({name.casefold() for name in names}) == len(pair_ids)
    for name in names:
        assert name.isascii()
        assert not set(name) & set('/\\:*?"<>| \0\n')
        assert 0 < len(name) <= 97
        assert name[0] not in ".-"
    order = np.random.default_rng(0).permutation(len(pair_ids))
    assert file_names([pair_ids[i] for i in order]) == [names[i] for i in order]


@pytest.mark.parametrize(
    ("pair_ids", "begin"),
    [
        (["v_Rowing_g01_c01", "x.y"], ["v_Rowing_g01_c01", "x.y"]),
        (["../etc/passwd", "-rf"], ["etc_passwd-", "rf-"]),
        (["Abc", "aBC"], ["Abc-", "aBC-"]),
        (["é", "漢字", "a" * 300], ["e-", "clip-", "a" * 80 + "-"]),
        (["a-0123456789abcdef"], ["a-0123456789abcdef-"]),
    ],
)
def test_names_are_readable(pair_ids: list[str], begin: list[str]) -> None:
    for name, start in zip(file_names(pair_ids), begin, strict=True):
        assert name.startswith(start)
        assert name == start or len(name) == len(start) + 16
