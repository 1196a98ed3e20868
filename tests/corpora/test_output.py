"""Output of the corpus readers."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from crosspair.corpora import Manifest
from crosspair.corpora.build import NO_FILE, ManifestOutput, SkippedPair, skipped_list_path
from crosspair.errors import ManifestError
from tests.corpora.conftest import read, skipped_pairs

ROWS = [{"pair_id": "a", "path": "videos/a.mp4"}, {"pair_id": "b", "path": "b", "error": "b: cut"}]


def test_manifest_and_skipped_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    absent = [SkippedPair(name, NO_FILE, "nowhere") for name in ('c, "d"', "e")]
    with caplog.at_level(logging.WARNING):
        ManifestOutput(Path("out/pairs.parquet")).write(ROWS, absent)
    manifest = Manifest.read("out/pairs.parquet")
    assert read(manifest, "path", "error") == [("../videos/a.mp4", None), ("../b", "b: cut")]
    assert skipped_pairs(manifest.path) == [
        ('c, "d"', "no file", "nowhere"), ("e", "no file", "nowhere"),
        ("b", "broken file", "b: cut"),
    ]  # fmt: skip
    assert caplog.messages == [
        'pairs.parquet: no file: 2 pairs (c, "d", e)', "pairs.parquet: broken file: 1 pair (b)"
    ]  # fmt: skip
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "pairs.left-out.csv", "pairs.parquet"
    ]  # fmt: skip


def test_a_manifest_and_its_list_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "pairs.parquet"
    ManifestOutput(out).write(ROWS, [])
    assert skipped_list_path(out).exists()
    ManifestOutput(out).write(ROWS[:1], [])
    assert len(Manifest.read(out)) == 1
    assert not skipped_list_path(out).exists()


def test_other_files_are_not_replaced(tmp_path: Path) -> None:
    other = tmp_path / "notes.parquet"
    other.write_text("my notes")
    with pytest.raises(ManifestError, match=r"notes\.parquet"):
        ManifestOutput(other)
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(ManifestError, match=r"folder\.parquet"):
        ManifestOutput(tmp_path / "folder.parquet")


def test_other_lists_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.left-out.csv").write_text("name,age\n")
    with pytest.raises(ManifestError, match=r"a\.left-out\.csv"):
        ManifestOutput(tmp_path / "a.parquet")


def test_out_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "titles.tsv").write_text("")
    with pytest.raises(ManifestError, match=r"titles\.tsv"):
        ManifestOutput(tmp_path / "titles.tsv")


def test_out_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crosspair.corpora.build.os.access", lambda *_: False)
    with pytest.raises(ManifestError, match=f"manifest.parquet .*{tmp_path}$"):
        ManifestOutput(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()
