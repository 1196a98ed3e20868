"""The Python API: inputs, results and errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import crosspair
from crosspair.corpora import Clip, manifest_from_rows
from crosspair.errors import CrosspairError, ManifestError, ModelError, RecipeError, RunError, TextError, VideoError
from crosspair.evaluation import class_embeddings
from crosspair.inference import write_embeddings
from crosspair.library import InferenceEngine
from crosspair.video.decode import read_frames
from tests.evaluation.conftest import tiny_model


@pytest.fixture(scope="module")
def model() -> crosspair.Model:
    return crosspair.Model(InferenceEngine(tiny_model().eval(), torch.device("cpu"), "fp32", batch_size=8, workers=0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seconds in (1, 2, 4):
        make_video(folder / f"{seconds}.mp4", frames=30 * seconds)
    (folder / "broken.avi").write_text("no video")
    return folder


def test_importing_is_cheap() -> None:
    check = "import sys, crosspair; sys.exit('torch' in sys.modules or not callable(crosspair.load))"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
    assert all(getattr(crosspair, name) for name in crosspair.__all__)
    assert set(crosspair.__all__) <= set(dir(crosspair))
    with pytest.raises(AttributeError, match="lod"):
        crosspair.lod  # noqa: B018


def test_files_folders_manifests_and_arrays(model: crosspair.Model, folder: Path) -> None:
    rows = [{"pair_id": "p", "path": "2.mp4", "title": "x", "start": 0.5}]
    manifest = manifest_from_rows(rows, folder / "m.parquet").write(folder / "m.parquet")
    frames = read_frames(Clip(str(folder / "4.mp4")), lambda _: np.arange(120) / 30, lambda w, h: (w, h))
    found = model.embed_videos([str(folder / "1.mp4"), folder, manifest.path, frames], clips=3)
    names = [str(folder / f"{seconds}.mp4") for seconds in (1, 2, 4)]
    assert found.ids == [*names, "p", "array 0"]
    assert found.spans[3:] == [(0.5, None), (None, None)]
    assert found.visual.shape == (5, 32)
    assert found.embedding.dtype == torch.float32
    torch.testing.assert_close(found.embedding.norm(dim=1), torch.ones(5))
    ((name, reason),) = found.failures
    assert name == str(folder / "broken.avi")
    assert reason
    torch.testing.assert_close(found.embedding[4], found.embedding[2], atol=0.02, rtol=0)
    one = model.embed_videos(folder / "2.mp4", clips=3)
    torch.testing.assert_close(one.embedding[0], found.embedding[1], atol=1e-5, rtol=0)


def test_windows_of_files_and_arrays(model: crosspair.Model, folder: Path) -> None:
    windows = crosspair.Windows(2, 1)
    found = model.embed_videos([folder / "4.mp4", folder / "broken.avi"], windows=windows)
    assert found.ids == [str(folder / "4.mp4")] * 3
    assert found.spans == [(0, 2), (1, 3), (2, 4)]
    assert [name for name, _ in found.failures] == [str(folder / "broken.avi")]
    array = model.embed_videos(np.zeros((75, 40, 50, 3), np.uint8), windows=windows)
    assert array.spans == [(0, 2.5)]


def test_classes_by_the_nearest_name(model: crosspair.Model, folder: Path) -> None:
    found = model.classify(folder, ["dog", "cat"], templates=["{}", "a {}"], clips=2)
    names = class_embeddings(model.engine.model, ["dog", "cat"], ["{}", "a {}"])
    videos = model.embed_videos(folder, clips=2).embedding
    torch.testing.assert_close(found.cosines, videos @ names.T)
    torch.testing.assert_close(found.scores.sum(dim=1), torch.ones(3))
    ratio = torch.exp((found.cosines[0, 0] - found.cosines[0, 1]) / 0.07)
    torch.testing.assert_close(found.scores[0, 0] / found.scores[0, 1], ratio, rtol=1e-3, atol=0)
    for (name, ranked, timeline), row in zip(found.videos(), range(3), strict=True):
        assert (name, timeline) == (found.ids[row], [])
        assert ranked[0] == (
            ["dog", "cat"][found.cosines[row].argmax()],
            pytest.approx(float(found.scores[row].max()), rel=1e-5),
        )
        assert ranked[0][1] >= ranked[1][1]


def test_a_timeline_covers_the_video(model: crosspair.Model, folder: Path) -> None:
    found = model.classify(folder / "4.mp4", ["dog", "cat"], windows=crosspair.Windows(2, 1))
    ((name, ranked, timeline),) = found.videos()
    assert name == str(folder / "4.mp4")
    assert {label for label, _ in ranked} == {"dog", "cat"}
    assert (timeline[0].start, timeline[-1].end) == (0, 4)


def test_without_windows_only_segments_have_a_timeline(model: crosspair.Model, folder: Path) -> None:
    rows = [{"pair_id": "whole", "path": "4.mp4"},
            {"pair_id": "part", "path": "4.mp4", "start": 1.0, "end": 3.0}]  # fmt: skip
    found = model.classify(manifest_from_rows(rows, folder / "parts.parquet"), ["dog"], clips=2)
    timelines = {name: timeline for name, _, timeline in found.videos()}
    assert timelines["whole"] == []
    assert [(each.start, each.end) for each in timelines["part"]] == [(1.0, 3.0)]


def test_a_model_without_a_text_tower(folder: Path) -> None:
    engine = InferenceEngine(tiny_model().eval(), torch.device("cpu"), "fp32", workers=0)
    engine.model.untrained = ("text_encoder", "text_head")
    model = crosspair.Model(engine)
    for call in (lambda: model.embed_texts(["a dog"]), lambda: model.classify(folder, ["dog"])):
        with pytest.raises(ModelError, match="text tower"):
            call()


def test_texts(model: crosspair.Model) -> None:
    assert model.embed_texts(["a dog", "a cat"]).shape == (2, 8)
    assert model.embed_texts([]).shape == (0, 8)
    with pytest.raises(CrosspairError, match="texts"):
        model.embed_texts("a dog")


@pytest.mark.parametrize(
    ("call", "error", "value"),
    [
        (lambda m: m.embed_videos(["gone.mp4"]), VideoError, "^none .*gone.mp4"),
        (lambda m: m.embed_videos([]), VideoError, "no videos"),
        (lambda m: m.embed_videos(np.zeros((4, 4, 3), np.uint8)), VideoError,
         r"array 0 .*\(4, 4, 3\)"),
        (lambda m: m.embed_videos(np.zeros((2, 4, 4, 3))), VideoError, "array 0 .*float64"),
        (lambda m: m.classify("a.mp4", "dog, cat"), CrosspairError, "classes"),
        (lambda m: m.classify("a.mp4", ["dog"], templates=["a"]), CrosspairError, "'a'"),
        (lambda m: m.classify("a.mp4", ["dog", "zzz"]), TextError, "'zzz'"),
        (lambda m: m.classify("a.mp4", ["dog", None]), CrosspairError, "classes"),
        (lambda m: m.embed_texts([None]), CrosspairError, "texts"),
        (lambda m: m.embed_texts(None), CrosspairError, "texts"),
        (lambda m: m.embed_videos("a.mp4", clips=0), CrosspairError, "clips"),
        (lambda m: m.embed_videos("a.mp4", clips=None), CrosspairError, "clips"),
        (lambda m: m.embed_videos("a.mp4", clips=True), CrosspairError, "clips"),
        (lambda m: m.embed_videos("a.mp4", clips=2.5), CrosspairError, "clips"),
        (lambda m: m.embed_videos(None), CrosspairError, "videos .*None"),
        (lambda m: m.embed_videos(b"a.mp4"), CrosspairError, "videos .*b'a.mp4'"),
        (lambda m: m.embed_videos(["a.mp4", 5]), CrosspairError, "videos .*5"),
        (lambda _: crosspair.load(None), ModelError, "None"),
        (lambda _: crosspair.load([]), ModelError, r"\[\]"),
        (lambda m: m.embed_videos(""), ManifestError, "empty"),
        (lambda _: crosspair.load("m", workers=-1), CrosspairError, "workers"),
        (lambda _: crosspair.load("m", batch_size=0), CrosspairError, "batch_size"),
        (lambda _: crosspair.evaluate("m", "m", clips=0), CrosspairError, "clips"),
        (lambda _: crosspair.evaluate("m", "m", workers=-1), CrosspairError, "workers"),
    ],
)  # fmt: skip
def test_invalid_input(
    model: crosspair.Model, call: Callable[[crosspair.Model], object], error: type[CrosspairError], value: str
) -> None:
    with pytest.raises(error, match=value):
        call(model)


def test_embeddings_in_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "f.parquet"
    with pytest.raises(RunError, match=str(path)):
        write_embeddings(path, [], {})


def test_unknown_devices_and_precisions(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    for call in (
        lambda: crosspair.load(tmp_path / "model", device="abacus"),
        lambda: crosspair.evaluate(tmp_path / "model", "m.parquet", device="abacus"),
    ):
        with pytest.raises(ModelError, match="'abacus'"):
            call()
    with pytest.raises(RecipeError, match="'fp3'"):
        crosspair.load(tmp_path / "model", precision="fp3")
