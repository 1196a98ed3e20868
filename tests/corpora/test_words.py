"""Word overlap of titles and class names (Table 6)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.corpora.word_overlap import Overlap, read_accuracy, word_overlap
from crosspair.errors import ManifestError


def manifest(*pairs: tuple[str | None, str | None], **columns: list[str | None]) -> Manifest:
    rows = [
        {"pair_id": f"p{number}", "path": f"{number}.mp4", "title": title, "label": label}
        | {name: values[number] for name, values in columns.items()}
        for number, (title, label) in enumerate(pairs)
    ]
    return manifest_from_rows(rows, "m.parquet")


def total(*pairs: tuple[str | None, str | None], exact: bool = False) -> Overlap:
    (overlap,) = word_overlap(manifest(*pairs), exact=exact)
    return overlap.total


def test_columns_and_classes() -> None:
    pairs = [("a dog", "dog"), ("a cat", "dog"), ("a bird", "bird"), ("x", "cat")]
    raw, tree = word_overlap(manifest(*pairs, title_tree=["dog", None, None, None]))
    assert raw.ranked() == ["bird", "dog", "cat"]
    assert raw.classes["dog"] == Overlap(2, 2, 4, 1, 1, 1)
    assert tree.variant == "title_tree"
    assert tree.total == Overlap(4, 1, 1, 1, 1, 1)


def test_fractions_of_a_small_corpus() -> None:
    found = total(
        ("My dog plays the cello", "PlayingCello"),  # both words, 2 of 5
        ("The player of a cello", "PlayingCello"),  # one word, 1 of 5
        ("Nothing", "PlayingCello"),  # 0 of 1
        (None, "PlayingCello"),
        ("A cello", None),  # no label: not counted
    )
    assert found == Overlap(pairs=4, titles=3, words=11, partial=2, complete=1, relevant=3)
    assert (found.at_least_one, found.all, found.rel) == (0.5, 0.25, 3 / 11)


@pytest.mark.parametrize(
    ("title", "label", "partial", "complete"),
    [
        ("playing", "plays chess", True, False),
        ("CHESS Play", "playing chess", True, True),
        ("swung at tennis", "TennisSwing", True, True),
        ("pushups", "PushUps", True, True),
        ("#PushUps", "PushUps", True, True),
        ("one push-up", "PushUps", True, True),
        ("a player", "playing", False, False),
        ("walks the dog", "WalkingWithDog", True, True),
        ("with a cat", "WalkingWithDog", False, False),
        ("the dog's walk", "WalkingWithDog", True, True),
        ("out and in", "in and out", True, True),
        ("Fancy ｃｅｌｌｏ", "cello", True, True),
        ("犬", "cello", False, False),
    ],
)
def test_words_match_by_base_forms(title: str, label: str, partial: bool, complete: bool) -> None:
    found = total((title, label))
    assert (bool(found.partial), bool(found.complete)) == (partial, complete)


def test_words_may_be_compared_as_they_are_written() -> None:
    assert total(("plays", "playing"), exact=True).partial == 0
    assert total(("PLAYING", "playing"), exact=True).partial == 1


@given(st.lists(st.tuples(st.text("aB pl'#", max_size=12), st.sampled_from(["aB", "play ball", "7", "a"]))))
def test_sums_agree_with_a_loop_over_titles(pairs: list[tuple[str, str]]) -> None:
    pairs = [*pairs, ("ball", "play ball")]
    found = total(*pairs, exact=True)
    singles = [total(pair, exact=True) for pair in pairs if pair[0]]
    assert found.pairs == len(pairs)
    for name in ("titles", "words", "partial", "complete", "relevant"):
        assert getattr(found, name) == sum(getattr(single, name) for single in singles)


def test_labels_and_titles_are_needed() -> None:
    with pytest.raises(ManifestError, match=r"m.parquet: .*label"):
        word_overlap(manifest(("A dog", None)))
    with pytest.raises(ManifestError, match=r"m.parquet: .*title"):
        word_overlap(manifest((None, "dog"), ("A cat", None)))


def test_overlap_of_real_titles(shared_data: Path) -> None:
    lines = (shared_data / "ucf10" / "titles.tsv").read_text(encoding="utf-8").splitlines()[1:]
    pairs = [line.split("\t") for line in lines]
    found = total(*((title, video.split("_")[1]) for video, title in pairs), exact=True)
    # What its description says, by a count of its own: 81 %, 48 % and 22 %.
    assert abs(found.at_least_one - 0.81) < 0.03
    assert abs(found.all - 0.48) < 0.03
    assert abs(found.rel - 0.22) < 0.03


# --- accuracy -----------------------------------------------------------------------------------


RESULTS = [
    {"protocol": "retrieval text→video", "of": "trained"},
    {"protocol": "kNN", "of": "trained", "details": {"per_class": {"dog": 0.1, "cat": 0.1}}},
    {"protocol": "zero-shot", "of": "chance", "details": {}},
    {"protocol": "zero-shot", "of": "trained", "details": {"per_class": {"dog": 0.5, "cat": 1.0}}},
]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps({"dog": 0.5, "cat": 1, "cow": 0})),
        ("a.json", json.dumps({"results": RESULTS})),
        ("a.csv", "class,accuracy\ndog,0.5\ncat,1\ncow,0\n"),
        ("a.csv", "\ufeffn, class ,accuracy\r\n1,dog,0.5\r\n1, cat,1.0\r\n1,cow,0\r\n"),
    ],
)
def test_accuracies_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_accuracy(tmp_path / name, ["dog", "cat", "bird"]) == {"dog": 0.5, "cat": 1.0}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[1]", "list"),
        ("a.json", '{"results": []}', "crosspair evaluate"),
        ("a.json", "{", "line 1"),
        ("a.csv", "label,accuracy\ndog,1\n", "'class', 'accuracy'.*'label', 'accuracy'"),
        ("a.csv", "", "'class', 'accuracy'"),
        ("a.csv", "class,accuracy\ndog,83\n", "'dog' is '83'"),
        ("a.csv", "class,accuracy\ndog\n", "'dog' is ''"),
        ("a.json", '{"dog": NaN}', "'dog' is nan"),
        ("a.json", '{"cow": 1}', "'dog'.*'cow'"),
    ],
)
def test_invalid_accuracy_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError, match=message) as caught:
        read_accuracy(tmp_path / name, ["dog"])
    assert name in str(caught.value)
