"""Display names of classes."""

from __future__ import annotations

import pytest

from crosspair.corpora.build import class_phrase, rename_classes
from crosspair.errors import ManifestError
from tests.corpora.conftest import Disk


@pytest.mark.parametrize(
    ("label", "phrase"),
    [("ApplyEyeMakeup", "apply eye makeup"), ("brush_hair", "brush hair"), ("YoYo", "yo yo"),
     ("playing cello", "playing cello"), ("TaiChi", "tai chi"), ("", ""),
     ("PlayingTVGame", "playing tv game"), ("Yo-Yo  tricks on TV", "Yo-Yo tricks on TV")],
)  # fmt: skip
def test_class_phrase(label: str, phrase: str) -> None:
    assert class_phrase(label) == phrase
    assert class_phrase(phrase) == phrase


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.csv", 'TaiChi,"t\'ai chi, slowly"\nnone,of these\n'),
        ("names.tsv", "official\tfor people\nTaiChi\tt'ai chi, slowly\n"),
    ],
)
def test_a_file_of_names_overrides(disk: Disk, name: str, text: str) -> None:
    rows = [{"label": label} for label in ("TaiChi", "YoYo", None)]
    rename_classes(rows, disk.file(name, text), class_phrase)
    assert [row["label"] for row in rows] == ["t'ai chi, slowly", "yo yo", None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"names.csv: .*\(TaiChi\)"),
        ("TaiChi\n", "names.csv, line 1: "),
        ("TaiChi,a\nTaiChi,b\n", "names.csv, line 2: 'TaiChi' "),
        ("tai chi,TaiChi\n", r"names.csv: .*\(tai chi\) .*\(TaiChi\)"),
        ("TaiChi,a,b\n", "names.csv, line 1: 3 fields"),
    ],
)  # fmt: skip
def test_invalid_class_names(disk: Disk, text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        rename_classes([{"label": "TaiChi"}], disk.file("names.csv", text), class_phrase)
