"""Search: nearest windows, suppression of neighbours, conditions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crosspair.errors import CrosspairError, ModelError, TextError, VideoError
from crosspair.library import InferenceEngine, Library, LibraryError, Searcher, Windows, index_videos
from crosspair.library import search as search_module
from crosspair.library import store as store_module
from crosspair.library.search import contact_sheet
from crosspair.models import CPD

pytest.importorskip("lancedb")

D = 8
Row = tuple[str, float, float, str | None, np.ndarray]


def filled(folder: Path, model: CPD, rows: list[Row]) -> Library:
    """A library with the given windows: path, start, end, title, vector."""
    library = Library.create(folder, model, Windows())
    add(library, rows)
    return library


def add(library: Library, rows: list[Row]) -> None:
    names = ("path", "start", "end", "title", "vector")
    common = {"thumbnail": b"jpeg", "size": 1, "modified": 1}
    library.add([{**dict(zip(names, row, strict=True)), "video": row[0], **common} for row in rows], {})


def near(cosine: float) -> np.ndarray:
    """A unit vector with that cosine to the first axis."""
    vector = np.zeros(D, np.float32)
    vector[:2] = cosine, np.sqrt(1 - cosine**2)
    return vector


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def library(tmp_path: Path, model: CPD) -> Library:
    return filled(tmp_path / "library", model, [
        ("/a/x.mp4", 0, 4, "a dog", near(0.5)),
        ("/a/x.mp4", 2, 6, "a dog", near(0.9)),
        ("/a/x.mp4", 4, 8, "a dog", near(0.8)),
        ("/a/x.mp4", 6, 10, "a dog", near(0.7)),
        ("/a/x.mp4", 8, 12, "a dog", near(0.6)),
        ("/a_b/it's.mp4", 0, 4, None, near(0.85)),
        ("/a_b/it's.mp4", 20, 24, None, near(0.2)),
        ("/ab/y.mp4", 0, 4, "50 % off", near(-0.5)),
        ("https://a.org/b//z.mp4", 0, 4, None, near(-0.6)),
    ])  # fmt: skip


def found(library: Library, **choices: object) -> list[tuple[str, float, float]]:
    hits = Searcher(library).nearest(near(1.0), **choices)  # type: ignore[arg-type]
    assert all(hit.thumbnail == b"jpeg" for hit in hits)
    return [(hit.path, hit.start, round(hit.score, 3)) for hit in hits]


def test_results_are_suppressed_and_sorted(library: Library) -> None:
    assert found(library) == [
        ("/a/x.mp4", 2, 0.9), ("/a_b/it's.mp4", 0, 0.85), ("/a/x.mp4", 8, 0.6),
        ("/a_b/it's.mp4", 20, 0.2), ("/ab/y.mp4", 0, -0.5), ("https://a.org/b//z.mp4", 0, -0.6),
    ]  # fmt: skip
    assert found(library, limit=2) == found(library)[:2]


def test_more_windows_are_fetched_if_neighbours_fill_the_first_batch(tmp_path: Path, model: CPD) -> None:
    rows: list[Row] = [("/x.mp4", i / 10, 10 + i / 10, None, near(0.9 + i / 1e4)) for i in range(40)]
    library = filled(tmp_path / "library", model, [*rows, ("/y.mp4", 0, 4, None, near(0.1))])
    assert [path for path, _, _ in found(library, limit=2)] == ["/x.mp4", "/y.mp4"]


def test_at_most_n_results_per_video(library: Library, tmp_path: Path, model: CPD) -> None:
    assert found(library, per_video=1) == [
        ("/a/x.mp4", 2, 0.9), ("/a_b/it's.mp4", 0, 0.85), ("/ab/y.mp4", 0, -0.5), ("https://a.org/b//z.mp4", 0, -0.6),
    ]  # fmt: skip
    assert found(library, per_video=2) == found(library)
    rows: list[Row] = [("/x.mp4", 10 * i, 10 * i + 4, None, near(0.9 + i / 1e4)) for i in range(200)]
    crowded = filled(tmp_path / "crowded", model, [*rows, ("/y.mp4", 0, 4, None, near(0.1))])
    assert [path for path, _, _ in found(crowded, limit=2, per_video=1)] == ["/x.mp4", "/y.mp4"]
    assert len(found(crowded, limit=50, per_video=3)) == 4
    with pytest.raises(CrosspairError, match="per_video"):
        found(library, per_video=0)


def test_near_duplicates_are_suppressed(tmp_path: Path, model: CPD) -> None:
    draw = np.random.default_rng(0)
    centres = unit(draw.standard_normal((6, D)))
    copies = unit(np.repeat(centres, 60, axis=0) + 0.03 * draw.standard_normal((360, D)))
    rows: list[Row] = [(f"/{i}.mp4", 0, 4, None, vector) for i, vector in enumerate(copies)]
    library = filled(tmp_path / "library", model, rows)
    order = sorted(range(len(rows)), key=lambda i: -copies[i][0])
    for dedupe in (0.5, 0.95, 0.995):
        expected: list[int] = []
        for i in order:
            if all(copies[i] @ copies[j] < dedupe for j in expected):
                expected.append(i)
        for limit in (2, 5, 1000):
            hits = found(library, limit=limit, dedupe=dedupe)
            assert [path for path, _, _ in hits] == [f"/{i}.mp4" for i in expected[:limit]]
    assert len(found(library, limit=1000)) == 360


@pytest.mark.parametrize("dedupe", [0.0, -1.0, 1.1, float("nan")])
def test_copies_are_duplicates_at_1(library: Library, dedupe: float) -> None:
    same = near(0.3)
    add(library, [(f"/copies/{i}.mp4", 0, 4, None, same) for i in range(9)])
    assert len(found(library, folder="/copies", dedupe=1.0)) == 1
    assert len(found(library, folder="/copies")) == 9
    with pytest.raises(LibraryError, match="dedupe"):
        found(library, dedupe=dedupe)


def test_conditions(library: Library) -> None:
    for choices, paths in (
        ({"where": "title LIKE '%dog%'"}, {"/a/x.mp4"}),
        ({"where": '"end" > 20'}, {"/a_b/it's.mp4"}),
        ({"where": "end > 2e1 AND size IN (1, 2)"}, {"/a_b/it's.mp4"}),
        ({"where": "path = '/a_b/it''s.mp4' or NOT (title IS NULL OR start <> -1)"}, {"/a_b/it's.mp4"}),
        ({"folder": "/a_b/"}, {"/a_b/it's.mp4"}),
        ({"folder": Path("/ab/../a")}, {"/a/x.mp4"}),
        ({"folder": "https://a.org/b/"}, {"https://a.org/b//z.mp4"}),
        ({"folder": "https://a.org/"}, {"https://a.org/b//z.mp4"}),
        ({"folder": "https://a.or"}, set()),
        ({"folder": "/a", "where": "start < 0 OR start > 100"}, set()),
        ({"without": ["/a_b/it's.mp4"], "where": "path LIKE '/%'"}, {"/a/x.mp4", "/ab/y.mp4"}),
        ({"exact": True, "limit": 1}, {"/a/x.mp4"}),
    ):
        assert {path for path, _, _ in found(library, **choices)} == paths, choices
    with pytest.raises(LibraryError, match="colour"):
        found(library, where="colour = 'red'")
    with pytest.raises(LibraryError, match=r"\A.*\Z"):  # one line
        found(library, where="path LIKE")
    with pytest.raises(LibraryError, match=r"8 dimensions.* 3"):
        Searcher(library).nearest(np.ones(3, np.float32))


@pytest.mark.parametrize(
    "where",
    ["start >= 0) OR (start >= 0", "(start >= 0", ")(", "start >= 0 -- ", "start >= 0 /*", "repeat('a', 2) = title",
     "title = 'a", "video = 1; DROP", "1 IN (SELECT 1)", "vector IS NULL", "size = 1" + " " * 10_000],
)  # fmt: skip
def test_conditions_that_are_not_supported(library: Library, where: str) -> None:
    with pytest.raises(LibraryError, match=r"\Awhere: .*\Z"):
        found(library, where=where, folder="/a")


def test_an_index_finds_what_is_near_and_what_came_later(
    tmp_path: Path, model: CPD, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = unit(np.random.default_rng(0).standard_normal((600, D)).astype(np.float32))
    rows: list[Row] = [(f"/{i}.mp4", 0.0, 4.0, None, vector) for i, vector in enumerate(vectors)]
    library = filled(tmp_path / "library", model, rows[:500])
    library.optimize()
    assert not list(library.table.list_indices())
    monkeypatch.setattr(store_module, "EXACT_UP_TO", 499)
    library.optimize()
    assert len(list(library.table.list_indices())) == 1
    add(Library(library.folder), rows[500:])
    searcher = Searcher(library)
    for part in (vectors[:500], vectors):
        hits = 0
        for query in part[:: len(part) // 20]:
            exact = {hit.path for hit in searcher.nearest(query, exact=True, limit=5)}
            hits += len(exact & {hit.path for hit in searcher.nearest(query, limit=5)})
        assert hits >= 95


def test_a_condition_searches_more_partitions_of_an_index(
    tmp_path: Path, model: CPD, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lancedb.index import IvfSq

    centres = np.eye(D, dtype=np.float32).repeat(64, axis=0)
    noise = np.random.default_rng(0).standard_normal(centres.shape).astype(np.float32)
    vectors = unit(centres + 0.1 * noise)
    rows: list[Row] = [(f"/{i // 64}/{i}.mp4", 0.0, 4.0, None, each) for i, each in enumerate(vectors)]
    library = filled(tmp_path / "library", model, rows)
    # By default, only the index of a large library has several partitions.
    library.table.create_index("vector", config=IvfSq(distance_type="cosine", num_partitions=D))
    monkeypatch.setattr(search_module, "NPROBES", 1)
    hits = Searcher(library).nearest(vectors[0], folder=f"/{D - 1}", limit=64)
    assert {hit.path for hit in hits} == {path for path, *_ in rows[-64:]}


def test_texts_and_videos_as_queries(
    tiny: InferenceEngine, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index_videos(tmp_path / "library", tiny, [folder], windows=Windows(2, 1))
    searcher = Searcher(str(tmp_path / "library"))
    by_text = searcher.text("a dog", limit=3)
    assert [len(by_text), by_text[0].thumbnail[:2]] == [3, b"\xff\xd8"]
    assert by_text[0].score >= by_text[1].score >= by_text[2].score
    by_video = searcher.video(folder / "4.mp4", limit=10)
    assert {Path(hit.path).name for hit in by_video} == {"1.mp4", "2.mp4", "3.mp4"}
    with pytest.raises(TextError, match="'zzz'"):
        searcher.text("zzz")
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        searcher.video(folder / "broken.mp4")
    with pytest.raises(VideoError, match="5 videos"):
        searcher.video(folder)
    for part in ("video_head", "text_encoder", "text_head"):
        searcher.engine.model.untrained = (part,)
        with pytest.raises(ModelError):
            searcher.text("a dog")
        assert searcher.video(folder / "4.mp4")
    assert "text tower" not in caplog.text
    index_videos(tmp_path / "other", searcher.engine, [folder / "1.mp4"], windows=Windows(2, 1))
    assert "text tower" in caplog.text


def test_contact_sheet_has_a_row_per_hit(
    tiny: InferenceEngine, tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    video = make_video(tmp_path / "videos" / "a.mp4", frames=40, fps=10)
    index_videos(tmp_path / "library", tiny, [tmp_path / "videos"], windows=Windows(1, 1))
    hits = Searcher(tmp_path / "library").text("a dog")
    assert len(hits) == 2
    readable = contact_sheet(hits)
    video.unlink()
    for sheet in (readable, contact_sheet(hits)):
        assert sheet.startswith(b"\x89PNG")
        assert int.from_bytes(sheet[20:24], "big") == 2 * (112 + 6)  # height
    assert contact_sheet([]).startswith(b"\x89PNG")
