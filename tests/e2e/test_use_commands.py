"""embed and classify as a user runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from crosspair.cli import main
from tests.e2e.conftest import crosspair
from tests.evaluation.conftest import tiny_model

FAST = ("--device", "cpu", "--workers", "0", "--precision", "fp32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "short.mp4", frames=20, fps=10)
    make_video(folder / "long.mp4", frames=330, fps=10)
    (folder / "broken.mp4").write_text("no video")
    return folder


def run(*arguments: object) -> None:
    main(list(map(str, arguments)))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("crosspair: error: ")
    return line.removeprefix("crosspair: error: ")


def test_embed_writes_a_row_a_video(model, videos, tmp_path) -> None:
    out = tmp_path / "new" / "f.parquet"
    done = crosspair("embed", videos, "--model", model, "--out", out, "--clips", 2, *FAST)
    assert done.returncode == 0, done.stderr
    assert f"{out}: 2 rows; 1 videos could not be read (column error)" in done.stdout
    table = pq.read_table(out)
    rows = {Path(row["video"]).name: row for row in table.to_pylist()}
    assert set(rows) == {"short.mp4", "long.mp4", "broken.mp4"}
    assert np.linalg.norm(rows["long.mp4"]["embedding"]) == pytest.approx(1, abs=1e-5)
    assert len(rows["long.mp4"]["visual"]) == 32
    assert rows["broken.mp4"]["embedding"] is None
    assert "it is text" in rows["broken.mp4"]["error"]
    about = json.loads(table.schema.metadata[b"crosspair"])
    assert about == {"model": tiny_model().hash, "clips": 2, "window": None, "stride": None}


def test_embed_writes_a_row_a_window(model, videos, tmp_path, capsys) -> None:
    out = tmp_path / "f.parquet"
    run("embed", videos, "--model", model, "--out", out, "--window", 3, "--stride", 1.5, *FAST)
    rows = pq.read_table(out).to_pylist()
    spans = [(row["start"], row["end"]) for row in rows if row["video"].endswith("long.mp4")]
    assert spans[:3] == [(0, 3), (1.5, 4.5), (3, 6)]
    assert spans[-1][1] == 33
    assert sum(row["error"] is not None for row in rows) == 1
    assert "1 videos could not be read" in capsys.readouterr().out


def test_embed_that_can_read_nothing_writes_nothing(model, videos, tmp_path, capsys) -> None:
    out = tmp_path / "f.parquet"
    inputs = ("embed", videos / "broken.mp4", "--model", model, "--out", out, *FAST)
    for more in ((), ("--window", 2)):
        line = refused(capsys, *inputs, *more)
        assert "none of the 1 videos can be read" in line
        assert "it is text" in line
    assert list(tmp_path.iterdir()) == []


def test_classify_tells_a_timeline_of_long_videos(model, videos, capsys) -> None:
    inputs = ("classify", videos, "--model", model, *FAST)
    run(*inputs, "--classes", "dog, cat", "--json")
    told = {Path(each["video"]).name: each for each in json.loads(capsys.readouterr().out)}
    assert "it is text" in told["broken.mp4"]["error"]
    assert {each["class"] for each in told["short.mp4"]["classes"]} == {"dog", "cat"}
    assert sum(each["score"] for each in told["short.mp4"]["classes"]) == pytest.approx(1, abs=1e-3)
    assert "timeline" not in told["short.mp4"]
    timeline = told["long.mp4"]["timeline"]
    assert (timeline[0]["start"], timeline[-1]["end"]) == (0, 33)
    run(*inputs, "--classes", "dog, cat", "--window", 1, "--stride", 1, "--top", 1)
    shown = capsys.readouterr().out
    assert f"\n{videos / 'short.mp4'}\n" in shown
    assert "cannot be read: " in shown
    assert "0:00–" in shown


def test_classify_keeps_what_can_be_read_where_all_long_videos_are_damaged(
    model, videos, tmp_path, capsys
) -> None:
    content = (videos / "long.mp4").read_bytes()
    start, end = content.index(b"mdat") + 4, content.rindex(b"moov") - 4
    damaged = [tmp_path / name for name in ("a.mp4", "b.mp4")]
    for path in damaged:
        path.write_bytes(content[:start] + bytes(end - start) + content[end:])
    call = ("--model", model, "--classes", "dog, cat", "--json", *FAST)
    run("classify", *damaged, videos / "short.mp4", *call)
    told = {each["video"]: each for each in json.loads(capsys.readouterr().out)}
    assert len(told[str(videos / "short.mp4")]["classes"]) == 2
    for path in damaged:
        assert told[str(path)]["error"].startswith(f"{path}: ")
    line = refused(capsys, "classify", *damaged, *call)
    assert line.startswith(f"none of the 2 videos can be read: {damaged[0]}: ")


def test_classify_takes_files_of_classes_and_templates(model, videos, tmp_path, capsys) -> None:
    (tmp_path / "classes.txt").write_text("dog\n\ncat\ndog\n")
    (tmp_path / "templates.txt").write_text("a {}\n")
    run(
        "classify", videos / "short.mp4", "--model", model, "--json", *FAST,
        "--classes-file", tmp_path / "classes.txt", "--templates", tmp_path / "templates.txt",
    )  # fmt: skip
    (told,) = json.loads(capsys.readouterr().out)
    assert sorted(each["class"] for each in told["classes"]) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--classes", " , "), "there are no classes; give at least one name"),
        (("--classes-file", "none.txt"), "class file none.txt does not exist"),
        (("--classes", "a", "--stride", "1"), "--stride is of windows; give --window, too"),
        (("--classes", "a", "--window", "-1"), "the stride is more than 0"),
        (("--classes", "a", "--device", "toaster"), "device 'toaster' cannot be used here"),
    ],
)
def test_what_does_not_do(model, videos, capsys, more, message) -> None:
    line = refused(capsys, "classify", videos / "broken.mp4", "--model", model, *more)
    assert message in line


def test_a_place_that_is_none(videos, tmp_path, capsys) -> None:
    # Told before the model is looked at, which is none here.
    line = refused(capsys, "embed", videos, "--model", tmp_path, "--out", tmp_path)
    told = f"--out names a file of results, and {tmp_path} is a folder; try "
    assert line == f"{told}{tmp_path / 'features.parquet'}"


def test_a_model_that_is_none(videos, tmp_path, capsys) -> None:
    line = refused(capsys, "embed", videos, "--model", tmp_path, "--out", tmp_path / "f.parquet")
    assert "holds no model" in line
