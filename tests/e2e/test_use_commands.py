"""End-to-end runs of embed, classify, index and search."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from crosspair.corpora.manifest import manifest_from_rows
from tests.e2e.conftest import FAST, crosspair, refused, run
from tests.evaluation.conftest import tiny_model


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "short.mp4", frames=20, fps=10)
    make_video(folder / "long.mp4", frames=330, fps=10)
    (folder / "broken.mp4").write_text("no video")
    return folder


def test_embed_writes_a_row_per_video(tiny, videos, tmp_path) -> None:
    out = tmp_path / "new" / "f.parquet"
    done = crosspair("embed", videos, "--model", tiny, "--out", out, "--clips", 2, *FAST)
    assert done.returncode == 0, done.stderr
    assert f"{out}: 2 rows; 1 videos could not be read (column error)" in done.stdout
    table = pq.read_table(out)
    rows = {Path(row["video"]).name: row for row in table.to_pylist()}
    assert set(rows) == {"short.mp4", "long.mp4", "broken.mp4"}
    assert np.linalg.norm(rows["long.mp4"]["embedding"]) == pytest.approx(1, abs=1e-5)
    assert len(rows["long.mp4"]["visual"]) == 32
    assert rows["broken.mp4"]["embedding"] is None
    assert "broken.mp4" in rows["broken.mp4"]["error"]
    metadata = json.loads(table.schema.metadata[b"crosspair"])
    assert metadata == {"model": tiny_model().hash, "clips": 2, "window": None, "stride": None}


def test_embed_writes_a_row_per_window(tiny, videos, tmp_path, capsys) -> None:
    out = tmp_path / "f.parquet"
    run("embed", videos, "--model", tiny, "--out", out, "--window", 3, "--stride", 1.5, *FAST)
    rows = pq.read_table(out).to_pylist()
    spans = [(row["start"], row["end"]) for row in rows if row["video"].endswith("long.mp4")]
    assert spans[:3] == [(0, 3), (1.5, 4.5), (3, 6)]
    assert spans[-1][1] == 33
    assert sum(row["error"] is not None for row in rows) == 1
    assert "1 videos could not be read" in capsys.readouterr().out


def test_embed_without_a_readable_video_writes_nothing(tiny, videos, tmp_path, capsys) -> None:
    out = tmp_path / "f.parquet"
    inputs = ("embed", videos / "broken.mp4", "--model", tiny, "--out", out, *FAST)
    for more in ((), ("--window", 2)):
        line = refused(*inputs, *more)
        assert f"{videos / 'broken.mp4'}: " in line
    assert list(tmp_path.iterdir()) == []


def test_classify_returns_a_timeline_of_long_videos(tiny, videos, capsys) -> None:
    inputs = ("classify", videos, "--model", tiny, *FAST)
    run(*inputs, "--classes", "dog, cat", "--json")
    results = {Path(each["video"]).name: each for each in json.loads(capsys.readouterr().out)}
    assert results["broken.mp4"]["error"]
    short = results["short.mp4"]
    assert {each["class"] for each in short["classes"]} == {"dog", "cat"}
    assert sum(each["score"] for each in short["classes"]) == pytest.approx(1, abs=1e-3)
    assert "timeline" not in short
    timeline = results["long.mp4"]["timeline"]
    assert (timeline[0]["start"], timeline[-1]["end"]) == (0, 33)
    run(*inputs, "--classes", "dog, cat", "--window", 1, "--stride", 1, "--top", 1)
    shown = capsys.readouterr().out
    assert f"\n{videos / 'short.mp4'}\n" in shown
    assert "  error: " in shown
    assert "0:00–" in shown


def test_classify_returns_short_videos_if_all_long_ones_are_damaged(tiny, videos, tmp_path, capsys) -> None:
    content = (videos / "long.mp4").read_bytes()
    start, end = content.index(b"mdat") + 4, content.rindex(b"moov") - 4
    damaged = [tmp_path / name for name in ("a.mp4", "b.mp4")]
    for path in damaged:
        path.write_bytes(content[:start] + bytes(end - start) + content[end:])
    call = ("--model", tiny, "--classes", "dog, cat", "--json", *FAST)
    run("classify", *damaged, videos / "short.mp4", *call)
    results = {each["video"]: each for each in json.loads(capsys.readouterr().out)}
    assert len(results[str(videos / "short.mp4")]["classes"]) == 2
    for path in damaged:
        assert results[str(path)]["error"].startswith(f"{path}: ")
    assert f"{damaged[0]}: " in refused("classify", *damaged, *call)


def test_classify_reads_files_of_classes_and_templates(tiny, videos, tmp_path, capsys) -> None:
    (tmp_path / "classes.txt").write_text("dog\n\ncat\ndog\n")
    (tmp_path / "templates.txt").write_text("a {}\n")
    run(
        "classify", videos / "short.mp4", "--model", tiny, "--json", *FAST,
        "--classes-file", tmp_path / "classes.txt", "--templates", tmp_path / "templates.txt",
    )  # fmt: skip
    (result,) = json.loads(capsys.readouterr().out)
    assert sorted(each["class"] for each in result["classes"]) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("more", "value"),
    [
        (("--classes", " , "), "--classes"),
        (("--classes-file", "none.txt"), "none.txt"),
        (("--classes", "a", "--stride", "1"), "--stride"),
        (("--classes", "a", "--window", "-1"), "-1"),
        (("--classes", "a", "--device", "toaster"), "'toaster'"),
    ],
)
def test_invalid_options_of_classify(tiny, videos, capsys, more, value) -> None:
    line = refused("classify", videos / "broken.mp4", "--model", tiny, *more)
    assert value in line


def test_folder_without_a_model(videos, tmp_path, capsys) -> None:
    line = refused("embed", videos, "--model", tmp_path, "--out", tmp_path / "f.parquet")
    assert str(tmp_path) in line


# --- libraries ---


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """A folder with a model, videos and a library of them."""
    folder = tmp_path_factory.mktemp("made")
    tiny_model().save_pretrained(folder / "model")
    for seconds in (2, 6):
        make_video(folder / "videos" / f"{seconds}.mp4", frames=10 * seconds, fps=10)
    (folder / "videos" / "broken.mp4").write_text("no video")
    (folder / "titles.csv").write_text("video_id,title\n2,[bold] brackets\n")
    done = crosspair(
        "index", folder / "videos", "--library", folder / "library", "--model", folder / "model",
        "--titles", folder / "titles.csv", "--window", 2, "--stride", 1, "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 videos added, 0 changed, 0 removed, 0 unchanged; 6 windows written" in done.stdout
    assert "broken.csv: 1 unreadable videos" in done.stdout
    assert "broken.mp4: " in " ".join(done.stderr.split())
    assert "Warning" not in done.stderr
    return folder


def test_a_second_index_needs_no_model_and_does_nothing(made, capsys) -> None:
    run("index", made / "videos", "--library", made / "library", *FAST)
    assert "0 videos added, 0 changed, 0 removed, 3 unchanged; 0 windows" in capsys.readouterr().out


def test_search_prints_results(made, tmp_path, capsys) -> None:
    search = ("search", "--library", made / "library", *FAST)
    run(*search, "a dog", "--json")
    hits = json.loads(capsys.readouterr().out)
    assert {Path(each["path"]).name for each in hits} == {"2.mp4", "6.mp4"}
    assert set(hits[0]) == {"path", "start", "end", "score", "title"}
    run(*search, "a dog", "--where", "title LIKE '%bold%'", "--sheet", tmp_path / "s.png")
    shown = capsys.readouterr().out
    assert "[bold] brackets" in shown
    assert "0:00–0:02" in shown
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    run(*search, "--video", made / "videos" / "2.mp4", "--json", "--limit", 1)
    (hit,) = json.loads(capsys.readouterr().out)
    assert Path(hit["path"]).name == "6.mp4"
    Image.new("RGB", (64, 48), "red").save(tmp_path / "red.png")
    combined = ("2:dog", "--image", f"0.5:{tmp_path / 'red.png'}", "--and", "cat", "--not", "3:dog", "--json")
    run(*search, *combined)
    assert {Path(each["path"]).name for each in json.loads(capsys.readouterr().out)} == {"2.mp4", "6.mp4"}
    run(*search, "a dog with 'BRACKETS", "--by", "title", "--json")
    (hit,) = json.loads(capsys.readouterr().out)
    assert Path(hit["path"]).name == "2.mp4"
    run(*search, "a dog", "--dedupe", 0.95, "--per-video", 1, "--json")
    assert len(json.loads(capsys.readouterr().out)) <= 2
    run(*search, "a dog", "--folder", made / "elsewhere")
    assert capsys.readouterr().out == "nothing found\n"


@pytest.mark.parametrize(
    "words",
    [
        "embed {0}/videos --model {0}/model --out {1}",
        "search dog --library {0}/library --sheet {1}",
        "check {0}/m.parquet --list {1}",
        "evaluate --model {0}/model --manifest {0}/m.parquet --out {1}",
        "export --model {0}/model --out {1}",
    ],
)
def test_no_command_replaces_a_file_of_another_kind(made, tmp_path, words: str) -> None:
    manifest_from_rows([{"pair_id": "a", "path": "videos/2.mp4", "title": "x"}], ".").write(made / "m.parquet")
    for name in ("a.mp4", "a.csv", "a.parquet", "a.png", "a.json"):
        path = tmp_path / name
        path.write_bytes(b"precious")
        assert name in refused(*words.format(made, path).split())
        assert path.read_bytes() == b"precious"


def test_a_sheet_replaces_a_sheet_and_results_are_limited_to_all(made, tmp_path, capsys) -> None:
    search = ("search", "dog", "--library", made / "library", "--sheet", tmp_path / "s.png", *FAST)
    for _ in range(2):
        run(*search, "--limit", 1_000_000_000)
    assert len(capsys.readouterr().out.splitlines()) == 2 * 3


def test_search_exports_results(made, tmp_path, capsys) -> None:
    search = ("search", "a dog", "--library", made / "library", *FAST)
    files = {name: tmp_path / f"found.{name}" for name in ("csv", "edl", "fcpxml")}
    options = [each for name, file in files.items() for each in (f"--{name}", file)]
    run(*search, "--json", "--export-clips", tmp_path / "clips", *options)
    hits = json.loads(capsys.readouterr().out)
    rows = pd.read_csv(files["csv"])
    assert list(rows["start"]) == [hit["start"] for hit in hits]
    assert files["edl"].read_text().count("FROM CLIP NAME") == files["fcpxml"].read_text().count("<asset-clip ")
    names = sorted(path.name for path in (tmp_path / "clips").iterdir())
    assert [name[:5] for name in names] == [f"{rank:02d} {Path(hit['path']).stem} " for rank, hit in enumerate(hits, 1)]
    assert "clips" in refused(*search, "--export-clips", tmp_path / "clips", "--precise")
    run(*search, "--export-clips", tmp_path / "precise", "--precise", "--limit", 1)
    assert f"{tmp_path / 'precise'}: 1 clips\n" in capsys.readouterr().out
    (tmp_path / "mine.edl").write_text("TITLE: mine\n")
    assert "mine.edl" in refused(*search, "--edl", tmp_path / "mine.edl")


def test_forget(made, tmp_path, capsys) -> None:
    library = tmp_path / "library"
    options = ("--library", library, *FAST)
    run("index", made / "videos", *options, "--model", made / "model")
    run("index", made / "videos" / "2.mp4", *options, "--forget")
    assert "removed: 1\n" in capsys.readouterr().out
    assert "2.mp4" in refused("index", made / "videos" / "2.mp4", *options, "--forget")


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (("search", "a dog", "--library", "{}/videos"), "{}/videos"),
        (("search", "a dog", "--library", "{}/library", "--where", "x ="), "'x ='"),
        (("search", "zzz", "--library", "{}/library"), "'zzz'"),
        (("search", "--library", "{}/library"), "--image"),
        (("search", "--not", "dog", "--library", "{}/library"), "positive weight"),
        (("search", "dog", "--image", "{}/titles.csv", "--library", "{}/library"), "titles.csv"),
        (("search", "dog", "--dedupe", "2", "--library", "{}/library"), "dedupe"),
        (("search", "--video", "{}/videos/2.mp4", "--by", "title", "--library", "{}/library"), "title"),
        (("search", "0:dog", "--library", "{}/library"), "'dog'"),
        (("search", "--video", "", "--library", "{}/library"), "--video"),
        (("index", "{}/videos", "--library", "{}/new"), "--model"),
        (("search", "a dog", "--library", "{}/library", "--sheet", "{}/new"), "--sheet"),
    ],
)  # fmt: skip
def test_invalid_options_of_index_and_search(made, capsys, arguments, value) -> None:
    call = [argument.format(made) for argument in arguments]
    assert value.format(made) in refused(*call)
    assert not (made / "new").exists()
