"""Hashtags come apart into their words: by capitals and digits first, then by frequency."""

from __future__ import annotations

import itertools
import re
from functools import lru_cache

from crosspair.corpora.titles.languages import known_elsewhere, zipf

_KNOWN = 3.0  # Zipf frequency from which a tag is a word of its own
# What a part of so many letters must have, lest "am" and "an" make up names.
_PARTS = {1: 9.0, 2: 5.7, 3: 4.6, 4: 3.7}
_REST = 3.0  # of longer ones
_LETTERS = {"a", "i"}
_WHOLE = 6  # shorter tags do not come apart
_LONGEST = 20


def split_hashtag(tag: str) -> list[str]:
    """The words of a hashtag without its sign and underscores, in its own case.

    >>> split_hashtag("MovieClips"), split_hashtag("photooftheday"), split_hashtag("top10goals")
    (['Movie', 'Clips'], ['photo', 'of', 'the', 'day'], ['top', '10', 'goals'])
    >>> split_hashtag("YouTube"), split_hashtag("4k"), split_hashtag("tbt")
    (['YouTube'], ['4k'], ['tbt'])
    """
    if zipf(tag.lower()) >= _KNOWN or _SHORT_MIX.fullmatch(tag):
        return [tag]
    return [word for part in _CAMEL.findall(tag) for word in _words(part)]


@lru_cache(maxsize=50_000)
def _words(part: str) -> tuple[str, ...]:
    """The most likely sequence of English words that make up a part, or the part as it is."""
    lower = part.lower()
    if len(lower) != len(part) or len(part) < _WHOLE or not part.isalpha():
        return (part,)
    if zipf(lower) >= _KNOWN or known_elsewhere(lower) >= _KNOWN:
        return (part,)
    # best[n]: the logarithm of the probability of the first n letters, and where their last word
    # begins; a part that does not come apart begins nowhere.
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(lower) + 1):
        options = [
            (best[begin][0] + score, begin)
            for begin in range(max(0, end - _LONGEST), end)
            if (score := _score(lower[begin:end], lower)) > -9 and best[begin][1] >= 0
        ]
        best.append(max(options, default=(-1e9, -1)))
    if best[-1][1] < 0:
        return (part,)
    ends = [len(part)]
    while ends[-1]:
        ends.append(best[ends[-1]][1])
    ends.reverse()
    return tuple(part[a:b] for a, b in itertools.pairwise(ends))


def _score(word: str, part: str) -> float:
    """The logarithm of a word's probability; -9 where it may not stand within a part."""
    known = zipf(word)
    if word == part or word in _LETTERS or known >= _PARTS.get(len(word), _REST):
        return known - 9
    return -9.0


_SHORT_MIX = re.compile(r"\d{1,3}[A-Za-z]{1,2}|[A-Za-z]\d{1,2}")
_CAMEL = re.compile(r"\d+|[^\W\d_a-z]+(?![^\W\d_A-Z])|[^\W\d_a-z]?[^\W\d_A-Z]+|[^\W\d_]+")
