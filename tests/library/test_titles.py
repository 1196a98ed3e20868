"""Search by the titles of videos: the full-text index, fusion with the ranking by picture, filters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from crosspair.library import InferenceEngine, Library, LibraryError, QueryPart, Searcher, Windows, index_videos
from crosspair.library import search as search_module
from crosspair.models import CPD
from tests.library.test_search import D, Row, add, filled, found, near, unit

pytest.importorskip("lancedb")

Ranked = list[tuple[str, float, float]]


@pytest.fixture(params=[8, 4], ids=["indexed", "partly indexed"])
def library(request: pytest.FixtureRequest, tmp_path: Path, model: CPD) -> Library:
    rows: list[Row] = [
        ("/a/cello.mp4", 0, 4, "Playing the cello", near(0.1)),
        ("/a/cello.mp4", 10, 14, "Playing the cello", near(0.3)),
        ("/a/guitar.mp4", 0, 4, "Two guitars playing, one singing, and many people listening", near(0.9)),
        ("/a/guitar.mp4", 4, 8, "Two guitars playing, one singing, and many people listening", near(0.8)),
        ("/b/cello.mp4", 0, 4, "CELLO", near(0.2)),
        ("/b/none.mp4", 0, 4, None, near(0.95)),
        ("/b/empty.mp4", 0, 4, "", near(0.4)),
        ("/b/cafe.mp4", 0, 4, "café 東京タワー", near(-0.5)),
    ]  # fmt: skip
    library = filled(tmp_path / "library", model, rows[: request.param])
    library.optimize()
    add(library, rows[request.param :])
    return library


def test_titles_are_indexed_without_positions(library: Library, tmp_path: Path, model: CPD) -> None:
    library.optimize()
    library.optimize()
    (index,) = library.table.list_indices()
    assert index.columns == ["title"]
    assert index.index_details["with_position"] is False
    untitled = filled(tmp_path / "untitled", model, [("/x.mp4", 0, 4, None, near(1)), ("/y.mp4", 0, 4, "", near(1))])
    untitled.optimize()
    assert untitled.indexed_columns() == set()
    untitled.set_titles({"/y.mp4": "a zebra"})
    for by in ("title", "both"):
        with pytest.raises(LibraryError, match=r"\A.*crosspair index.*\Z"):
            found(untitled, by=by, words="zebra")
    untitled.optimize()
    assert found(untitled, by="title", words="zebra") == [("/y.mp4", 0, 1)]


def test_by_title_gives_the_best_window_of_each_match(library: Library) -> None:
    assert found(library, by="title", words="cello") == [("/b/cello.mp4", 0, 0.2), ("/a/cello.mp4", 10, 0.3)]
    assert found(library, by="title", words="a guitar")[0] == ("/a/guitar.mp4", 0, 0.9)
    assert {path for path, _, _ in found(library, by="title", words="play")} == {"/a/cello.mp4", "/a/guitar.mp4"}
    assert found(library, by="title", words="cafe") == [("/b/cafe.mp4", 0, -0.5)]
    for nothing in ("the", "***", "zebra"):
        assert found(library, by="title", words=nothing) == []
        assert found(library, by="both", words=nothing) == found(library)


def test_words_of_languages_without_spaces(library: Library) -> None:
    add(library, [("/new.mp4", 0, 4, "東京の夜", near(-0.6))])
    paths = {path for path, _, _ in found(library, by="title", words="東京")}
    assert paths == {"/b/cafe.mp4", "/new.mp4"}


@pytest.mark.parametrize(
    "words",
    ['"cello"', '"cello', "+cello", "-cello", "cello AND zebra", "NOT cello", "title:cello", "cello~2", "(cello",
     "cello\\", '{"match": {"terms": "cello"}}', "cello' OR '1'='1", "cello^5 *"],
)  # fmt: skip
def test_words_are_not_interpreted_as_a_query_language(library: Library, words: str) -> None:
    paths = [path for path, _, _ in found(library, by="title", words=words)]
    assert paths == ["/b/cello.mp4", "/a/cello.mp4"]


def test_conditions_apply_to_titles(library: Library) -> None:
    for choices, expected in (
        ({"folder": "/a"}, [("/a/cello.mp4", 10, 0.3)]),
        ({"where": "start < 5"}, [("/b/cello.mp4", 0, 0.2), ("/a/cello.mp4", 0, 0.1)]),
        ({"without": ["/b/cello.mp4"], "where": "start < 5"}, [("/a/cello.mp4", 0, 0.1)]),
        ({"folder": "/c"}, []),
    ):
        assert found(library, by="title", words="cello", **choices) == expected
    both = found(library, by="both", words="cello", folder="/a", where="start > 1")
    assert both == [("/a/cello.mp4", 10, 0.3), ("/a/guitar.mp4", 4, 0.8)]


def test_titles_that_change(library: Library) -> None:
    library.set_titles({"/a/cello.mp4": "a zebra"})
    for _ in range(2):
        assert found(library, by="title", words="cello") == [("/b/cello.mp4", 0, 0.2)]
        assert found(library, by="title", words="zebras") == [("/a/cello.mp4", 10, 0.3)]
        library.optimize()
    library.remove(["/b/cello.mp4"])
    assert found(library, by="title", words="cello") == []


def slow_fusion(rows: Sequence[Row], words: str) -> Ranked:
    """Fuse both rankings of windows that do not overlap, whose titles have one word, in plain loops."""
    by_picture = sorted(range(len(rows)), key=lambda i: -rows[i][4][0])
    best = {rows[i][0]: i for i in reversed(by_picture) if rows[i][3] in words.split()}
    by_title = sorted(best.values(), key=by_picture.index)
    scores: dict[int, float] = defaultdict(float)
    for ranking in (by_picture, by_title):
        for rank, i in enumerate(ranking):
            scores[i] += 1 / (61 + rank)
    order = sorted(scores, key=lambda i: (-scores[i], by_picture.index(i)))
    return [(rows[i][0], rows[i][1], round(float(rows[i][4][0]), 3)) for i in order]


def test_both_rankings_are_fused(tmp_path: Path, model: CPD, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    vectors = unit(draw.standard_normal((400, D)))
    rows: list[Row] = [
        (f"/{i % 80}.mp4", 10.0 * (i // 80), 10.0 * (i // 80) + 4, "zebra" if i % 80 % 3 == 0 else "lion", vector)
        for i, vector in enumerate(vectors)
    ]
    library = filled(tmp_path / "library", model, rows)
    library.optimize()
    expected = slow_fusion(rows, "zebra")
    assert found(library, by="both", words="zebra", limit=1000) == expected
    assert len(expected) == 400
    for limit in (1, 10, 40):
        assert found(library, by="both", words="zebra", limit=limit) == expected[:limit]
    for depth in (1, 64):  # however few titles are fetched first, none is missing
        monkeypatch.setattr(search_module, "MIN_FUSED", depth)
        titled = found(library, by="title", words="zebra", limit=1000, dedupe=0.999999)
        assert [path for path, _, _ in titled] == [path for path, _, _ in _titled(expected)]
        some = found(library, by="title", words="zebra", limit=5)
        assert some == titled[:5]
        single = found(library, by="both", words="zebra", limit=80, per_video=1)
        assert len({path for path, _, _ in single}) == len(single) == 80


def _titled(ranking: Ranked) -> Ranked:
    """The best window of each video with the title "zebra", by picture."""
    best: dict[str, tuple[str, float, float]] = {}
    for each in sorted(ranking, key=lambda each: -each[2]):
        if int(each[0][1:-4]) % 3 == 0:
            best.setdefault(each[0], each)
    return list(best.values())


def test_the_ranking_that_is_chosen(
    tiny: InferenceEngine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_videos(tmp_path / "library", tiny, [folder], windows=Windows(2, 1))
    searcher = Searcher(tmp_path / "library", tiny)
    chosen = []
    monkeypatch.setattr(searcher, "nearest", lambda _, *, by, words, **__: chosen.append((by, words)))
    dog, cat = QueryPart("a dog"), QueryPart("a cat", weight=-2)
    searcher.text("a dog")
    (tmp_path / "titles.csv").write_text("video_id,title\n1,dog\n")
    index_videos(tmp_path / "library", tiny, [folder], titles=tmp_path / "titles.csv")
    searcher.combined([dog, cat, dog])
    searcher.combined([dog, QueryPart(folder / "1.mp4", "video")])
    searcher.combined([dog, QueryPart(folder / "1.mp4", "video")], by="title")
    searcher.text("a dog", by="picture")
    assert chosen == [
        ("picture", "a dog"), ("both", "a dog a dog"), ("picture", "a dog"), ("title", "a dog"), ("picture", "a dog"),
    ]  # fmt: skip


def test_invalid_rankings(library: Library) -> None:
    for choices in ({"by": "title"}, {"by": "both", "words": " "}, {"by": "names", "words": "cello"}):
        with pytest.raises(LibraryError, match=rf"\A.*{choices['by']}.*\Z"):
            found(library, **choices)


def test_an_empty_library(library: Library) -> None:
    library.remove([f"/a/{name}.mp4" for name in ("cello", "guitar")])
    library.remove([f"/b/{name}.mp4" for name in ("cello", "none", "empty", "cafe")])
    library.optimize()
    assert len(library) == 0
    assert found(library, by="both", words="cello") == found(library, by="title", words="cello") == []
