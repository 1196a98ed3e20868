"""Find words that are not English, and split hashtags, by word frequencies in 26 languages.

The languages of a title's words are the states of a Viterbi path: a word's log frequency in a
language is the score of that state, and changing the language has a cost. So "die" is kept in
"Die Hard" and removed from "Die Sendung mit der Maus".
"""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from crosspair.errors import TextError

# Languages of wordfreq in Latin letters; other scripts are recognised by their characters.
LANGUAGES = (
    "en", "fr", "es", "pt", "de", "it", "nl", "pl", "tr", "id", "sv", "nb", "da", "fi", "cs", "sk",
    "hu", "ro", "vi", "fil", "ca", "sh", "sl", "lt", "lv", "is",
)  # fmt: skip

# On the Zipf scale, log10 of the frequency per billion words: 3 is once in a million words.
_FLOOR = 2.0  # lower frequencies are unreliable, as English texts quote words of every language
_ENTER_COST = 3.5  # of changing from English to another language, or of starting in one
_LEAVE_COST = 1.5  # of changing back to English
_NAME_MARGIN = 1.5  # by which a name may be more frequent in another language and still be kept
_SHORT = 3  # letters; such short words of other languages are rarely English too
_SHORT_MARGIN = 1.0  # by which a short word must be more frequent in English to be kept


def zipf(word: str, language: str = "en") -> float:
    """Return the Zipf frequency of a lower-case word: 2 to 8, or 0 if it is unknown.

    >>> zipf("the") > zipf("cello") > zipf("xqzv")
    True
    """
    return _frequencies(language).get(word, 0.0)


def _foreign_zipf(word: str) -> float:
    """Return the highest frequency of a lower-case word in a language other than English."""
    return max(zipf(word, language) for language in LANGUAGES[1:])


def find_foreign_words(words: Sequence[str], first: Sequence[bool]) -> list[bool]:
    """Return, for each word of a title, whether it is not English.

    Args:
        words: in order, in original case.
        first: whether each word may start a sentence, so that its capital carries no information.

    Raises:
        TextError: the extra ``text`` is not installed.

    >>> words = ["baby", "crawling", "mon", "bébé", "est", "trop", "mignon"]
    >>> find_foreign_words(words, [True] + [False] * 6)
    [False, False, True, True, True, True, True]
    """
    found = [len(word) == 1 and not word.isascii() for word in words]
    shouted = all(word.isupper() for word in words if len(word) > _SHORT)
    named = [
        word[0].isupper() and not (begins or shouted)
        for word, begins in zip(words, first, strict=True)
    ]
    languages = _likely_languages([word.lower() for word in words], named)
    if not languages:
        return found
    evidence = [
        _name_evidence(_evidence(word.lower())) if name else _evidence(word.lower())
        for word, name in zip(words, named, strict=True)
    ]
    capitals_mark_names = _capitals_mark_names(words)
    for place, language in enumerate(_best_path(evidence, languages)):
        if language and any(char.isalpha() for char in words[place]):
            word = words[place]
            name = capitals_mark_names and named[place]
            found[place] = not _is_english(word, _evidence(word.lower()), language, name)
    return found


def _likely_languages(words: Sequence[str], named: Sequence[bool]) -> list[int]:
    """Return the languages with more evidence than the cost of entering them."""
    gains: dict[int, float] = {}
    for word, name in zip(words, named, strict=True):
        for language, gain in _gains(word):
            gains[language] = gains.get(language, 0.0) + (gain / 2 if name else gain)
    return sorted(language for language, gain in gains.items() if gain > _ENTER_COST)


def _is_english(word: str, evidence: Sequence[float], language: int, name: bool) -> bool:
    """Return whether a word among words of another language is English nevertheless."""
    gain = evidence[0] - evidence[language]
    if name:
        return gain >= -_NAME_MARGIN
    return gain > (_SHORT_MARGIN if len(word) <= _SHORT else 0)


@lru_cache(maxsize=50_000)
def _name_evidence(evidence: tuple[float, ...]) -> tuple[float, ...]:
    """Reduce the evidence of a capitalised word, as names are used in all languages."""
    english = evidence[0]
    return tuple(value if value < english else (value + english) / 2 for value in evidence)


def _best_path(evidence: Sequence[Sequence[float]], languages: Sequence[int]) -> list[int]:
    """Return the language of each word, 0 for English, on the Viterbi path."""
    states = [0, *languages]
    score = {s: (evidence[0][s] if s == 0 else evidence[0][s] - _ENTER_COST) for s in states}
    back: list[dict[int, int]] = []
    for frequencies in evidence[1:]:
        best = max(states, key=lambda s: score[s])
        previous, new_score = {}, {}
        for state in states:
            change = score[best] - (_ENTER_COST if state else _LEAVE_COST)
            previous[state] = state if score[state] >= change else best
            new_score[state] = max(score[state], change) + frequencies[state]
        back.append(previous)
        score = new_score
    path = [max(states, key=lambda s: score[s])]
    for previous in reversed(back):
        path.append(previous[path[-1]])
    return path[::-1]


def _capitals_mark_names(words: Sequence[str]) -> bool:
    """Return whether capitals mark names, and not every word or none."""
    long = [word for word in words if len(word) > _SHORT and word[0].isalpha()]
    return 2 * sum(word[0].isupper() for word in long) <= len(long) + 1


@lru_cache(maxsize=50_000)
def _evidence(word: str) -> tuple[float, ...]:
    """Return a word's frequency in each language, at least the floor."""
    if word[0].isdigit() or word[0] in "$£€":
        return (_FLOOR,) * len(LANGUAGES)
    known = [zipf(word, language) for language in LANGUAGES]
    parts = _PARTS.split(word)
    if len(parts) > 1 and not any(known):
        evidence = [_evidence(part) for part in parts if part]
        return tuple(sum(column) / len(evidence) for column in zip(*evidence, strict=True))
    # English rarely uses accents: an unknown word with accents is less likely to be English.
    floor = _FLOOR if word.isascii() or known[0] else _FLOOR - 1
    return (max(known[0], floor), *(max(_FLOOR, frequency) for frequency in known[1:]))


@lru_cache(maxsize=50_000)
def _gains(word: str) -> tuple[tuple[int, float], ...]:
    """Return the languages in which a word is more frequent than in English, and by how much."""
    english, *others = _evidence(word)
    return tuple((n, value - english) for n, value in enumerate(others, 1) if value > english)


_PARTS = re.compile(r"['&.-]")


@cache
def _frequencies(language: str) -> dict[str, float]:
    wordfreq = import_text_package("wordfreq")
    lists = wordfreq.get_frequency_list(language)
    wordfreq.get_frequency_list.cache_clear()  # most of the words in its cache are below the floor
    buckets = enumerate(lists[: round(100 * (9 - _FLOOR)) + 1])  # n-th: frequency 10 ** (-n / 100)
    return {word: 9 - place / 100 for place, words in buckets for word in words}


def import_text_package(package: str) -> Any:
    """Import a package of the extra ``text``.

    Raises:
        TextError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise TextError('cleaning titles needs the extra: pip install "crosspair[text]"') from error


_KNOWN = 3.0  # Zipf frequency from which a hashtag is one word
# Minimum frequency of a part by its length, so that names are not split into "am" or "an".
_MIN_ZIPF = {1: 9.0, 2: 5.7, 3: 4.6, 4: 3.7}
_MIN_ZIPF_LONG = 3.0
_ONE_LETTER_WORDS = {"a", "i"}
_MIN_SPLIT_LENGTH = 6  # shorter hashtags are not split
_MAX_WORD_LENGTH = 20


def split_hashtag(tag: str) -> list[str]:
    """Split a hashtag (without # and underscores) into words, keeping its case.

    >>> split_hashtag("MovieClips"), split_hashtag("photooftheday"), split_hashtag("top10goals")
    (['Movie', 'Clips'], ['photo', 'of', 'the', 'day'], ['top', '10', 'goals'])
    >>> split_hashtag("YouTube"), split_hashtag("4k"), split_hashtag("tbt")
    (['YouTube'], ['4k'], ['tbt'])
    """
    if zipf(tag.lower()) >= _KNOWN or _SHORT_MIX.fullmatch(tag):
        return [tag]
    return [word for part in _CAMEL.findall(tag) for word in _split_letters(part)]


@lru_cache(maxsize=50_000)
def _split_letters(part: str) -> tuple[str, ...]:
    """Return the most likely split into English words, or the part itself if there is none."""
    lower = part.lower()
    if len(lower) != len(part) or len(part) < _MIN_SPLIT_LENGTH or not part.isalpha():
        return (part,)
    if zipf(lower) >= _KNOWN or _foreign_zipf(lower) >= _KNOWN:
        return (part,)
    # best[n]: log probability of the first n letters, and start of their last word (-1: no split).
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(lower) + 1):
        options = [
            (best[begin][0] + score, begin)
            for begin in range(max(0, end - _MAX_WORD_LENGTH), end)
            if (score := _word_score(lower[begin:end], lower)) > -9 and best[begin][1] >= 0
        ]
        best.append(max(options, default=(-1e9, -1)))
    if best[-1][1] < 0:
        return (part,)
    ends = [len(part)]
    while ends[-1]:
        ends.append(best[ends[-1]][1])
    ends.reverse()
    return tuple(part[a:b] for a, b in itertools.pairwise(ends))


def _word_score(word: str, part: str) -> float:
    """Return log10 of a word's probability; -9 if it is too rare to be a word of a hashtag."""
    known = zipf(word)
    minimum = _MIN_ZIPF.get(len(word), _MIN_ZIPF_LONG)
    return known - 9 if word == part or word in _ONE_LETTER_WORDS or known >= minimum else -9.0


_SHORT_MIX = re.compile(r"\d{1,3}[A-Za-z]{1,2}|[A-Za-z]\d{1,2}")
_CAMEL = re.compile(r"\d+|[^\W\d_a-z]+(?![^\W\d_A-Z])|[^\W\d_a-z]?[^\W\d_A-Z]+|[^\W\d_]+")
