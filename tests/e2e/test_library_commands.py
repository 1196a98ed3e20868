"""End-to-end runs of index and search."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import FAST, crosspair, refused, run
from tests.evaluation.conftest import tiny_model

pytest.importorskip("lancedb")


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
    run(*search, "a dog", "--folder", made / "elsewhere")
    assert capsys.readouterr().out == "nothing found\n"


def test_forget(made, tmp_path, capsys) -> None:
    library = tmp_path / "library"
    options = ("--library", library, *FAST)
    run("index", made / "videos", *options, "--model", made / "model")
    run("index", made / "videos" / "2.mp4", *options, "--forget")
    assert "1 videos removed" in capsys.readouterr().out


def test_a_model_without_a_text_tower_rejects_texts(made, tmp_path, capsys) -> None:
    model = tiny_model()
    model.untrained = ("text_encoder", "text_head")
    model.save_pretrained(tmp_path / "model")
    run("index", made / "videos" / "2.mp4", "--library", tmp_path / "library",
        "--model", tmp_path / "model", *FAST)  # fmt: skip
    capsys.readouterr()
    for call in (
        ("search", "a dog", "--library", tmp_path / "library"),
        ("classify", made / "videos" / "2.mp4", "--classes", "a, b", "--model", tmp_path / "model"),
    ):
        assert "text tower" in refused(*call, *FAST)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (("search", "a dog", "--library", "{}/videos"), "{}/videos"),
        (("search", "a dog", "--library", "{}/library", "--where", "x ="), "{}/library"),
        (("search", "zzz", "--library", "{}/library"), "'zzz'"),
        (("search", "--video", "", "--library", "{}/library"), "--video ''"),
        (("index", "{}/videos", "--library", "{}/new"), "--model"),
    ],
)  # fmt: skip
def test_invalid_options(made, capsys, arguments, value) -> None:
    call = [argument.format(made) for argument in arguments]
    assert value.format(made) in refused(*call)
    assert not (made / "new").exists()
