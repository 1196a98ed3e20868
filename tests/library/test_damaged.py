"""Damaged libraries, and libraries whose model was exchanged: one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crosspair.library import InferenceEngine, Library, LibraryError, Searcher, index_videos, store
from tests.evaluation.conftest import tiny_model
from tests.library.conftest import WINDOWS

lancedb = pytest.importorskip("lancedb")
pa = pytest.importorskip("pyarrow")


@pytest.fixture
def library(tiny: InferenceEngine, folder: Path, tmp_path: Path) -> Path:
    index_videos(tmp_path / "library", tiny, [folder / "4.mp4"], windows=WINDOWS)
    return tmp_path / "library"


def setting(name: str, value: object) -> Callable[[Path], None]:
    def change(library: Path) -> None:
        settings = json.loads((library / "library.json").read_text())
        (library / "library.json").write_text(json.dumps({**settings, name: value}))

    return change


def row(name: str, value: object) -> Callable[[Path], None]:
    def change(library: Path) -> None:
        table = Library(library).table
        (first, *_) = table.to_arrow().to_pylist()
        table.add(pa.Table.from_pylist([{**first, name: value}], schema=table.schema))

    return change


def cut(library: Path) -> None:
    for path in library.glob("windows.lance/data/*"):
        path.write_bytes(path.read_bytes()[:100])


def without_data(library: Path) -> None:
    shutil.rmtree(library / "windows.lance" / "data")


def other_columns(library: Path) -> None:
    columns = [field if field.name != "start" else pa.field("start", pa.string()) for field in store.schema(8)]
    lancedb.connect(library).create_table("windows", schema=pa.schema(columns), mode="overwrite")


@pytest.mark.parametrize(
    "damage",
    [
        setting("embedding", "x"), setting("embedding", 10**12), setting("window", None), setting("model", 3),
        row("start", float("nan")), row("end", None), row("video", None), row("thumbnail", None),
        cut, without_data, other_columns,
    ],
)  # fmt: skip
def test_damaged_library(library: Path, tiny: InferenceEngine, damage: Callable[[Path], None]) -> None:
    damage(library)
    with pytest.raises(LibraryError, match=str(library)) as caught:
        search_and_list(library, tiny)
    assert "\n" not in str(caught.value)


def search_and_list(library: Path, engine: InferenceEngine) -> None:
    Searcher(library, engine).text("dog")
    Library(library).videos()


def test_exchanged_model(library: Path) -> None:
    before = {path.name: path.stat().st_size for path in (library / "model").iterdir()}
    tiny_model(seed=1).save_pretrained(library / "model")
    assert {path.name: path.stat().st_size for path in (library / "model").iterdir()} == before
    with pytest.raises(LibraryError, match=str(library / "model")):
        Searcher(library).text("dog")
    with pytest.raises(LibraryError, match=str(library / "model")):
        Searcher(library, InferenceEngine(tiny_model(seed=1), torch.device("cpu")))
