"""End-to-end runs of titles and words."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from crosspair.corpora import Manifest
from tests.e2e.conftest import crosspair, refused, run


@pytest.fixture
def manifest(tmp_path: Path, rendered: Manifest) -> Manifest:
    titles = ["A red ball is rolling 😍"] * len(rendered)
    titles[3] = "犬 ★"
    place = rendered.table.column_names.index("title")
    table = rendered.table.set_column(place, "title", pa.array(titles, pa.string()))
    return Manifest(table, tmp_path / "m.parquet").write(tmp_path / "m.parquet")


def test_titles_and_words(tmp_path: Path, manifest: Manifest) -> None:
    done = crosspair("titles", "clean", manifest.path, "--report", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    assert f"{manifest.path}: 64 pairs; 1 without an English title" in done.stdout
    assert f"{manifest.column('pair_id')[3]} '犬 ★'" in " ".join(done.stderr.split())
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.html", "titles.csv",
    }  # fmt: skip
    first = Manifest.read(manifest.path)
    assert first.column("title_clean").count(None) == 1
    assert first.column("title") == manifest.column("title")

    run("titles", "clean", manifest.path)
    assert Manifest.read(manifest.path).hash == first.hash

    done = crosspair("titles", "words", manifest.path, "--out", tmp_path / "words")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("title_clean", "title_tree", "at least one"))
    assert {path.name for path in (tmp_path / "words").iterdir()} == {
        "words.md", "words.csv", "words.png",
    }  # fmt: skip


def test_another_manifest_can_be_written(tmp_path: Path, manifest: Manifest) -> None:
    out = tmp_path / "new"
    run("titles", "clean", manifest.path, "--out", out, "--empty", "drop", "--lemmas")
    assert len(Manifest.read(out)) == 63
    assert Manifest.read(manifest.path).column("title_clean") == [None] * 64


def test_errors_are_one_line(tmp_path: Path, manifest: Manifest) -> None:
    before = manifest.path.read_bytes()
    assert "none.parquet" in refused("titles", "clean", tmp_path / "none.parquet")
    missing = refused("titles", "words", manifest.path, "--accuracy", tmp_path / "none.csv")
    assert str(tmp_path / "none.csv") in missing
    place = manifest.table.column_names.index("label")
    none = manifest.table.set_column(place, "label", pa.nulls(64, pa.string()))
    Manifest(none, tmp_path / "n.parquet").write(tmp_path / "n.parquet")
    assert "label" in refused("titles", "words", tmp_path / "n.parquet")
    assert manifest.path.read_bytes() == before
