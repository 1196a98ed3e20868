"""The manifest: validation, reading and writing, hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crosspair.config import Clip
from crosspair.corpora import SCHEMA, Manifest, manifest_from_rows
from crosspair.errors import ManifestError

ROWS = [
    {"pair_id": "a", "path": "videos/a.mp4", "title": "A dog", "split": "train", "label": "dog"},
    {"pair_id": "b", "path": "/abs/b.mp4", "title": None, "start": 1.0, "end": 2.5, "split": "val"},
    {"pair_id": "c", "path": "s3://bucket/c.mp4", "title": "Ein Hörnchen 🐿", "end": 3.0},
]


def table(**columns: Any) -> pa.Table:
    return pa.table({"pair_id": ["a", "b"], "path": ["a", "b"], "title": ["A", "B"], **columns})


def refused(message: str, **columns: Any) -> None:
    with pytest.raises(ManifestError, match=rf"^manifest m\.parquet{message}") as caught:
        Manifest(table(**columns), Path("m.parquet"))
    assert "\n" not in str(caught.value)


def test_write_and_read(tmp_path: Path) -> None:
    written = manifest_from_rows(ROWS, tmp_path / "m.parquet").write(tmp_path / "m.parquet")
    again = Manifest.read(tmp_path / "m.parquet")
    assert again.table.equals(written.table)
    assert again.table.schema.names == SCHEMA.names
    assert again.column("title") == ["A dog", None, "Ein Hörnchen 🐿"]


def test_read_from_a_folder(tmp_path: Path) -> None:
    manifest_from_rows(ROWS, tmp_path).write(tmp_path / "manifest.parquet")
    assert len(Manifest.read(tmp_path)) == 3


def test_columns_that_are_absent_are_null_and_near_types_are_cast() -> None:
    strings = pa.array(["a", "b"], pa.large_string())
    manifest = Manifest(table(pair_id=strings, start=pa.array([0, 1], pa.int16())), Path("m"))
    assert manifest.table.schema.equals(SCHEMA)
    assert manifest.column("label") == [None, None]
    assert manifest.column("start") == [0.0, 1.0]


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pair_id", "path", "title"])
def test_a_missing_column(name: str) -> None:
    with pytest.raises(ManifestError, match=f"^manifest m .*'{name}'"):
        Manifest(table().drop_columns([name]), Path("m"))


def test_an_unknown_column() -> None:
    refused(": column 'titel' is unknown; the columns are pair_id, path", titel=["A", "B"])
    with pytest.raises(ManifestError, match=r"^manifest m: column 'titel' "):
        manifest_from_rows([{**ROWS[0], "titel": "A"}], "m")


def test_a_duplicated_column(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(table().append_column("title", pa.array(["C", "D"])), path)
    with pytest.raises(ManifestError, match=r"^manifest .*'title'"):
        Manifest.read(path)


@pytest.mark.parametrize(
    ("name", "values", "found", "wanted"),
    [
        ("start", ["soon", "later"], "string", "double"),
        ("title", [["A"], ["B"]], "list<.*>", "string"),
        ("frames", [1.5, 2.0], "double", "int32"),
    ],
)
def test_a_column_of_another_type(name: str, values: Any, found: str, wanted: str) -> None:
    refused(f": column '{name}' .*{found}.*{wanted}", **{name: values})


@pytest.mark.parametrize("name", ["pair_id", "path"])
@pytest.mark.parametrize("nothing", ["", None])
def test_an_empty_id_or_path(name: str, nothing: str | None) -> None:
    refused(f", row 1: '{name}'", **{name: ["a", nothing]})


def test_a_duplicated_id() -> None:
    refused(", row 1: pair_id 'a'", pair_id=["a", "a"])


def test_unknown_split() -> None:
    refused(", row 1: split 'training'", split=["val", "training"])


@pytest.mark.parametrize(
    ("start", "end"),
    [(2.0, 1.0), (1.0, 1.0), (-0.5, None), (None, 0.0), (None, -1.0), (float("nan"), 2.0),
     (0.0, float("nan"))],
)  # fmt: skip
def test_invalid_intervals(start: float | None, end: float | None) -> None:
    with pytest.raises(ManifestError, match=r"^manifest m, row 0: start .*end "):
        manifest_from_rows([{**ROWS[0], "start": start, "end": end}], "m")


def test_a_missing_manifest(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    with pytest.raises(ManifestError, match=f"{path}.*crosspair corpus folder"):
        Manifest.read(path)


@pytest.mark.parametrize("content", [b"", b"video_id,title\n", b"PAR1" + b"\0" * 50])
def test_a_file_that_is_not_parquet(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.parquet"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=f"^manifest {path} ") as caught:
        Manifest.read(path)
    assert "\n" not in str(caught.value)


def test_a_cut_manifest(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    manifest_from_rows(ROWS, path).write(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ManifestError, match=str(path)):
        Manifest.read(path)


# --- writing ------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.parquet"
    old = manifest_from_rows(ROWS[:1], path).write(path)

    def full(table: pa.Table, where: Path) -> None:
        Path(where).write_bytes(b"PAR1 half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(ManifestError, match=r"cannot be written: No space left on device$"):
        manifest_from_rows(ROWS, path).write(path)
    assert Manifest.read(path).hash == old.hash
    assert list(tmp_path.iterdir()) == [path]


def test_a_manifest_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ManifestError, match=r"cannot be written: File exists$"):
        manifest_from_rows(ROWS, "m").write(tmp_path / "file" / "m.parquet")


def test_a_write_makes_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "m.parquet"
    assert manifest_from_rows(ROWS, "m").write(path).path == path
    assert len(Manifest.read(path)) == 3


# --- rows ---------------------------------------------------------------------------------------


def test_hash_depends_on_rows_only(tmp_path: Path) -> None:
    manifest = manifest_from_rows(ROWS, "elsewhere.parquet")
    written = manifest.write(tmp_path / "m.parquet")
    probed = manifest_from_rows([{**row, "fps": 25.0} for row in ROWS], "m")
    assert manifest.hash == written.hash == probed.hash
    broken = [manifest_from_rows([{**row, "error": why} for row in ROWS], "m") for why in ("cut", "gone")]
    assert manifest.hash != broken[0].hash == broken[1].hash
    assert len(manifest.hash) == 12
    for key, value in [("title", "A cat"), ("path", "x.mp4"), ("end", 9.0), ("split", "test")]:
        assert manifest_from_rows([{**ROWS[0], key: value}, *ROWS[1:]], "m").hash != manifest.hash
    assert manifest_from_rows(ROWS[::-1], "m").hash != manifest.hash


def test_take_keeps_the_order() -> None:
    taken = manifest_from_rows(ROWS, "m").take([2, 0])
    assert taken.column("pair_id") == ["c", "a"]
    assert len(manifest_from_rows(ROWS, "m").take([])) == 0


def test_a_row_without_a_split_belongs_to_train() -> None:
    manifest = manifest_from_rows(ROWS, "m")
    assert manifest.split("train").column("pair_id") == ["a", "c"]
    assert manifest.split("val").column("pair_id") == ["b"]
    assert manifest.split("test").column("pair_id") == []
    with pytest.raises(ManifestError, match="'dev'"):
        manifest.split("dev")


def test_relative_paths_start_at_the_manifests_folder() -> None:
    assert manifest_from_rows(ROWS, "corpus/m.parquet").clips() == [
        Clip("corpus/videos/a.mp4"),
        Clip("/abs/b.mp4", 1.0, 2.5),
        Clip("s3://bucket/c.mp4", None, 3.0),
    ]


def test_rebased(tmp_path: Path) -> None:
    rows = [
        {"pair_id": "a", "path": "videos/a.mp4", "title": "A"},
        {"pair_id": "b", "path": "/b.mp4", "title": "B"},
        {"pair_id": "c", "path": "http://c.org/c.mp4", "title": "C"},
    ]
    old = manifest_from_rows(rows, tmp_path / "old" / "m.parquet").write(tmp_path / "old" / "m.parquet")
    new = old.rebased(tmp_path / "new" / "n.parquet")
    assert new.column("path") == ["../old/videos/a.mp4", "/b.mp4", "http://c.org/c.mp4"]
    same_folder = old.rebased(tmp_path / "old" / "n.parquet")
    assert same_folder.column("path") == old.column("path")
    assert [moved.path.name for moved in (new, same_folder)] == ["n.parquet"] * 2
    assert [Path(clip.path).resolve() for clip in new.clips()[:1]] == [tmp_path / "old" / "videos" / "a.mp4"]
