"""Invalid input: one line, exit status 2, and no partial output."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import pretrain_arguments, refused, run


def test_broken_videos_of_a_folder(tmp_path, rendered) -> None:
    folder, out = tmp_path / "videos", tmp_path / "m.parquet"
    folder.mkdir()
    mp4 = rendered.path.parent / next(path for path in rendered.column("path") if path.endswith(".mp4"))
    shutil.copy(mp4, folder / "good.mp4")
    (folder / "bad.mp4").write_bytes(mp4.read_bytes()[:2000])
    titles = tmp_path / "titles.csv"
    titles.write_text("video_id,title\ngood,A title\nbad,Another\n")
    call = ["corpus", "folder", folder, "--titles", titles, "--out", out]
    line = refused(*call)
    assert "bad.mp4" in line
    assert "--skip-broken" in line
    assert not out.exists()
    run(*call, "--skip-broken")
    assert [error is not None for error in pq.read_table(out)["error"].to_pylist()] == [False, True]


def test_missing_videos(tmp_path, rendered) -> None:
    manifest = rendered.write(tmp_path / "m.parquet")  # without its videos
    line = refused(*pretrain_arguments(manifest.path, tmp_path / "run"))
    assert "no such file" in line.lower()


def test_a_title_without_known_words(tmp_path, rendered) -> None:
    titles = rendered.column("title")
    row = rendered.column("split").index("train")
    titles[row] = "😍 !!!"
    place = rendered.table.column_names.index("title")
    table = rendered.table.set_column(place, "title", pa.array(titles))
    path = rendered.path.with_name("emoji.parquet")
    pq.write_table(table, path)
    call = pretrain_arguments(path, tmp_path / "run", "text.empty_titles=error")
    line = refused(*call)
    assert f"'{rendered.column('pair_id')[row]}'" in line
    assert "text.empty_titles=drop" in line
    assert not (tmp_path / "run").exists()


def test_an_existing_run_folder(tmp_path, rendered) -> None:
    call = pretrain_arguments(rendered.path, tmp_path / "run", "training.epochs=1")
    run(*call)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert "--resume" in refused(*call)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("file", ["report.html", "manifest.json", "split1/model/mine"])
def test_a_folder_of_the_user_is_no_run_folder(tmp_path, file) -> None:
    """Refused before the manifest is read, which does not exist."""
    path = tmp_path / "mine" / file
    path.parent.mkdir(parents=True)
    path.write_text('{"mine": 1}')
    for call in (
        pretrain_arguments(tmp_path / "m.parquet", tmp_path / "mine", "--resume"),
        ("finetune", "--recipe", "laptop-finetune", "--init", "random", "--manifest", "m", "--run", tmp_path / "mine"),
        ("finetune", "--recipe", "laptop-finetune", "--init", "random", "--manifest", "m", "--run", tmp_path / "mine",
         "--splits", "1"),
        ("quickstart", "--out", tmp_path / "mine"),
    ):  # fmt: skip
        assert str(tmp_path / "mine") in refused(*call)
    assert [each for each in (tmp_path / "mine").rglob("*") if each.is_file()] == [path]


def test_a_checkpoint_of_another_architecture(tmp_path, rendered) -> None:
    call = pretrain_arguments(rendered.path, tmp_path / "run", "training.epochs=1")
    run(*call)
    line = refused(*call, "video.depth=18", "--resume")
    assert "video.depth" in line
    (tmp_path / "run" / "recipe.yaml").write_text(
        (tmp_path / "run" / "recipe.yaml").read_text().replace("depth: 10", "depth: 18")
    )
    line = refused(*call, "video.depth=18", "--resume")
    assert str(tmp_path / "run") in line
