"""Queries of texts, images and videos: weights, images, the combined embedding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from crosspair.errors import ModelError, VideoError
from crosspair.evaluation.features import embed_texts
from crosspair.inference import Model
from crosspair.library import InferenceEngine, LibraryError, QueryPart, Searcher, Windows, index_videos
from crosspair.library.query import embed_query, read_image


@pytest.mark.parametrize(
    ("word", "value", "weight"),
    [
        ("a dog", "a dog", 1), ("2:a dog", "a dog", 2), (".5: a dog ", "a dog", 0.5), ("1.5:a:b", "a:b", 1.5),
        ("2:30 pm", "2:30 pm", 1), ("2: 30 pm", "30 pm", 2), ("1: 2:a dog", "2:a dog", 1), ("16:9", "16:9", 1),
        ("dogs: 2", "dogs: 2", 1), ("-2:a dog", "-2:a dog", 1), ("2 :a dog", "2 :a dog", 1), ("²:x", "²:x", 1),
    ],
)  # fmt: skip
def test_weights(word: str, value: str, weight: float) -> None:
    assert QueryPart.parse(word) == QueryPart(value, "text", weight)
    assert QueryPart.parse(word, "image", -1) == QueryPart(value, "image", -weight)


@pytest.mark.parametrize("word", ["0:a dog", "2:", "2: ", "9" * 400 + ":a dog"])
def test_invalid_weights(word: str) -> None:
    with pytest.raises(LibraryError, match=r"\A.*weight.*\Z"):
        QueryPart.parse(word)


def test_the_query_is_the_normalised_weighted_sum(tiny: InferenceEngine, tmp_path: Path, folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    dog, cat = embed_texts(tiny.model, ["a dog", "a cat"]).numpy()
    still = Model(tiny).embed_videos(np.stack([pixels] * 90)).embedding[0].numpy()
    video = Model(tiny).embed_videos(folder / "4.mp4").embedding[0].numpy()
    text, other, image, clip = (
        QueryPart("a dog", weight=2), QueryPart("a cat", weight=-0.5), QueryPart(tmp_path / "a.png", "image"),
        QueryPart(folder / "4.mp4", "video", 0.7),
    )  # fmt: skip
    for parts, expected in (
        ([text], dog),
        ([image], still),
        ([text, other, image, clip], 2 * dog - 0.5 * cat + still + 0.7 * video),
        ([replace(image, weight=-1), clip], 0.7 * video - still),
    ):
        found = embed_query(tiny, parts)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)


def test_invalid_queries(tiny: InferenceEngine, tmp_path: Path, folder: Path) -> None:
    dog = QueryPart("a dog")
    for parts, word in (
        ([], "positive"),
        ([replace(dog, weight=-1)], "positive"),
        ([dog, replace(dog, weight=-1)], "cancel"),
        ([QueryPart(tmp_path / "none.png", "image")], "none.png"),
        ([QueryPart(folder / "4.mp4", "image")], "4.mp4"),
        ([QueryPart(tmp_path, "image")], str(tmp_path)),
    ):
        with pytest.raises(LibraryError, match=rf"\A.*{word}.*\Z"):
            embed_query(tiny, parts)
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        embed_query(tiny, [dog, QueryPart(folder / "broken.mp4", "video")])
    for invalid in ({"value": 1}, {"value": "a", "weight": 0}, {"value": "a", "weight": float("nan")}):
        with pytest.raises(LibraryError):
            QueryPart(**invalid)


def test_images_need_no_text_tower(tiny: InferenceEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny.model, "untrained", ("text_head",))
    Image.new("RGB", (50, 50), "red").save(tmp_path / "a.jpg")
    image = QueryPart(tmp_path / "a.jpg", "image")
    assert np.linalg.norm(embed_query(tiny, [image])) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ModelError):
        embed_query(tiny, [image, QueryPart("a dog")])


def test_images_of_all_kinds(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    turned: Any = Image.Exif()
    turned[0x0112] = 6  # rotate by 90 degrees
    for name, image, options in (
        ("16.png", Image.fromarray(ramp), {}),
        ("clear.png", clear, {}),
        ("clear.gif", clear, {"save_all": True, "append_images": [Image.new("RGBA", (16, 16), "red")]}),
        ("cmyk.jpg", Image.new("CMYK", (16, 16)), {}),
        ("bits.png", Image.new("1", (16, 16), 1), {}),
        ("turned.jpg", Image.new("RGB", (20, 10)), {"exif": turned}),
        ("long.png", Image.new("RGB", (1, 100)), {}),
    ):
        image.save(tmp_path / name, **options)
    grey = read_image(tmp_path / "16.png")
    np.testing.assert_array_equal(grey[..., 0].ravel(), np.arange(256))
    for name in ("clear.png", "clear.gif", "cmyk.jpg", "bits.png"):
        pixels = read_image(tmp_path / name)
        assert (pixels.shape, pixels.dtype, pixels.min()) == ((16, 16, 3), np.uint8, 255), name
    assert read_image(tmp_path / "turned.jpg").shape == (20, 10, 3)
    with pytest.raises(LibraryError, match=r"long\.png"):
        read_image(tmp_path / "long.png")


def test_bombs_and_cut_images_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:5000])
    with pytest.raises(LibraryError, match=r"\A.*cut\.png.*\Z"):
        read_image(tmp_path / "cut.png")
    for limit in (8000, 4000):  # a warning, an error
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(LibraryError, match=r"\A.*a\.png.*\Z"):
            read_image(tmp_path / "a.png")


def test_windows_of_the_query_s_videos_are_excluded(tiny: InferenceEngine, tmp_path: Path, folder: Path) -> None:
    index_videos(tmp_path / "library", tiny, [folder], windows=Windows(2, 1))
    searcher = Searcher(tmp_path / "library", tiny)
    parts = [QueryPart("a dog"), QueryPart(folder / "4.mp4", "video"), QueryPart(folder / "3.mp4", "video", -1)]
    assert {Path(hit.path).name for hit in searcher.combined(parts)} == {"1.mp4", "2.mp4"}
    scores = [hit.score for hit in searcher.combined([QueryPart("a cat", weight=3)])]
    assert scores == pytest.approx([hit.score for hit in searcher.text("a cat")], abs=1e-5)
