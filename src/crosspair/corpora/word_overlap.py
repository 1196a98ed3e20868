"""Measure the word overlap of titles and class names (Table 6, Figure 2)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from crosspair.corpora.build import CAMEL_CASE, class_phrase
from crosspair.corpora.manifest import TITLES, Manifest
from crosspair.corpora.tables import read_json_object, read_table
from crosspair.corpora.titles import load_english_model
from crosspair.errors import ManifestError

# Ignored in class names; otherwise "walking with the dog" would match "dancing with fire".
_FUNCTION_WORDS = frozenset({
    "a", "an", "and", "as", "at", "by", "for", "from", "in", "into", "of", "off", "on", "or", "out", "over", "that",
    "the", "through", "to", "under", "using", "with", "without",
})  # fmt: skip
_PROGRESS_INTERVAL = 1000  # titles
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


@dataclass(frozen=True)
class Overlap:
    """Counts of words that titles and the names of their classes have in common."""

    pairs: int  # labelled pairs, with or without a title
    titles: int  # pairs with a title
    words: int  # words in all these titles
    partial: int  # titles with at least one word of their class's name
    complete: int  # titles with all words of it
    relevant: int  # words of titles that are words of their class's name

    @property
    def at_least_one(self) -> float:
        """Fraction of pairs whose title has a word of the class's name."""
        return self.partial / self.pairs

    @property
    def all(self) -> float:
        """Fraction of pairs whose title has all words of the class's name."""
        return self.complete / self.pairs

    @property
    def rel(self) -> float:
        """Fraction of the titles' words that are words of the class's name."""
        return self.relevant / self.words if self.words else 0.0


@dataclass(frozen=True)
class VariantOverlap:
    """The overlap of one title column (``variant``): in total, and by label."""

    variant: str
    total: Overlap
    classes: dict[str, Overlap]

    def ranked(self) -> list[str]:
        """Return the labels sorted by `Overlap.at_least_one`, largest first."""
        return sorted(self.classes, key=lambda label: (-self.classes[label].at_least_one, label))


def word_overlap(
    manifest: Manifest, *, exact: bool = False, progress: Callable[[int, int], None] = lambda _, __: None
) -> list[VariantOverlap]:
    """Compare the titles of a manifest with its class names.

    Two words match if they have a base form in common, as verbs or as nouns (by spaCy's
    lemmatizer): "plays" and "playing" match, "player" does not. The words of a class are those of
    `crosspair.corpora.build.class_phrase` without articles, prepositions and conjunctions, in any
    order; a title may also write them as one word ("pushups").

    Args:
        manifest: with labels.
        exact: compare words as written, ignoring case.
        progress: called with the numbers of finished and of all titles.

    Returns:
        One overlap for each title column that is not empty.

    Raises:
        ManifestError: no pair has a label, or no labelled pair has a title.
        TextError: spaCy or its English model is not installed, unless ``exact``.
    """
    rows = manifest.table.select(["label", *TITLES]).to_pandas().fillna("")
    rows = rows[rows["label"] != ""]
    if rows.empty:
        raise ManifestError(
            f"manifest {manifest.path}: no pair has a label. Add a column 'label' to the title "
            "file, or use --label-by-folder."
        )
    present = [name for name in TITLES if (rows[name] != "").any()]
    if not present:
        raise ManifestError(f"manifest {manifest.path}: no pair with a label has a title")
    overlaps = []
    for done, name in enumerate(present):
        counts: list[tuple[int, ...]] = []
        for title, label in zip(rows[name], rows["label"], strict=True):
            if len(counts) % _PROGRESS_INTERVAL == 0:
                progress(done * len(rows) + len(counts), len(present) * len(rows))
            counts.append(_title_overlap(title, label, exact))
        frame = pd.DataFrame(counts, rows["label"])
        classes = frame.groupby(level=0, sort=False).sum().itertuples()
        by_label = {str(label): Overlap(*map(int, each)) for label, *each in classes}
        overlaps.append(VariantOverlap(name, Overlap(*map(int, frame.sum())), by_label))
    progress(len(present) * len(rows), len(present) * len(rows))
    return overlaps


def read_accuracy(path: Path, labels: Sequence[str]) -> dict[str, float]:
    """Read the accuracy of each class as a mapping from label to accuracy.

    Args:
        path: a csv with the columns ``class`` and ``accuracy``; a JSON object from label to
            accuracy; or a ``results.json``, of which the zero-shot result is used if present,
            otherwise the first result with accuracies per class. Accuracies are in [0, 1].
        labels: of the manifest; other classes of the file are ignored.

    Raises:
        ManifestError: the file cannot be read, a value is out of range, or no class is known.
    """
    values: dict[str, Any]
    if path.suffix == ".json":
        values = read_json_object(path, "accuracy file")
        values = _per_class_results(values["results"], path) if "results" in values else values
    else:
        rows = read_table(path, "accuracy file").rows("class", "accuracy")
        values = dict(zip(rows["class"], rows["accuracy"], strict=True))
    accuracy = {label: _parse_fraction(value, label, path) for label, value in values.items()}
    known = {label: accuracy[label] for label in labels if label in accuracy}
    if not known:
        examples = ", ".join(map(repr, list(values)[:3])) or "none"
        raise ManifestError(
            f"accuracy file {path} matches no class of the manifest's {len(labels)} "
            f"(for example {labels[0]!r}); its classes are {examples}"
        )
    return known


def _title_overlap(title: str, label: str, exact: bool) -> tuple[int, ...]:
    """Return the fields of `Overlap` for one title; ``titles`` is 0 for a title without words."""
    parts, joined = _class_words(label, exact)
    words = _split_words(title)
    matches = [
        set(range(len(parts)))
        if word in joined
        else {place for place, part in enumerate(parts) if part & _word_forms(word, exact)}
        for word in words
    ]
    covered = set[int]().union(*matches)
    relevant = sum(map(bool, matches))
    return 1, bool(words), len(words), bool(covered), len(covered) == len(parts), relevant


@lru_cache(maxsize=10_000)
def _class_words(label: str, exact: bool) -> tuple[tuple[frozenset[str], ...], frozenset[str]]:
    """Return the forms of each content word of a class's name, and the whole name as one word (also + s)."""
    words = _split_words(class_phrase(label))
    content = [word for word in words if word not in _FUNCTION_WORDS] or words
    joined = {"".join(words), "".join(words) + "s"} if len(words) > 1 else set()
    return tuple(_word_forms(word, exact) for word in content), frozenset(joined)


def _word_forms(word: str, exact: bool) -> frozenset[str]:
    """Return only the word if ``exact``, otherwise also its base forms."""
    return frozenset({word}) if exact else base_forms(word)


@lru_cache(maxsize=200_000)
def base_forms(word: str) -> frozenset[str]:
    """Return a word, given in lower case, and its base forms as a verb and as a noun.

    >>> sorted(base_forms("playing")), sorted(base_forms("dogs"))
    (['play', 'playing'], ['dog', 'dogs'])
    """
    from spacy.tokens import Doc

    nlp = load_english_model(True)
    lemmatize = nlp.get_pipe("lemmatizer").rule_lemmatize
    forms = {word}
    for tag in ("VERB", "NOUN"):
        forms.update(lemmatize(Doc(nlp.vocab, words=[word], pos=[tag])[0]))
    return frozenset(forms)


def _split_words(text: str) -> list[str]:
    """Return the lower-case words of a text, split also at camelCase, without a final "'s"."""
    normal = CAMEL_CASE.sub(" ", unicodedata.normalize("NFKC", text).replace("’", "'"))
    return [word.removesuffix("'s") for word in _WORD.findall(normal.lower())]


def _per_class_results(results: Any, path: Path) -> dict[str, Any]:
    """Return accuracies by class from results of ``crosspair evaluate``, preferably the zero-shot result."""
    by_protocol: dict[str, dict[str, Any]] = {}
    for result in results if isinstance(results, list) else []:
        if result.get("of") == "trained" and result.get("details", {}).get("per_class"):
            by_protocol.setdefault(result["protocol"], result["details"]["per_class"])
    if not by_protocol:
        raise ManifestError(
            f'accuracy file {path} holds no result with accuracies per class. Create one with "crosspair evaluate".'
        )
    return by_protocol.get("zero-shot") or next(iter(by_protocol.values()))


def _parse_fraction(value: Any, label: str, path: Path) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= 1:
        raise ManifestError(f"accuracy file {path}: the accuracy of {label!r} is {value!r}; it must be in [0, 1]")
    return number
