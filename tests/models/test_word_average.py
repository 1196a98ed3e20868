"""Averaged word vectors: encoding, file formats, learning, vocabularies."""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosspair.errors import ModelError, TextError
from crosspair.models import WordAverage, learn_word_vectors, read_word_vectors, tokenize

WORDS = ["dog", "cat", "plays", "don't"]
VECTORS = torch.tensor([[1.0, 0.5, -2.0], [0.25, 4.0, 8.0], [-1.0, 0.0, 3.5], [7.0, 7.5, -0.125]])


def lines(words: list[str] = WORDS) -> list[str]:
    rows = zip(words, VECTORS.tolist(), strict=False)
    return [" ".join([word, *map(str, row)]) for word, row in rows]


def text(header: str = "4 3\n") -> bytes:
    return (header + "\n".join(lines()) + "\n").encode()


def binary() -> bytes:
    rows = zip(WORDS, VECTORS.tolist(), strict=True)
    body = b"".join(word.encode() + b" " + struct.pack("<3f", *row) + b"\n" for word, row in rows)
    return b"4 3\n" + body


def refused(path: Path) -> None:
    with pytest.raises(TextError, match=f"{path}: ") as caught:
        read_word_vectors(str(path), 1000)
    assert "\n" not in str(caught.value)


# --- averaging ----------------------------------------------------------------------------------


@given(st.lists(st.lists(st.sampled_from([*WORDS, "unknown", "wörter"])), min_size=1, max_size=6))
def test_a_text_is_the_mean_of_its_known_words(texts: list[list[str]]) -> None:
    encoder = WordAverage(WORDS, VECTORS)
    means = []
    for words in texts:
        known = [VECTORS[WORDS.index(word)] for word in words if word in WORDS]
        means.append(sum(known) / len(known) if known else torch.zeros(3))
    torch.testing.assert_close(encoder([" ".join(words) for words in texts]), torch.stack(means))


def test_texts_without_a_known_word() -> None:
    encoder = WordAverage(WORDS, VECTORS)
    assert encoder([]).shape == (0, 3)
    empty = ["", "quite unknown", "!?", "123"]
    assert not encoder(empty).any()
    assert all(encoder.is_empty(text) for text in empty)
    assert not encoder.is_empty("quite unknown dog")


def test_vectors_learn() -> None:
    encoder = WordAverage(WORDS, VECTORS)
    encoder(["dog cat", "dog"]).sum().backward()
    (parameter,) = encoder.parameters()
    assert parameter.grad[:, 0].tolist() == [1.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("Baby CRAWLING!!", ["baby", "crawling"]),
        ("#MyFirstSteps", ["my", "first", "steps"]),
        ("don’t don't", ["don't", "don't"]),
        ("snake_case-words", ["snake", "case", "words"]),
        ("caf\u00e9 cafe\u0301", ["caf\u00e9", "caf\u00e9"]),
        ("собака 犬 😍", ["собака", "犬"]),
        ("", []),
    ],
)
def test_tokenize(title: str, words: list[str]) -> None:
    assert tokenize(title) == words


# --- files --------------------------------------------------------------------------------------

FILES = {
    "word2vec.bin": binary(),
    "word2vec.bin.gz": gzip.compress(binary()),
    "word2vec.txt": text(),
    "word2vec.txt.gz": gzip.compress(text()),
    "fasttext.vec": text("4 3\n"),
    "glove.txt": text(header=""),
    "glove.txt.gz": gzip.compress(text(header="")),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_vectors(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    encoder = read_word_vectors(str(tmp_path / name), 1000)
    assert encoder.words == WORDS
    torch.testing.assert_close(encoder.vectors.weight.data, VECTORS)
    assert read_word_vectors(str(tmp_path / name), 2).words == WORDS[:2]


def test_of_one_word_in_two_cases_the_more_frequent_vector_is_kept(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("\n".join(lines(["Dog", "cat", "dog", "CAT"])))
    encoder = read_word_vectors(str(tmp_path / "v.txt"), 1000)
    assert encoder.words == ["dog", "cat"]
    torch.testing.assert_close(encoder.vectors.weight.data, VECTORS[:2])


def test_real_word_vectors_know_what_is_alike(shared_data: Path) -> None:
    encoder = read_word_vectors(str(shared_data / "words-12k-300d.bin"), 5000)
    assert encoder.features == 300
    assert len(encoder.words) <= 5000
    dog, cat, tax = torch.nn.functional.normalize(encoder(["dog", "cat", "tax"]).detach())
    assert dog @ cat > dog @ tax + 0.2


# --- invalid files -----------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x02\x00\x00\x00\x02\x00\x08\x06"

NONE = {
    "png.bin": PNG,
    "empty.bin": b"",
    "empty.txt": b"",
    "csv.txt": b"video_id,title\na,A dog plays\n",
    "prose.txt": b"a dog plays with a cat\nand another\n",
    "cut.bin": binary()[:-20],
    "cut.txt": b"4 3\n" + "\n".join(lines()[:2]).encode(),
    "cut.bin.gz": gzip.compress(binary())[:-15],
    "false.txt.gz": text(),
    "flipped.txt.gz": gzip.compress(text())[:20] + b"\xff" * 20 + gzip.compress(text())[40:],
    "short-row.txt": b"4 3\n" + "\n".join([*lines()[:2], "plays 1.0 2.0", lines()[3]]).encode(),
    "long-row.txt": "\n".join([*lines()[:2], "plays 1.0 2.0 3.0 4.0", lines()[3]]).encode(),
    "no-number.txt": "\n".join([*lines()[:2], "plays 1.0 two 3.0"]).encode(),
    "nan.txt": "\n".join([*lines()[:2], "plays 1.0 nan 3.0"]).encode(),
    "huge.bin": b"99999999999999 99999999999\n" + binary(),
    "no-dimension.txt": b"1 0\ndog\n",
}


@pytest.mark.parametrize("name", NONE)
def test_invalid_file(tmp_path: Path, name: str) -> None:
    refused(tmp_path / name)  # missing
    (tmp_path / name).write_bytes(NONE[name])
    refused(tmp_path / name)


def test_missing_gensim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gensim", None)
    for use in (
        lambda: read_word_vectors(str(tmp_path / "v.bin"), 10),
        lambda: learn_word_vectors(["a dog", "a dog"], 4, seed=0),
    ):
        with pytest.raises(TextError, match=r'pip install "crosspair\[text\]"$'):
            use()


# --- learning -----------------------------------------------------------------------------------

TITLES = [f"{who} {does} in the {place}" for who in ("a dog", "the cat", "my baby")
          for does in ("plays", "sleeps", "runs") for place in ("garden", "house")]  # fmt: skip


def test_vectors_are_the_same_in_every_process() -> None:
    code = (
        "import json, sys\n"
        "from crosspair.models import learn_word_vectors\n"
        "learnt = learn_word_vectors(json.loads(sys.argv[1]), 8, seed=1)\n"
        "print(learnt.words, learnt.vectors.weight.tolist())\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}  # not this process's
    command = [sys.executable, "-c", code, json.dumps(TITLES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    here = learn_word_vectors([*TITLES, "unicorn"], 8, seed=1)
    assert "unicorn" not in here.words
    assert not torch.equal(here.vectors.weight, learn_word_vectors(TITLES, 8, seed=2).vectors.weight)
    assert done.stdout.strip() == f"{here.words} {here.vectors.weight.tolist()}"


@pytest.mark.parametrize("titles", [[], ["one dog"], ["", "!"]])
def test_no_word_occurs_twice(titles: list[str]) -> None:
    with pytest.raises(TextError, match=rf"{len(titles)} titles.*text\.source"):
        learn_word_vectors(titles, 4, seed=0)


# --- a model's vocabulary -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", '{"words": ["a"]}', '{"words": ["a"], "dimensions": -1}',
                '{"words": 3, "dimensions": 3}', '{"words": ["a"], "dimensions": "x"}'],
)  # fmt: skip
def test_invalid_vocabulary(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "words.json").write_text(content)
    with pytest.raises(ModelError, match=r"words\.json") as caught:
        WordAverage.load(tmp_path)
    assert "\n" not in str(caught.value)
