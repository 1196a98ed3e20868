"""Invalid input: one line, exit status 2, and no partial output."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import crosspair, pretrain_arguments


def refused(*arguments: object) -> str:
    """Run the command, check that it fails with one line, and return the message."""
    done = crosspair("--quiet", *arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("crosspair: error: ")
    return last.removeprefix("crosspair: error: ")


def test_missing_manifest(tmp_path) -> None:
    line = refused(*pretrain_arguments(tmp_path / "none.parquet", tmp_path / "run"))
    assert "none.parquet" in line
    assert not (tmp_path / "run").exists()


def test_wrong_column(tmp_path, rendered) -> None:
    path = tmp_path / "m.parquet"
    table = rendered.table.rename_columns(
        ["caption" if name == "title" else name for name in rendered.table.column_names]
    )
    pq.write_table(table, path)
    line = refused(*pretrain_arguments(path, tmp_path / "run"))
    assert str(path) in line
    assert "'title'" in line


def test_no_pair(tmp_path, rendered) -> None:
    titles = tmp_path / "titles.tsv"
    titles.write_text("video_id\ttitle\nunknown_id\tA title\n")
    videos = rendered.path.parent / "videos"
    line = refused("corpus", "folder", videos, "--titles", titles, "--out", tmp_path / "out")
    assert "unknown_id" in line
    assert not (tmp_path / "out").exists()


def one_video_corpus(tmp_path: Path, rendered, content: bytes) -> list[object]:
    folder = tmp_path / "videos"
    folder.mkdir()
    source = rendered.path.parent / rendered.column("path")[0]
    shutil.copy(source, folder / f"good{source.suffix}")
    (folder / "bad.mp4").write_bytes(content)
    titles = tmp_path / "titles.csv"
    titles.write_text("video_id,title\ngood,A title\nbad,Another\n")
    return ["corpus", "folder", folder, "--titles", titles, "--out", tmp_path / "m.parquet"]


def audio_only(path: Path) -> bytes:
    import av

    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate = 48000
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["empty", "cut", "audio"])
def test_broken_videos_of_a_folder(tmp_path, rendered, kind) -> None:
    mp4 = next(path for path in rendered.column("path") if path.endswith(".mp4"))
    content = {
        "empty": lambda: b"",
        "cut": lambda: (rendered.path.parent / mp4).read_bytes()[:2000],
        "audio": lambda: audio_only(tmp_path / "audio.mp4"),
    }[kind]()
    call = one_video_corpus(tmp_path, rendered, content)
    line = refused(*call)
    assert "bad.mp4" in line
    assert "--skip-broken" in line
    assert not (tmp_path / "m.parquet").exists()
    done = crosspair(*call, "--skip-broken")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "m.parquet")
    assert [error is not None for error in table["error"].to_pylist()] == [False, True]


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


def test_unknown_recipe_key_names_the_nearest(tmp_path, rendered) -> None:
    call = pretrain_arguments(rendered.path, tmp_path / "run", "training.epoch=3")
    line = refused(*call)
    assert "'training.epoch'" in line
    assert "'training.epochs'" in line


def test_an_invalid_word_vector_file(tmp_path, rendered) -> None:
    file = tmp_path / "vectors.bin"
    file.write_bytes(bytes(range(256)) * 10)
    call = pretrain_arguments(rendered.path, tmp_path / "run", f"text.source={file}")
    assert str(file) in refused(*call)


def test_an_existing_run_folder(tmp_path, rendered) -> None:
    call = pretrain_arguments(rendered.path, tmp_path / "run", "training.epochs=1")
    assert crosspair(*call).returncode == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert "--resume" in refused(*call)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_of_another_architecture(tmp_path, rendered) -> None:
    call = pretrain_arguments(rendered.path, tmp_path / "run", "training.epochs=1")
    assert crosspair(*call).returncode == 0
    line = refused(*call, "video.depth=18", "--resume")
    assert "video.depth" in line
    (tmp_path / "run" / "recipe.yaml").write_text(
        (tmp_path / "run" / "recipe.yaml").read_text().replace("depth: 10", "depth: 18")
    )
    line = refused(*call, "video.depth=18", "--resume")
    assert str(tmp_path / "run") in line
