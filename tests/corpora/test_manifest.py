"""The manifest: validation, reading and writing, hash, rows and wrong titles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.config import Clip
from crosspair.corpora import SCHEMA, Manifest, manifest_from_rows
from crosspair.corpora.manifest import TITLES, add_title_noise
from crosspair.errors import ManifestError

ROWS: list[dict[str, Any]] = [
    {"pair_id": "a", "path": "videos/a.mp4", "title": "A dog", "split": "train", "label": "dog"},
    {"pair_id": "b", "path": "/abs/b.mp4", "title": None, "start": 1.0, "end": 2.5, "split": "val"},
    {"pair_id": "c", "path": "s3://bucket/c.mp4", "title": "Ein Hörnchen 🐿", "end": 3.0},
]


def table(**columns: Any) -> pa.Table:
    return pa.table({"pair_id": ["a", "b"], "path": ["a", "b"], "title": ["A", "B"]} | columns)


def test_write_and_read(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "manifest.parquet"
    written = manifest_from_rows(ROWS, path).write(path)
    for again in (Manifest.read(path), Manifest.read(path.parent)):
        assert again.table.equals(written.table)
        assert again.table.schema.names == SCHEMA.names
    assert written.column("title") == ["A dog", None, "Ein Hörnchen 🐿"]


def test_captions_are_kept_and_a_manifest_without_them_has_no_such_column(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    plain = Manifest(table(), path).write(path)
    assert "titles" not in pq.read_schema(path).names
    assert plain.column("titles") == [None, None]
    captions = [["A", "Another"], None]
    manifest = Manifest(table(titles=captions), path).write(path)
    assert Manifest.read(path).column("titles") == manifest.rebased(tmp_path / "b" / "m").column("titles") == captions
    assert manifest.take([1, 0]).column("titles") == captions[::-1]
    assert len({plain.hash, manifest.hash, Manifest(table(titles=[["A", "Other"], None]), path).hash}) == 3
    assert plain.hash == "79c4ff6695da"  # as before there were captions


def test_columns_that_are_absent_are_null_and_near_types_are_cast() -> None:
    strings = pa.array(["a", "b"], pa.large_string())
    manifest = Manifest(table(pair_id=strings, start=pa.array([0, 1], pa.int16())), Path("m"))
    assert manifest.table.schema.equals(SCHEMA)
    assert manifest.column("label") == [None, None]
    assert manifest.column("start") == [0.0, 1.0]


# --- invalid manifests --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"titel": ["A", "B"]}, ": column 'titel'"),
        ({"start": ["soon", "later"]}, ": column 'start' .*string.*double"),
        ({"title": [["A"], ["B"]]}, ": column 'title' .*list<.*>.*string"),
        ({"frames": [1.5, 2.0]}, ": column 'frames' .*double.*int32"),
        ({"pair_id": ["a", ""]}, ", row 1: 'pair_id'"),
        ({"pair_id": ["a", None]}, ", row 1: 'pair_id'"),
        ({"path": ["a", ""]}, ", row 1: 'path'"),
        ({"titles": ["A", "B"]}, ": column 'titles' .*string.*list"),
        ({"titles": [["A"], []]}, ", row 1: 'titles'"),
        ({"titles": [None, ["B", ""]]}, ", row 1: 'titles'"),
        ({"titles": [["A", None], None]}, ", row 0: 'titles'"),
        ({"titles": [["A"], ["other", "B"]]}, ", row 1: 'titles'"),
        ({"path": [None, "b"]}, ", row 0: 'path'"),
        ({"pair_id": ["a", "a"]}, ", row 1: pair_id 'a'"),
        ({"split": ["val", "training"]}, ", row 1: split 'training'"),
    ],
)
def test_invalid_columns(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=rf"^manifest m\.parquet{message}") as caught:
        Manifest(table(**columns), Path("m.parquet"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["pair_id", "path", "title"])
def test_a_missing_column(name: str) -> None:
    with pytest.raises(ManifestError, match=f"^manifest m .*'{name}'"):
        Manifest(table().drop_columns([name]), Path("m"))


def test_an_unknown_key() -> None:
    with pytest.raises(ManifestError, match=r"^manifest m: column 'titel' "):
        manifest_from_rows([{**ROWS[0], "titel": "A"}], "m")


@pytest.mark.parametrize(
    ("start", "end"),
    [(2.0, 1.0), (1.0, 1.0), (-0.5, None), (None, 0.0), (None, -1.0), (float("nan"), 2.0), (0.0, float("nan"))],
)
def test_invalid_intervals(start: float | None, end: float | None) -> None:
    with pytest.raises(ManifestError, match=r"^manifest m, row 1: start .*end "):
        manifest_from_rows([ROWS[0], {**ROWS[1], "start": start, "end": end}], "m")


@given(st.lists(st.tuples(*[st.sampled_from([None, "", "a", "b", "val"])] * 3, *[st.floats() | st.none()] * 2)))
def test_validation_agrees_with_a_loop_over_rows(rows: list[tuple[Any, ...]]) -> None:
    known, is_valid = set(), True
    for pair_id, path, split, start, end in rows:
        is_interval = 0 <= (start or 0) < (float("inf") if end is None else end)
        is_valid &= bool(pair_id and path) and pair_id not in known and split in (None, "val") and is_interval
        known.add(pair_id)
    columns = zip(*rows, strict=True) if rows else [()] * 5
    found = pa.table(dict(zip(("pair_id", "path", "split", "start", "end"), map(list, columns), strict=True)))
    try:
        Manifest(found.append_column("title", pa.nulls(len(rows), pa.string())), Path("m"))
    except ManifestError:
        assert not is_valid
    else:
        assert is_valid


def test_files_that_are_not_manifests(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    with pytest.raises(ManifestError, match=str(path)):
        Manifest.read(path)
    whole = manifest_from_rows(ROWS, path).write(path).path.read_bytes()
    for content in (b"", b"video_id,title\n", b"PAR1" + b"\0" * 50, whole[:-20]):
        path.write_bytes(content)
        with pytest.raises(ManifestError, match=f"^manifest {path} ") as caught:
            Manifest.read(path)
        assert "\n" not in str(caught.value)
    pq.write_table(table().append_column("title", pa.array(["C", "D"])), path)
    with pytest.raises(ManifestError, match=r"^manifest .*'title'"):
        Manifest.read(path)
    with pytest.raises(ManifestError, match=r"m\.parquet"):
        manifest_from_rows(ROWS, "m").write(path / "below" / "m.parquet")


# --- rows ---------------------------------------------------------------------------------------


def test_hash_depends_on_rows_only(tmp_path: Path) -> None:
    manifest = manifest_from_rows(ROWS, "elsewhere.parquet")
    written = manifest.write(tmp_path / "m.parquet")
    probed = manifest_from_rows([{**row, "fps": 25.0} for row in ROWS], "m")
    assert manifest.hash == written.hash == probed.hash == "49b7446c56ac"
    broken = [manifest_from_rows([{**row, "error": why} for row in ROWS], "m") for why in ("cut", "gone")]
    assert manifest.hash != broken[0].hash == broken[1].hash
    for key, value in [("title", "A cat"), ("path", "x.mp4"), ("end", 9.0), ("split", "test")]:
        assert manifest_from_rows([{**ROWS[0], key: value}, *ROWS[1:]], "m").hash != manifest.hash
    assert manifest_from_rows(ROWS[::-1], "m").hash != manifest.hash


def test_selected_rows(caplog: pytest.LogCaptureFixture) -> None:
    manifest = manifest_from_rows([*ROWS, {"pair_id": "d", "path": "d", "title": "D", "error": "cut"}], "m")
    assert manifest.take([2, 0]).column("pair_id") == ["c", "a"]
    assert len(manifest.take([])) == 0
    assert manifest.split("train").column("pair_id") == ["a", "c", "d"]  # and rows without a split
    assert manifest.split("val").column("pair_id") == ["b"]
    assert manifest.split("test").column("pair_id") == []
    with pytest.raises(ManifestError, match="'dev'"):
        manifest.split("dev")
    assert manifest.drop_unusable("title").column("pair_id") == ["a", "c"]
    assert [message.split(": ")[0] for message in caplog.messages] == ["skipped b", "skipped d"]


def test_relative_paths_start_at_the_manifests_folder(tmp_path: Path) -> None:
    manifest = manifest_from_rows(ROWS, tmp_path / "old" / "m.parquet")
    clips = [Clip("/abs/b.mp4", 1.0, 2.5), Clip("s3://bucket/c.mp4", None, 3.0)]
    assert manifest.clips() == [Clip(f"{tmp_path}/old/videos/a.mp4"), *clips]
    moved = manifest.rebased(tmp_path / "new" / "n.parquet")
    assert moved.column("path") == ["../old/videos/a.mp4", *manifest.column("path")[1:]]
    assert Path(moved.clips()[0].path).resolve() == tmp_path / "old" / "videos" / "a.mp4"
    same_folder = manifest.rebased(tmp_path / "old" / "n.parquet")
    assert same_folder.column("path") == manifest.column("path")
    assert [each.path.name for each in (moved, same_folder)] == ["n.parquet"] * 2


# --- wrong titles -------------------------------------------------------------------------------


def corpus(labels: list[str | None], splits: list[str | None] | None = None) -> Manifest:
    rows = [
        {"pair_id": f"p{i}", "path": f"{i}.mp4", "label": label, "split": split}
        | {name: f"{name} {i}" for name in TITLES}
        | {"titles": [f"title {i}", f"caption {i}"]}
        for i, (label, split) in enumerate(zip(labels, splits or ["train"] * len(labels), strict=True))
    ]
    return manifest_from_rows(rows, "m.parquet")


def changed(before: Manifest, after: Manifest) -> dict[int, int]:
    """Row -> the row whose title it has now."""
    own, now = before.column("title"), after.column("title")
    place = {title: row for row, title in enumerate(own)}
    return {row: place[title] for row, title in enumerate(now) if title != own[row]}


@given(
    st.lists(st.sampled_from(["run", "jump", "swim", None]), min_size=8, max_size=60).filter(
        lambda labels: len({label or i for i, label in enumerate(labels)}) > 1
    ),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 5),
)
def test_number_of_wrong_titles_and_nesting(labels, one, other, seed) -> None:
    manifest = corpus(labels)
    small, large = sorted((one, other))
    few, many = (changed(manifest, add_title_noise(manifest, s, seed)) for s in (small, large))
    assert (len(few), len(many)) == (round(small * len(labels)), round(large * len(labels)))
    assert few.items() <= many.items()
    for row, donor in many.items():
        assert labels[row] is None or labels[row] != labels[donor]


def test_all_columns_change_and_only_in_training() -> None:
    splits = ["train", None, "val", "test"] * 10
    manifest = corpus([f"label {i % 7}" for i in range(40)], splits)
    wrong = add_title_noise(manifest, 1.0, 0)
    assert set(changed(manifest, wrong)) == {i for i in range(40) if splits[i] in ("train", None)}
    for row, donor in changed(manifest, wrong).items():
        assert splits[donor] in ("train", None)
        for column in (*TITLES, "titles"):
            assert wrong.column(column)[row] == manifest.column(column)[donor]
    for column in ("pair_id", "path", "label", "split"):
        assert wrong.column(column) == manifest.column(column)


def test_seed_of_wrong_titles() -> None:
    manifest = corpus([f"label {i % 4}" for i in range(40)])
    once, again, other = (add_title_noise(manifest, 0.5, seed).hash for seed in (1, 1, 2))
    assert once == again
    assert once != other
    assert add_title_noise(manifest, 0.0, 1).hash == manifest.hash


def test_a_title_that_reads_the_same_is_not_wrong() -> None:
    rows = corpus(["a", "b", "c"]).table.to_pylist()
    for row, title in zip(rows, ["same", "same", "other"], strict=True):
        row |= {"title": title, "titles": None}
    assert add_title_noise(manifest_from_rows(rows, "m"), 1.0, 0).column("title") == ["other", "other", "same"]


def test_impossible_fractions() -> None:
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ManifestError, match=str(share)):
            add_title_noise(corpus(["a", "b"]), share, 0)
    with pytest.raises(ManifestError, match=r"m.parquet: .*'p0'"):
        add_title_noise(corpus(["a", "a", "a"]), 0.5, 0)
