"""End-to-end runs of corpus, titles and prepare: files, printed summaries, interruption, errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.video.decode import probe
from tests.e2e.conftest import FAST, TINY, command, crosspair, refused, run

CSV = "label,youtube_id,time_start,time_end,split\n"


@pytest.fixture
def videos(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    """One readable video under the file names of each corpus, and one unreadable video."""
    folder = tmp_path / "videos"
    video = make_video(folder / "trimmed_resize_17.mp4", frames=12, fps=24)
    for name in ("v_YoYo_g01_c01", "v_YoYo_g02_c01", "abcdefghijk_000001_000011"):
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


def test_folder(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    titles = write(tmp_path / "titles.tsv", "name\ttitle\nv_YoYo_g01_c01\tLook!\n")
    names = write(tmp_path / "names.csv", "videos,my videos\n")
    out = tmp_path / "folder.parquet"
    call = ["folder", videos, "--titles", titles, "--title-columns", "video_id=name", "--out", out]
    lines = corpus(capsys, *call, "--label-by-folder", "--class-names", names)
    assert lines[0] == f"{out}: 1 pairs (1 train, 0 val, 0 test)"
    assert Manifest.read(out).column("label") == ["my videos"]
    assert (tmp_path / "folder.left-out.csv").read_text().count("no title") == 4
    assert "--split-list 'train'" in refused("corpus", *call, "--split-list", "train")
    twice = ["--split-list", "test=a.txt", "--split-list", "test=b.txt"]
    line = refused("corpus", *call, *twice)
    assert "--split-list" in line
    assert "test" in line


def test_msrvtt_is_trained_and_evaluated(
    tmp_path: Path, rendered: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(zip(rendered.clips(), rendered.column("label"), rendered.column("title"), strict=True))[:32]
    (tmp_path / "videos").mkdir()
    videos, sentences = [], []
    for number, (clip, label, title) in enumerate(rows):
        os.link(clip.path, tmp_path / "videos" / f"video{number}.mp4")
        split = "train" if number < 16 else "validate" if number < 24 else "test"
        videos.append({"video_id": f"video{number}", "category": number % 20, "url": "", "split": split})
        sentences += [{"video_id": f"video{number}", "caption": caption} for caption in (label, title, "a shape")]
    file = write(tmp_path / "train_val_videodatainfo.json", json.dumps({"videos": videos, "sentences": sentences}))
    call = ["msrvtt", tmp_path / "videos", "--json", file, "--out", tmp_path / "m.parquet"]
    assert corpus(capsys, *call) == [f"{tmp_path / 'm.parquet'}: 32 pairs (16 train, 8 val, 8 test)"]
    assert Manifest.read(tmp_path / "m.parquet").column("titles")[0] == [rows[0][1], rows[0][2], "a shape"]
    run("pretrain", "--recipe", "laptop", "--manifest", tmp_path / "m.parquet", "--run", tmp_path / "run",
        *TINY, "training.epochs=1")  # fmt: skip
    run("evaluate", "--model", tmp_path / "run" / "model", "--manifest", tmp_path / "m.parquet", "--protocols",
        "retrieval", "--out", tmp_path / "results.json", "--clips", "1", *FAST)  # fmt: skip
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert any(result["protocol"].startswith("retrieval") for result in results)
    pairs = write(tmp_path / "MSRVTT_JSFUSION_test.csv", "key,vid_key,video_id,sentence\nret0,msr31,video31,a shape\n")
    one_k = [*call, "--split", "1k-A", "--test-pairs", pairs, "--val", "0.25"]
    assert corpus(capsys, *one_k)[-1].endswith("32 pairs (23 train, 8 val, 1 test)")
    assert "1k-A" in refused("corpus", *call, "--split", "1k-A")


def test_vatex(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, out = "abcdefghijk_000001_000011", tmp_path / "m.parquet"
    summary = f"{out}: 1 pairs (0 train, 0 val, 1 test)"
    entry = {"videoID": name, "enCap": ["A cat.", "A pet."], "chCap": ["猫", "宠物"]}
    file = write(tmp_path / "vatex_public_test_v1.1.json", json.dumps([entry]))
    assert corpus(capsys, "vatex", videos, "--json", file, "--out", out, "--language", "ch") == [summary]
    assert Manifest.read(out).column("titles") == [["猫", "宠物"]]


# --- titles ---


@pytest.fixture
def titled(tmp_path: Path, rendered: Manifest) -> Manifest:
    titles = ["A red ball is rolling 😍"] * len(rendered)
    titles[3] = "犬 ★"
    place = rendered.table.column_names.index("title")
    table = rendered.table.set_column(place, "title", pa.array(titles, pa.string()))
    return Manifest(table, tmp_path / "m.parquet").write(tmp_path / "m.parquet")


def test_titles_and_words(tmp_path: Path, titled: Manifest) -> None:
    done = crosspair("titles", "clean", titled.path, "--report", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    assert f"{titled.path}: 64 pairs; 1 without an English title" in done.stdout
    assert f"{titled.column('pair_id')[3]} '犬 ★'" in " ".join(done.stderr.split())
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.html", "titles.csv",
    }  # fmt: skip
    first = Manifest.read(titled.path)
    assert first.column("title_clean").count(None) == 1
    assert first.column("title") == titled.column("title")

    run("titles", "clean", titled.path)
    assert Manifest.read(titled.path).hash == first.hash

    done = crosspair("titles", "words", titled.path, "--out", tmp_path / "words")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("title_clean", "title_tree", "at least one"))
    assert {path.name for path in (tmp_path / "words").iterdir()} == {
        "words.md", "words.csv", "words.png",
    }  # fmt: skip


def test_titles_of_another_manifest(tmp_path: Path, titled: Manifest) -> None:
    out = tmp_path / "new"
    run("titles", "clean", titled.path, "--out", out, "--empty", "drop", "--lemmas")
    assert len(Manifest.read(out)) == 63
    assert Manifest.read(titled.path).column("title_clean") == [None] * 64


def test_errors_of_titles(tmp_path: Path, titled: Manifest) -> None:
    before = titled.path.read_bytes()
    assert "none.parquet" in refused("titles", "clean", tmp_path / "none.parquet")
    missing = refused("titles", "words", titled.path, "--accuracy", tmp_path / "none.csv")
    assert str(tmp_path / "none.csv") in missing
    place = titled.table.column_names.index("label")
    none = titled.table.set_column(place, "label", pa.nulls(64, pa.string()))
    Manifest(none, tmp_path / "n.parquet").write(tmp_path / "n.parquet")
    assert "label" in refused("titles", "words", tmp_path / "n.parquet")
    assert titled.path.read_bytes() == before


# --- prepare ---


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, make_video) -> Path:
    """A manifest of two segments of one video, and one with a missing video in addition."""
    folder = tmp_path_factory.mktemp("sources")
    make_video(folder / "a.avi", fps=25, frames=75, size=(192, 144))
    row = {"path": "a.avi", "title": "A title", "label": "x"}
    rows = [{**row, "pair_id": "one"}, {**row, "pair_id": "two", "start": 1.0}]
    manifest_from_rows(rows, folder / "good.parquet").write(folder / "good.parquet")
    rows.append({**row, "pair_id": "three", "path": "none.mp4"})
    manifest_from_rows(rows, folder / "bad.parquet").write(folder / "bad.parquet")
    return folder


def prepare(*arguments: object) -> subprocess.CompletedProcess[str]:
    done = crosspair("prepare", *arguments)
    assert "Traceback" not in done.stderr
    return done


def test_prepared_files_are_reused(tmp_path: Path, sources: Path) -> None:
    call = [sources / "good.parquet", "--out", tmp_path / "out", "--short-side", 64,
            "--middle", 2, "--fps", 30, "--gop", 8, "--crf", 24, "--workers", 2]  # fmt: skip
    done = prepare(*call)
    assert done.returncode == 0, done.stderr
    manifest = tmp_path / "out" / "manifest.parquet"
    summary = f"{manifest}: 2 pairs, 0 broken; 2 videos, {{}} prepared earlier\n"
    assert done.stdout == summary.format(0)
    for clip in Manifest.read(manifest).clips():
        info = probe(clip.path)
        assert (info.width, info.height, info.frames, info.fps) == (86, 64, 60, 30)
    again = prepare(*call)
    assert again.returncode == 0
    assert again.stdout == summary.format(2)


def test_the_last_shard_writes_the_manifest(tmp_path: Path, sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ("prepare", sources / "good.parquet", "--out", tmp_path, "--short-side", 64, "--workers", 1)
    run(*call, "--shard", "2/2")
    assert "shard 2/2" in capsys.readouterr().out
    assert not (tmp_path / "manifest.parquet").exists()
    run(*call, "--shard", "1/2")
    assert "2 pairs, 0 broken" in capsys.readouterr().out
    assert "'3/x'" in refused(*call, "--shard", "3/x")


def test_broken_sources_set_the_exit_status(tmp_path: Path, sources: Path) -> None:
    done = prepare(sources / "bad.parquet", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "3 pairs, 1 broken; 3 videos, 0 prepared earlier" in done.stdout
    assert f"{sources / 'none.mp4'}: " in " ".join(done.stderr.split())
    errors = Manifest.read(tmp_path / "out").column("error")
    assert errors[:2] == [None, None]
    assert errors[2].startswith(f"{sources / 'none.mp4'}: ")


def test_a_dry_run_writes_nothing(tmp_path: Path, sources: Path) -> None:
    call = sources / "bad.parquet", "--out", tmp_path / "out", "--dry-run"
    done = prepare(*call, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"3 pairs, 3 videos: 0 prepared, 3 missing\n"
        r"estimate from 3 videos \(1 broken\): \d:\d\d:\d\d with 1 processes \(\d:\d\d:\d\d "
        r"with one\), \d+\.\d MB of disk space \(\d+ MB free\)\n",
        done.stdout,
    )
    assert list(tmp_path.iterdir()) == []
    prepare(sources / "good.parquet", "--out", tmp_path / "out")
    done = prepare(sources / "good.parquet", "--out", tmp_path / "out", "--dry-run")
    assert done.stdout == "2 pairs, 2 videos: 2 prepared, 0 missing\n"


@pytest.mark.parametrize(
    ("more", "value"),
    [
        (["--fps", "fast"], "'fast'"),
        (["--fps", "0"], "0"),
        (["--short-side", "127"], "127"),
        (["--address", "auto"], "--address"),
    ],
)
def test_invalid_options_of_prepare(tmp_path: Path, sources: Path, more: list[str], value: str) -> None:
    assert value in refused("prepare", sources / "good.parquet", "--out", tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_output_in_the_folder_of_the_manifest_is_rejected(sources: Path) -> None:
    assert f"{sources} " in refused("prepare", sources / "good.parquet", "--out", sources)
    assert sorted(p.name for p in sources.iterdir()) == ["a.avi", "bad.parquet", "good.parquet"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_resumes(tmp_path: Path, make_video, how: signal.Signals) -> None:
    make_video(tmp_path / "a.mp4", frames=60, size=(320, 240))
    rows = [
        {"pair_id": f"{n:03d}", "path": "a.mp4", "title": "t", "start": n / 1000}
        for n in range(500)  # enough to be interrupted in time on any machine
    ]
    manifest_from_rows(rows, tmp_path / "m.parquet").write(tmp_path / "m.parquet")
    out = tmp_path / "out"
    call = command("prepare", tmp_path / "m.parquet", "--out", out, "--workers", 1)
    running = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list((out / "videos").glob("*.mp4"))) < 3:
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(how)
    running.wait()
    begun = {p: p.stat().st_mtime_ns for p in sorted((out / "videos").glob("*.mp4"))}
    assert 3 <= len(begun) < 500
    assert not (out / "manifest.parquet").exists()
    # The rest of it would take long; of these rows, all but the last two or three are done.
    manifest_from_rows(rows[: len(begun) + 2], tmp_path / "m.parquet").write(tmp_path / "m.parquet")
    done = prepare(tmp_path / "m.parquet", "--out", out)
    assert done.returncode == 0, done.stderr
    assert not list(out.rglob("*.partial"))
    found = re.search(r"(\d+) prepared earlier", done.stdout)
    assert found is not None
    # A kill may come between a file and its journal entry; the worker finishes its current file.
    assert len(begun) - 1 <= int(found[1]) <= len(begun)
    kept = [p for p, at in begun.items() if p.stat().st_mtime_ns == at]
    assert kept[: int(found[1])] == list(begun)[: int(found[1])]
    for clip in Manifest.read(out).clips()[-4:]:
        assert probe(clip.path).codec == "h264"
