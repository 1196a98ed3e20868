"""Which words of a title are not English, told by how often languages use them.

A title is read as a walk between languages: each word is more or less frequent in each, and
changing the language has a price. The cheapest walk (Viterbi) says which language each word is in,
so that "die" stays in "Die Hard" and goes in "Die Sendung mit der Maus".
"""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from crosspair.errors import TextError

# Languages in Latin letters that wordfreq knows; those of other scripts need no frequencies.
LANGUAGES = (
    "en", "fr", "es", "pt", "de", "it", "nl", "pl", "tr", "id", "sv", "nb", "da", "fi", "cs", "sk",
    "hu", "ro", "vi", "fil", "ca", "sh", "sl", "lt", "lv", "is",
)  # fmt: skip

# In powers of ten, as are Zipf frequencies (3 is once in a million words, 6 once in a thousand).
_FLOOR = 2.0  # below it lists are noise: English texts quote words of every language
_ENTER = 3.5  # price of changing from English to another language, or of beginning in it
_LEAVE = 1.5  # of changing back
_NAME = 1.5  # how much more frequent elsewhere a name may be
_SHORT = 3  # letters; such a word of another language is hardly ever English too
_ENGLISH = 1.0  # how much more frequent in English a short word must be to stay


def zipf(word: str, language: str = "en") -> float:
    """How frequent a lower-case word is: 0 where it is not known, else 2 to 8.

    >>> zipf("the") > zipf("cello") > zipf("xqzv")
    True
    """
    return _frequencies(language).get(word, 0.0)


def known_elsewhere(word: str) -> float:
    """The highest frequency of a lower-case word in a language that is not English."""
    return max(zipf(word, language) for language in LANGUAGES[1:])


def find_foreign_words(words: Sequence[str], first: Sequence[bool]) -> list[bool]:
    """Tell which words of a title are not English.

    Args:
        words: in the order and case in which they stand.
        first: for each word, whether a sentence may begin with it, so that its capital means
            nothing.

    Raises:
        TextError: the extra ``text`` is not installed.

    >>> foreign(["baby", "crawling", "mon", "bébé", "est", "trop", "mignon"], [True] + [False] * 6)
    [False, False, True, True, True, True, True]
    """
    found = [len(word) == 1 and not word.isascii() for word in words]
    shouted = all(word.isupper() for word in words if len(word) > _SHORT)
    named = [
        word[0].isupper() and not (begins or shouted)
        for word, begins in zip(words, first, strict=True)
    ]
    languages = _likely([word.lower() for word in words], named)
    if not languages:
        return found
    evidence = [
        _names(_evidence(word.lower())) if name else _evidence(word.lower())
        for word, name in zip(words, named, strict=True)
    ]
    telling = _capitals_tell(words)
    for place, language in enumerate(_walk(evidence, languages)):
        if language and any(char.isalpha() for char in words[place]):
            of_word = _evidence(words[place].lower())
            name = telling and named[place]
            found[place] = not _stays(words[place], of_word, language, name)
    return found


def _likely(words: Sequence[str], named: Sequence[bool]) -> list[int]:
    """The languages for which words say enough to be worth a walk."""
    gains: dict[int, float] = {}
    for word, name in zip(words, named, strict=True):
        for language, gain in _gains(word):
            gains[language] = gains.get(language, 0.0) + (gain / 2 if name else gain)
    return sorted(language for language, gain in gains.items() if gain > _ENTER)


def _stays(word: str, evidence: Sequence[float], language: int, name: bool) -> bool:
    """Whether a word amid another language is English still."""
    gain = evidence[0] - evidence[language]
    if name:
        return gain >= -_NAME
    if len(word) <= _SHORT:
        return gain > _ENGLISH
    return gain > 0


@lru_cache(maxsize=50_000)
def _names(evidence: tuple[float, ...]) -> tuple[float, ...]:
    """Evidence of a word with a capital: names travel, so that it says less."""
    english = evidence[0]
    return tuple(each if each < english else (each + english) / 2 for each in evidence)


def _walk(evidence: Sequence[Sequence[float]], languages: Sequence[int]) -> list[int]:
    """The language of each word, 0 for English, on the cheapest walk."""
    states = [0, *languages]
    score = {s: (evidence[0][s] if s == 0 else evidence[0][s] - _ENTER) for s in states}
    back: list[dict[int, int]] = []
    for of in evidence[1:]:
        best = max(states, key=lambda s: score[s])
        came, then = {}, {}
        for state in states:
            change = score[best] - (_ENTER if state else _LEAVE)
            came[state] = state if score[state] >= change else best
            then[state] = max(score[state], change) + of[state]
        back.append(came)
        score = then
    walk = [max(states, key=lambda s: score[s])]
    for came in reversed(back):
        walk.append(came[walk[-1]])
    return walk[::-1]


def _capitals_tell(words: Sequence[str]) -> bool:
    """Whether capitals mark names, rather than every word or none."""
    long = [word for word in words if len(word) > _SHORT and word[0].isalpha()]
    return 2 * sum(word[0].isupper() for word in long) <= len(long) + 1


@lru_cache(maxsize=50_000)
def _evidence(word: str) -> tuple[float, ...]:
    """The word's frequency in each language, none below the floor."""
    if word[0].isdigit() or word[0] in "$£€":
        return (_FLOOR,) * len(LANGUAGES)
    known = [zipf(word, language) for language in LANGUAGES]
    parts = _PARTS.split(word)
    if len(parts) > 1 and not any(known):
        of_parts = [_evidence(part) for part in parts if part]
        return tuple(sum(each) / len(of_parts) for each in zip(*of_parts, strict=True))
    # English hardly writes accents: a word that has them and is not known there is not English.
    floor = _FLOOR if word.isascii() or known[0] else _FLOOR - 1
    return (max(known[0], floor), *(max(_FLOOR, each) for each in known[1:]))


@lru_cache(maxsize=50_000)
def _gains(word: str) -> tuple[tuple[int, float], ...]:
    """By how much a word speaks for each language that it speaks for, against English."""
    english, *others = _evidence(word)
    return tuple((n, of - english) for n, of in enumerate(others, 1) if of > english)


_PARTS = re.compile(r"['&.-]")


@cache
def _frequencies(language: str) -> dict[str, float]:
    source = check_wordfreq("wordfreq")
    lists = source.get_frequency_list(language)
    source.get_frequency_list.cache_clear()  # most of the words that it holds on to are below it
    buckets = enumerate(lists[: round(100 * (9 - _FLOOR)) + 1])  # the n-th holds 10 ** (-n / 100)
    return {word: 9 - place / 100 for place, words in buckets for word in words}


def check_wordfreq(package: str) -> Any:
    """A package that cleaning needs.

    Raises:
        TextError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise TextError('cleaning titles needs the extra: pip install "crosspair[text]"') from error


_KNOWN = 3.0  # Zipf frequency from which a tag is a word of its own
# What a part of so many letters must have, lest "am" and "an" make up names.
_PARTS_hashtags = {1: 9.0, 2: 5.7, 3: 4.6, 4: 3.7}
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
    if word == part or word in _LETTERS or known >= _PARTS_hashtags.get(len(word), _REST):
        return known - 9
    return -9.0


_SHORT_MIX = re.compile(r"\d{1,3}[A-Za-z]{1,2}|[A-Za-z]\d{1,2}")
_CAMEL = re.compile(r"\d+|[^\W\d_a-z]+(?![^\W\d_A-Z])|[^\W\d_a-z]?[^\W\d_A-Z]+|[^\W\d_]+")
