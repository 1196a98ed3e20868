"""Cached features: computed once, resumed bit-identically, checked before reuse."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.corpora.manifest import fingerprint
from crosspair.errors import RunError, VideoError
from crosspair.evaluation import Features, cached_features, extract_features, load_features
from crosspair.models import CPD
from tests.evaluation.conftest import BROKEN, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"clips": 3, "batch_size": 3, "workers": 0, "precision": "fp32"}


def cached(model: CPD, manifest: Manifest, folder: Path, **options) -> Features:
    return cached_features(model, manifest, folder, **{**OPTIONS, **options})


def same(one: Features, other: Features) -> bool:
    return (
        torch.equal(one.rows, other.rows)
        and torch.equal(one.visual, other.visual)
        and torch.equal(one.embedding, other.embedding)
        and one.failures == other.failures
        and one.clips == other.clips
    )


def stop_after(videos: int):
    """Return a progress callback that raises KeyboardInterrupt after a number of videos."""

    def progress(done: int, total: int) -> None:
        if done >= videos * OPTIONS["clips"]:
            raise KeyboardInterrupt

    return progress


def forbid_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*arguments: object) -> None:
        raise AssertionError("features were computed again")

    monkeypatch.setattr(CPD, "encode_video", encode)


def test_what_is_in_the_folder_is_what_the_model_gives(model: CPD, manifest: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "features"
    found = cached(model, manifest, folder)
    assert same(found, extract_features(model, manifest, **OPTIONS))
    assert same(found, load_features(folder))
    assert sorted(path.name for path in folder.iterdir()) == [
        "features.safetensors", "index.parquet",
    ]  # fmt: skip


def test_the_index_names_every_row(model: CPD, manifest: Manifest, tmp_path: Path) -> None:
    cached(model, manifest, tmp_path / "f")
    index = pq.read_table(tmp_path / "f" / "index.parquet")
    assert index["row"].to_pylist() == list(range(6))
    assert index["pair_id"].to_pylist() == manifest.column("pair_id")
    assert index["clips"].to_pylist() == [3, 3, 3, 0, 3, 3]
    errors = index["error"].to_pylist()
    assert [row for row, error in enumerate(errors) if error] == [BROKEN]
    assert f"{BROKEN}.mp4" in errors[BROKEN]
    spec = json.loads(index.schema.metadata[b"crosspair"])
    assert (spec["model"], spec["clips"], spec["precision"]) == (model.hash, 3, "fp32")
    with safe_open(tmp_path / "f" / "features.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["crosspair"]) == spec


def test_the_second_time_nothing_is_computed(
    model: CPD, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached(model, manifest, tmp_path / "f")
    forbid_encoding(monkeypatch)
    assert same(cached(model, manifest, tmp_path / "f"), first)


@pytest.mark.parametrize("batch_size", [3, 6])
def test_an_interrupted_extraction_resumes_bit_identically(
    model: CPD, manifest: Manifest, tmp_path: Path, batch_size: int, monkeypatch
) -> None:
    whole = cached(model, manifest, tmp_path / "whole", batch_size=batch_size)
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        cached(model, manifest, folder, batch_size=batch_size, progress=stop_after(3))
    assert not (folder / "index.parquet").exists()
    with pytest.raises(RunError, match=f"{folder} "):
        load_features(folder)
    encoded: list[int] = []
    encode = CPD.encode_video

    def counted(self: CPD, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        encoded.append(len(clips))
        return encode(self, clips)

    monkeypatch.setattr(CPD, "encode_video", counted)
    counts: list[int] = []
    resumed = cached(model, manifest, folder, batch_size=batch_size, progress=lambda done, _: counts.append(done))
    assert same(resumed, whole)
    assert 0 < sum(encoded) < 5 * OPTIONS["clips"]
    assert counts[-1] == 6 * OPTIONS["clips"]
    assert counts[0] >= 3 * OPTIONS["clips"]


def test_a_kill_loses_nothing_that_is_encoded(
    model: CPD, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def progress(done: int, total: int) -> None:
        lines = (tmp_path / "f" / "parts" / "0.jsonl").read_text().splitlines()
        written.append(len([line for line in lines if line]))
        stop_after(5)(done, total)

    with pytest.raises(KeyboardInterrupt):
        cached(model, manifest, tmp_path / "f", progress=progress)
    assert written == [1, 2, 3, 4, 5]
    assert same(cached(model, manifest, tmp_path / "f"), extract_features(model, manifest, **OPTIONS))


def test_another_batch_size_resumes_too(model: CPD, manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cached(model, manifest, tmp_path / "f", progress=stop_after(3))
    found = cached(model, manifest, tmp_path / "f", batch_size=12)
    whole = extract_features(model, manifest, **OPTIONS)
    assert torch.equal(found.rows, whole.rows)
    torch.testing.assert_close(found.visual, whole.visual, atol=1e-5, rtol=1e-4)


def test_a_kill_while_files_are_put_together_loses_nothing(
    model: CPD, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("crosspair.evaluation.feature_cache.pq.write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            cached(model, manifest, tmp_path / "f")
    whole = extract_features(model, manifest, **OPTIONS)
    forbid_encoding(monkeypatch)
    assert same(cached(model, manifest, tmp_path / "f"), whole)


def changed(manifest: Manifest, row: int, **values: object) -> Manifest:
    rows = manifest.table.to_pylist()
    rows[row].update(values)
    return manifest_from_rows(rows, manifest.path)


def test_labels_and_titles_may_change(
    model: CPD, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached(model, manifest, tmp_path / "f")
    forbid_encoding(monkeypatch)
    other = changed(manifest, 0, label="cat", title="a cat", split="test")
    assert other.hash != manifest.hash
    assert same(cached(model, other, tmp_path / "f"), first)


def test_other_files_of_the_same_names_are_other_videos(model: CPD, manifest: Manifest, tmp_path: Path) -> None:
    other = tmp_path / "larger"
    shutil.copytree(manifest.path.parent, other)
    same_files = manifest_from_rows(manifest.table.to_pylist(), other / manifest.path.name)
    assert fingerprint(same_files) == fingerprint(manifest)
    with Path(same_files.clips()[0].path).open("ab") as file:
        file.write(b"1")
    larger = manifest_from_rows(manifest.table.to_pylist(), same_files.path)
    assert larger.hash == manifest.hash
    assert fingerprint(larger) != fingerprint(manifest)


def test_a_row_found_broken_since_is_skipped(model: CPD, manifest: Manifest, tmp_path: Path) -> None:
    first = cached(model, manifest, tmp_path / "f")
    found = cached(model, changed(manifest, 1, error="cut short"), tmp_path / "f")
    assert found.rows.tolist() == [0, 2, 4, 5]
    assert torch.equal(found.visual, first.visual[first.rows != 1])
    assert found.failures[0] == ("p1", "cut short")


def test_a_row_found_broken_while_it_was_stopped_is_skipped(model: CPD, manifest: Manifest, tmp_path: Path) -> None:
    whole = cached(model, manifest, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        cached(model, manifest, tmp_path / "f", progress=stop_after(3))
    found = cached(model, changed(manifest, 1, error="cut short"), tmp_path / "f")
    assert found.rows.tolist() == [0, 2, 4, 5]
    assert torch.equal(found.visual, whole.visual[whole.rows != 1])
    assert found.failures[0] == ("p1", "cut short")


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("what", ["model", "videos", "clips"])
def test_features_of_something_else_are_refused(
    model: CPD, manifest: Manifest, tmp_path: Path, what: str, whole: bool
) -> None:
    folder = tmp_path / "f"
    if whole:
        cached(model, manifest, folder)
    else:
        with pytest.raises(KeyboardInterrupt):
            cached(model, manifest, folder, progress=stop_after(3))
    other = tiny_model(1)
    message, call = {
        "model": (rf"model {model.hash}, not {other.hash}", lambda: cached(other, manifest, folder)),
        "videos": (r"videos \w+, not \w+", lambda: cached(model, changed(manifest, 0, end=1.0), folder)),
        "clips": ("clips 3, not 4", lambda: cached(model, manifest, folder, clips=4)),
    }[what]
    with pytest.raises(RunError, match=rf"/f .*{message}"):
        call()


def test_another_form_of_clips_is_another_protocol(model: CPD, manifest: Manifest, tmp_path: Path) -> None:
    cached(model, manifest, tmp_path / "f")
    model.clip = dataclasses.replace(model.clip, frames=4)
    with pytest.raises(RunError, match="frames 2, not 4"):
        cached(model, manifest, tmp_path / "f")


def test_a_folder_of_something_else_is_not_touched(model: CPD, manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=f"{tmp_path} "):
        cached(model, manifest, tmp_path)
    with pytest.raises(RunError, match=r"notes\.txt "):
        cached(model, manifest, tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_no_video_that_can_be_read(model: CPD, manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"3\.mp4"):
        cached(model, manifest.take([BROKEN]), tmp_path / "f")
    assert not [path for path in (tmp_path / "f").rglob("*") if path.is_file()]


@pytest.mark.parametrize("left", [0, 1, 20, -1, -30])
def test_torn_journal_entries_are_encoded_again(model: CPD, manifest: Manifest, tmp_path: Path, left: int) -> None:
    whole = cached(model, manifest, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        cached(model, manifest, tmp_path / "f", progress=stop_after(3))
    (part,) = (tmp_path / "f" / "parts").glob("*.jsonl")
    part.write_bytes(part.read_bytes()[:left] + b'\n7\n[0, "a", "b", ""]\n')
    assert same(cached(model, manifest, tmp_path / "f"), whole)


def test_an_unreadable_journal_is_an_error(model: CPD, manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cached(model, manifest, tmp_path / "f", progress=stop_after(3))
    (part,) = (tmp_path / "f" / "parts").glob("*.jsonl")
    part.unlink()
    part.mkdir()
    with pytest.raises(RunError, match=r"0\.jsonl .*Is a directory"):
        cached(model, manifest, tmp_path / "f")
    part.rmdir()
    assert len(cached(model, manifest, tmp_path / "f").rows) == 5


def test_damaged_files_are_errors(model: CPD, manifest: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    cached(model, manifest, folder)
    tensors = folder / "features.safetensors"
    kept = load_file(tensors)
    save_file({"visual": kept["visual"][:2].clone(), "embedding": kept["embedding"]}, tensors)
    with pytest.raises(RunError, match=r"features\.safetensors .*index\.parquet"):
        load_features(folder)
    tensors.unlink()
    with pytest.raises(RunError, match=r"features\.safetensors "):
        load_features(folder)
    (folder / "index.parquet").write_text("no table")
    with pytest.raises(RunError, match=r"index\.parquet "):
        cached(model, manifest, folder)


def test_a_full_disk_is_an_error(
    model: CPD, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("crosspair.evaluation.feature_cache.save_file", full)
    with pytest.raises(RunError, match=r"/features\.safetensors .*No space left"):
        cached(model, manifest, tmp_path / "f")
