"""End-to-end runs of corpus for corpora on disk: files, printed summaries, errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from crosspair.corpora import Manifest
from tests.e2e.conftest import refused, run

CSV = "label,youtube_id,time_start,time_end,split\n"


@pytest.fixture
def videos(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    """One readable video under the file names of each corpus, and one unreadable video."""
    folder = tmp_path / "videos"
    video = make_video(folder / "trimmed_resize_17.mp4", frames=12, fps=24)
    for name in ("v_YoYo_g01_c01", "v_YoYo_g02_c01", "me_wave_f_nm_np1_fr_bad_0",
                 "you_wave_f_nm_np1_fr_bad_0", "abcdefghijk_000001_000011"):  # fmt: skip
        shutil.copy(video, folder / f"{name}.mp4")
    (folder / "trimmed_resize_18.mp4").write_text("no video")
    return folder


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def corpus(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    """Run a command successfully, and return the lines that it prints."""
    run("corpus", *arguments)
    return capsys.readouterr().out.splitlines()


def test_kinetics(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write(tmp_path / "train.csv", f"{CSV}playing cello,abcdefghijk,1,11,train\n")
    val = write(tmp_path / "val.csv", f"{CSV}abseiling,nowhere_111,1,11,validate\n")
    titles = write(tmp_path / "titles.csv", "id,name\nabcdefghijk,My cello\n")
    out = tmp_path / "kinetics.parquet"
    call = ["kinetics", videos, "--csv", train, val, "--titles", titles, "--out", out]
    assert corpus(capsys, *call, "--title-columns", "video_id=id,title=name") == [
        f"{out}: 1 pairs (1 train, 0 val, 0 test)",
        f"{tmp_path / 'kinetics.left-out.csv'}: skipped pairs, with reasons",
    ]
    assert Manifest.read(out).column("title") == ["My cello"]
    assert "--title-columns 'id'" in refused("corpus", *call, "--title-columns", "id")
    assert "'di'" in refused("corpus", *call, "--title-columns", "video_id=di")


def test_instagram(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"subset": "train", "caption": "Snow #ski"}
    captions = write(tmp_path / "captions.json", json.dumps({"17": entry, "18": entry}))
    call = ["instagram", videos, "--captions", captions, "--out", tmp_path / "out"]
    assert corpus(capsys, *call)[0].endswith("manifest.parquet: 2 pairs (2 train, 0 val, 0 test)")
    assert (tmp_path / "out" / "manifest.left-out.csv").read_text().count("18") >= 1
    assert "'video.mp4'" in refused("corpus", *call, "--template", "video.mp4")


def test_ucf101(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists = tmp_path / "lists"
    write(lists / "classInd.txt", "1 YoYo\n")
    for split in (1, 2, 3):
        write(lists / f"trainlist0{split}.txt", "YoYo/v_YoYo_g02_c01.avi 1\n")
        write(lists / f"testlist0{split}.txt", "YoYo/v_YoYo_g01_c01.avi\n")
    call = ["ucf101", videos, "--lists", lists, "--out", tmp_path / "out"]
    lines = corpus(capsys, *call, "--splits", "1,2,3")
    assert lines == [
        f"{tmp_path / 'out' / f'split{split}.parquet'}: 2 pairs (1 train, 0 val, 1 test)" for split in (1, 2, 3)
    ]
    file = write(tmp_path / "notes.parquet", "my notes")
    line = refused("corpus", "ucf101", videos, "--lists", lists, "--out", file)
    assert "notes.parquet" in line
    assert file.read_text() == "my notes"


def test_hmdb51(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists = tmp_path / "lists"
    text = "me_wave_f_nm_np1_fr_bad_0.avi 1 \nyou_wave_f_nm_np1_fr_bad_0.avi 2 \n"
    write(lists / "wave_test_split1.txt", text)
    out = tmp_path / "hmdb.parquet"
    assert corpus(capsys, "hmdb51", videos, "--lists", lists, "--out", out) == [
        f"{out}: 2 pairs (1 train, 0 val, 1 test)"
    ]
    assert Manifest.read(out).column("label") == ["wave", "wave"]
    line = refused("corpus", "hmdb51", videos, "--lists", lists, "--splits", "2", "--out", out)
    assert "wave_test_split2.txt" in line


def test_folder(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    titles = write(tmp_path / "titles.tsv", "name\ttitle\nv_YoYo_g01_c01\tLook!\n")
    names = write(tmp_path / "names.csv", "videos,my videos\n")
    out = tmp_path / "folder.parquet"
    call = ["folder", videos, "--titles", titles, "--title-columns", "video_id=name", "--out", out]
    lines = corpus(capsys, *call, "--label-by-folder", "--class-names", names)
    assert lines[0] == f"{out}: 1 pairs (1 train, 0 val, 0 test)"
    assert Manifest.read(out).column("label") == ["my videos"]
    assert (tmp_path / "folder.left-out.csv").read_text().count("no title") == 6
    assert "--split-list 'train'" in refused("corpus", *call, "--split-list", "train")
    twice = ["--split-list", "test=a.txt", "--split-list", "test=b.txt"]
    line = refused("corpus", *call, *twice)
    assert "--split-list" in line
    assert "test" in line
