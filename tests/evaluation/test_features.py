"""Features of whole videos; folders of features: computed once, resumed, checked before reuse."""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from crosspair.config import Clip
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.corpora.manifest import fingerprint
from crosspair.distributed import World
from crosspair.errors import RunError, VideoError
from crosspair.evaluation import Features, cached_features, embed_texts, extract_features, features, load_features
from crosspair.evaluation.features import shard_batches
from crosspair.models import CPD
from crosspair.models.resnet3d import FoldedResNet3d
from crosspair.video.views import load_view
from tests.evaluation.conftest import BROKEN, centre_view, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def extracted(model: CPD, manifest: Manifest, **options):
    given = {"clips": 3, "batch_size": 4, "workers": 0, "precision": "fp32"}
    return extract_features(model, manifest, **{**given, **options})


@torch.no_grad()
def by_hand(model: CPD, clip: Clip, positions: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    visual, embedding = [], []
    for position in positions:
        pixels = load_view(clip, centre_view(position, model.clip), model.clip)
        of_clip, f_v = model.encode_video(torch.from_numpy(pixels).permute(3, 0, 1, 2)[None])
        visual.append(of_clip[0])
        embedding.append(f_v[0])
    mean = sum(embedding) / len(positions)
    return sum(visual) / len(positions), mean / mean.norm()


@pytest.mark.parametrize(("clips", "positions"), [(3, [0.0, 0.5, 1.0]), (1, [0.5])])
def test_features_are_the_mean_over_uniform_clips(
    model: CPD, manifest: Manifest, clips: int, positions: list[float]
) -> None:
    found = extracted(model.eval(), manifest, clips=clips)
    assert found.clips == clips
    for row, visual, embedding in zip(found.rows.tolist(), found.visual, found.embedding, strict=True):
        expected = by_hand(model, manifest.clips()[row], positions)
        torch.testing.assert_close(visual, expected[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(embedding, expected[1], atol=1e-5, rtol=1e-4)


def test_broken_videos_are_left_out_and_named(model: CPD, manifest: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    rows = manifest.table.to_pylist()
    rows[1]["error"] = "cut short"
    with caplog.at_level(logging.WARNING):
        found = extracted(model, manifest_from_rows(rows, manifest.path))
    assert found.rows.tolist() == [0, 2, 4, 5]
    assert len(found.visual) == len(found.embedding) == 4
    known, (pair_id, message) = found.failures
    assert known == ("p1", "cut short")
    assert pair_id == "p3"
    assert "3.mp4" in message
    assert "p3" in caplog.text


def test_a_video_that_fails_in_part_does_not_count(
    model: CPD, manifest: Manifest, tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    cut = make_video(tmp_path / "cut.webm", frames=200)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    whole = manifest.clips()[0].path
    rows = [{"pair_id": Path(p).name, "path": str(p), "title": ""} for p in (cut, whole)]
    load_view(Clip(str(cut)), centre_view(0.0, model.clip), model.clip)  # its beginning is there
    found = extracted(model, manifest_from_rows(rows, "m"))
    assert found.rows.tolist() == [1]
    assert [pair_id for pair_id, _ in found.failures] == ["cut.webm"]


def test_none_that_can_be_read_is_a_fault(model: CPD, manifest: Manifest) -> None:
    model.train()
    with pytest.raises(VideoError, match=r"3\.mp4"):
        extracted(model, manifest.take([BROKEN]))
    assert model.training
    with pytest.raises(VideoError, match="0 videos"):
        extracted(model, manifest.take([]))


@given(videos=st.integers(0, 60), clips=st.integers(1, 12), batch=st.integers(1, 40), size=st.integers(1, 5))
def test_processes_share_the_groups_of_one(videos: int, clips: int, batch: int, size: int) -> None:
    rows = list(range(3, 3 + videos))
    whole = shard_batches(rows, clips, batch, World())
    assert [row for group in whole for row in group] == rows
    of_all = [shard_batches(rows, clips, batch, World(rank, size)) for rank in range(size)]
    assert sorted(group for of_one in of_all for group in of_one) == whole
    assert all(len(group) * clips <= max(batch, clips) for group in whole)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_a_video_may_be_larger_than_a_batch(
    model: CPD, manifest: Manifest, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = extracted(model, manifest, clips=4, batch_size=100)
    largest: list[int] = []
    encode = CPD.encode_video

    def watched(self: CPD, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        largest.append(len(clips))
        return encode(self, clips)

    monkeypatch.setattr(CPD, "encode_video", watched)
    found = extracted(model, manifest, clips=4, batch_size=batch_size)
    assert max(largest) <= batch_size
    assert found.failures == whole.failures
    torch.testing.assert_close(found.visual, whole.visual, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.embedding, whole.embedding, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_bfloat16_the_networks_fastest_form_computes(
    model: CPD, manifest: Manifest, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def watched(self: FoldedResNet3d, clips: torch.Tensor) -> torch.Tensor:
        calls.append(len(clips))
        return torch.zeros(len(clips), model.video_encoder.features)

    monkeypatch.setattr(FoldedResNet3d, "__call__", watched)
    monkeypatch.setattr("crosspair.models.resnet3d._has_bfloat16_convolutions", lambda: True)
    found = extracted(model, manifest, clips=2, precision=precision)
    assert bool(calls) == (precision == "bf16")
    assert bool(found.visual.any()) == (precision == "fp32")


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_it_was_module_by_module(model: CPD, manifest: Manifest, training: bool) -> None:
    # Stage I: all is trained but the language model, which stays without dropout.
    model.train(training)
    model.text_encoder.eval()
    modes = [module.training for module in model.modules()]
    before = {name: values.clone() for name, values in model.state_dict().items()}
    extracted(model, manifest)
    embed_texts(model, ["a dog", "a cat"])
    assert [module.training for module in model.modules()] == modes
    for name, values in model.state_dict().items():
        assert torch.equal(values, before[name]), name


def test_texts_are_embedded_in_eval_mode_whatever_the_batch(model: CPD) -> None:
    texts = ["a dog", "a cat", "dog and cat", "nothing"]
    with torch.no_grad():
        expected = model.eval().encode_text(texts)
    found = embed_texts(model.train(), texts, batch_size=3)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(F.normalize(found, dim=1), found)
    assert embed_texts(model, []).shape == (0, 8)


# --- folders of features ------------------------------------------------------------------------

OPTIONS = {"clips": 3, "batch_size": 3, "workers": 0, "precision": "fp32"}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD_VIDEOS", 2)
    monkeypatch.setattr(features, "SHARD_SECONDS", 1000.0)


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


def stop_after(videos: int, stop: Callable[[], None] | None = None):
    """Return a progress callback that interrupts the process after a number of videos."""

    def progress(done: int, total: int) -> None:
        if done >= videos * OPTIONS["clips"]:
            if stop:
                stop()
            raise KeyboardInterrupt

    return progress


def interrupt(model: CPD, manifest: Manifest, folder: Path, **options) -> None:
    """Compute some of the features: with one video per batch, two of them are in a shard."""
    with pytest.raises(KeyboardInterrupt):
        cached(model, manifest, folder, progress=stop_after(3), **options)


def count_clips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    encoded: list[int] = []
    encode = CPD.encode_video

    def counted(self: CPD, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        encoded.append(len(clips))
        return encode(self, clips)

    monkeypatch.setattr(CPD, "encode_video", counted)
    return encoded


def test_the_folder_has_the_features_and_an_index(model: CPD, manifest: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "features"
    found = cached(model, manifest, folder)
    assert same(found, extract_features(model, manifest, **OPTIONS))
    assert same(found, load_features(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["features.safetensors", "index.parquet"]
    index = pq.read_table(folder / "index.parquet")
    assert index["row"].to_pylist() == list(range(6))
    assert index["pair_id"].to_pylist() == manifest.column("pair_id")
    assert index["clips"].to_pylist() == [3, 3, 3, 0, 3, 3]
    errors = index["error"].to_pylist()
    assert [row for row, error in enumerate(errors) if error] == [BROKEN]
    assert f"{BROKEN}.mp4" in errors[BROKEN]
    spec = json.loads(index.schema.metadata[b"crosspair"])
    assert (spec["model"], spec["clips"], spec["precision"]) == (model.hash, 3, "fp32")
    with safe_open(folder / "features.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["crosspair"]) == spec


@pytest.mark.parametrize("batch_size", [3, 9])
def test_an_interrupted_extraction_resumes_bit_identically(
    model: CPD, manifest: Manifest, tmp_path: Path, batch_size: int, monkeypatch
) -> None:
    whole = cached(model, manifest, tmp_path / "whole", batch_size=batch_size)
    folder = tmp_path / "stopped"
    interrupt(model, manifest, folder, batch_size=batch_size)
    with pytest.raises(RunError, match=f"{folder} "):
        load_features(folder)
    encoded, counts = count_clips(monkeypatch), list[int]()
    resumed = cached(model, manifest, folder, batch_size=batch_size, progress=lambda done, _: counts.append(done))
    assert same(resumed, whole)
    if batch_size == 3:  # one video per batch
        assert sum(encoded) == 3 * OPTIONS["clips"]
        assert counts == [9, 12, 15, 18]


@pytest.mark.parametrize(("videos", "seconds", "lost"), [(2, 1000.0, 3), (100, 0.0, 2)])
def test_shards_of_a_killed_process_are_kept(
    model: CPD,
    manifest: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    videos: int,
    seconds: float,
    lost: int,
) -> None:
    monkeypatch.setattr(features, "SHARD_VIDEOS", videos)
    monkeypatch.setattr(features, "SHARD_SECONDS", seconds)
    process = multiprocessing.get_context("fork").Process(target=kill_itself, args=(model, manifest, tmp_path / "f"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    whole, encoded = extract_features(model, manifest, **OPTIONS), count_clips(monkeypatch)
    assert same(cached(model, manifest, tmp_path / "f"), whole)
    assert sum(encoded) == lost * OPTIONS["clips"]


def kill_itself(model: CPD, manifest: Manifest, folder: Path) -> None:
    cached(model, manifest, folder, progress=stop_after(3, lambda: os.kill(os.getpid(), signal.SIGKILL)))


def test_a_kill_while_files_are_put_together_loses_nothing(
    model: CPD, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(features, "save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            cached(model, manifest, tmp_path / "f")
    whole, encoded = extract_features(model, manifest, **OPTIONS), count_clips(monkeypatch)
    assert same(cached(model, manifest, tmp_path / "f"), whole)
    assert not encoded


def changed(manifest: Manifest, row: int, **values: object) -> Manifest:
    rows = manifest.table.to_pylist()
    rows[row].update(values)
    return manifest_from_rows(rows, manifest.path)


def test_features_are_computed_once_whatever_labels_and_titles(
    model: CPD, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached(model, manifest, tmp_path / "f")
    encoded = count_clips(monkeypatch)
    other = changed(manifest, 0, label="cat", title="a cat", split="test")
    assert other.hash != manifest.hash
    assert same(cached(model, other, tmp_path / "f"), first)
    assert not encoded


def test_other_files_of_the_same_names_are_other_videos(manifest: Manifest, tmp_path: Path) -> None:
    other = tmp_path / "larger"
    shutil.copytree(manifest.path.parent, other)
    same_files = manifest_from_rows(manifest.table.to_pylist(), other / manifest.path.name)
    assert fingerprint(same_files) == fingerprint(manifest)
    with Path(same_files.clips()[0].path).open("ab") as file:
        file.write(b"1")
    larger = manifest_from_rows(manifest.table.to_pylist(), same_files.path)
    assert larger.hash == manifest.hash
    assert fingerprint(larger) != fingerprint(manifest)


@pytest.mark.parametrize("complete", [True, False])
def test_a_row_found_broken_since_is_skipped(model: CPD, manifest: Manifest, tmp_path: Path, complete: bool) -> None:
    whole = cached(model, manifest, tmp_path / "whole")
    if not complete:
        interrupt(model, manifest, tmp_path / "f")
    folder = tmp_path / ("whole" if complete else "f")
    found = cached(model, changed(manifest, 1, error="cut short"), folder)
    assert found.rows.tolist() == [0, 2, 4, 5]
    assert torch.equal(found.visual, whole.visual[whole.rows != 1])
    assert found.failures[0] == ("p1", "cut short")


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("what", ["model", "videos", "clips", "frames"])
def test_features_of_something_else_are_refused(
    model: CPD, manifest: Manifest, tmp_path: Path, what: str, complete: bool
) -> None:
    folder, options = tmp_path / "f", {}
    cached(model, manifest, folder) if complete else interrupt(model, manifest, folder)
    if what == "model":
        model = tiny_model(1)
    elif what == "videos":
        manifest = changed(manifest, 0, end=1.0)
    elif what == "clips":
        options = {"clips": 4}
    else:
        model.clip = dataclasses.replace(model.clip, frames=4)
    with pytest.raises(RunError, match=rf"/f .*\({what} \w+, not \w+\)"):
        cached(model, manifest, folder, **options)


def test_a_folder_of_something_else_is_not_touched(model: CPD, manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(RunError, match=f"{path} "):
            cached(model, manifest, path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_no_video_that_can_be_read(model: CPD, manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"3\.mp4"):
        cached(model, manifest.take([BROKEN]), tmp_path / "f")
    assert not [path for path in (tmp_path / "f").rglob("*") if path.is_file()]


def test_damaged_files_are_errors(model: CPD, manifest: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    interrupt(model, manifest, folder)
    (shard,) = (folder / "parts").glob("*.parquet")
    kept = shard.read_bytes()
    shard.write_bytes(kept[:100])
    with pytest.raises(RunError, match=rf"{shard.name} "):
        cached(model, manifest, folder)
    shard.write_bytes(kept)
    cached(model, manifest, folder)
    tensors = folder / "features.safetensors"
    vectors = load_file(tensors)
    save_file({"visual": vectors["visual"][:2].clone(), "embedding": vectors["embedding"]}, tensors)
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

    monkeypatch.setattr(features, "save_file", full)
    with pytest.raises(RunError, match=r"/features\.safetensors .*No space left"):
        cached(model, manifest, tmp_path / "f")
