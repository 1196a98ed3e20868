"""How many words titles have in common with the names of their classes (Table 6, Figure 2)."""

from __future__ import annotations

import operator
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from crosspair.corpora.build import class_phrase
from crosspair.corpora.manifest import TITLES, Manifest
from crosspair.corpora.tables import read_json_object, read_table
from crosspair.corpora.titles.stage import load_english_model
from crosspair.errors import ManifestError

# Words of class names that say nothing of what is done: "walking with the dog" shares no word with
# "dancing with fire".
_FUNCTION = frozenset({
    "a", "an", "and", "as", "at", "by", "for", "from", "in", "into", "of", "off", "on", "or",
    "out", "over", "that", "the", "through", "to", "under", "using", "with", "without",
})  # fmt: skip
_EVERY = 1000  # pairs between two signs of progress


@dataclass(frozen=True)
class Overlap:
    """What titles have in common with the names of their classes.

    Attributes:
        pairs: with a label, whether they have a title or not.
        titles: pairs that have a title.
        words: in all those titles.
        sharing: titles that hold at least one word of their class's name.
        whole: titles that hold all words of it.
        relevant: words of titles that are words of their class's name.
    """

    pairs: int
    titles: int
    words: int
    sharing: int
    whole: int
    relevant: int

    @property
    def at_least_one(self) -> float:
        """Share of pairs whose title holds a word of the class's name, 0 to 1."""
        return self.sharing / self.pairs

    @property
    def all(self) -> float:
        """Share of pairs whose title holds the class's whole name, 0 to 1."""
        return self.whole / self.pairs

    @property
    def rel(self) -> float:
        """Share of the titles' words that are words of the class's name, 0 to 1."""
        return self.relevant / self.words if self.words else 0.0

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(*map(operator.add, astuple(self), astuple(other)))


_NOTHING = Overlap(0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class VariantOverlap:
    """The overlap of one column of titles (``variant``): of all labelled pairs, and by label."""

    variant: str
    total: Overlap
    classes: dict[str, Overlap]

    def ranked(self) -> list[str]:
        """Labels by the share of titles with at least one word of them, the largest first."""
        return sorted(self.classes, key=lambda label: (-self.classes[label].at_least_one, label))


def word_overlap(
    manifest: Manifest,
    *,
    exact: bool = False,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> list[VariantOverlap]:
    """Compare the titles of a manifest with its class names.

    Two words are the same when they have a base form in common, be they read as verbs or as nouns
    (by spaCy's lemmatiser): "plays" and "playing" are, "player" is not. A class's words are those
    of `crosspair.corpora.build.class_phrase` but for articles, prepositions and conjunctions; a
    title may also write them as one ("pushups"). The whole name is held in whatever order.

    Args:
        manifest: with labels.
        exact: compare words as they are written, in whatever case.
        progress: told how many titles are done, of how many.

    Returns:
        One overlap for each column of titles that is not empty.

    Raises:
        ManifestError: no pair has a label, or none a title.
        TextError: spaCy or its English model is not installed, and ``exact`` is not asked for.
    """
    labels = manifest.column("label")
    labelled = [row for row, label in enumerate(labels) if label]
    if not labelled:
        raise ManifestError(
            f"manifest {manifest.path}: no pair has a label to compare its title with; give the "
            "title file a column 'label', or take folders as labels by --label-by-folder"
        )
    columns = {name: manifest.column(name) for name in TITLES}
    present = [name for name in TITLES if any(columns[name][row] for row in labelled)]
    if not present:
        raise ManifestError(f"manifest {manifest.path}: no pair that has a label has a title")
    classes: dict[str, dict[str, Overlap]] = {name: {} for name in present}
    for row in labelled:
        label = labels[row]
        for name in present:
            one = _of_title(columns[name][row] or "", label, exact)
            classes[name][label] = classes[name].get(label, _NOTHING) + one
        if row % _EVERY == 0:
            progress(row, len(labels))
    progress(len(labels), len(labels))
    return [VariantOverlap(name, sum(of.values(), _NOTHING), of) for name, of in classes.items()]


def read_accuracy(path: Path, labels: Sequence[str]) -> dict[str, float]:
    """Read the accuracy of each class.

    Args:
        path: a csv with the columns ``class`` and ``accuracy``, a JSON object of labels and
            accuracies, or a file of results, of which zero-shot's are taken, or else the first
            that tell classes apart; accuracies are fractions, 0 to 1.
        labels: of the manifest; what the file holds for others is left out.

    Raises:
        ManifestError: the file cannot be read, a value is no fraction, or no class is known.
    """
    given: dict[str, Any]
    if path.suffix == ".json":
        given = read_json_object(path, "accuracy file")
        given = _of_results(given["results"], path) if "results" in given else given
    else:
        rows = read_table(path, "accuracy file").rows("class", "accuracy")
        given = {row["class"]: row["accuracy"] for row in rows}
    accuracy = {label: _fraction(value, label, path) for label, value in given.items()}
    known = {label: accuracy[label] for label in labels if label in accuracy}
    if not known:
        examples = ", ".join(map(repr, list(accuracy)[:3])) or "none"
        raise ManifestError(
            f"accuracy file {path} names none of the manifest's {len(labels)} classes "
            f"(as {labels[0]!r}); it names {examples}"
        )
    return known


def _of_title(title: str, label: str, exact: bool) -> Overlap:
    parts, glued = _class_words(label, exact)
    words = _words(title)
    covered: set[int] = set()
    relevant = 0
    for word in words:
        if word in glued:
            hit = set(range(len(parts)))
        else:
            forms = _forms(word, exact)
            hit = {place for place, part in enumerate(parts) if part & forms}
        relevant += bool(hit)
        covered |= hit
    whole = len(covered) == len(parts)
    return Overlap(1, bool(words), len(words), bool(covered), whole, relevant)


@lru_cache(maxsize=10_000)
def _class_words(label: str, exact: bool) -> tuple[tuple[frozenset[str], ...], frozenset[str]]:
    """The forms of each word of a class's name, and the ways to write the name as one word."""
    words = _words(class_phrase(label))
    telling = [word for word in words if word not in _FUNCTION] or words
    glued = {"".join(words), "".join(words) + "s"} if len(words) > 1 else set()
    return tuple(_forms(word, exact) for word in telling), frozenset(glued)


def _forms(word: str, exact: bool) -> frozenset[str]:
    return frozenset({word}) if exact else base_forms(word)


@lru_cache(maxsize=200_000)
def base_forms(word: str) -> frozenset[str]:
    """The base forms that a lower-case word has as a verb and as a noun, and the word itself.

    >>> sorted(base_forms("playing")), sorted(base_forms("dogs"))
    (['play', 'playing'], ['dog', 'dogs'])
    """
    from spacy.tokens import Doc

    nlp = load_english_model(True)
    lemmatize = nlp.get_pipe("lemmatizer").rule_lemmatize
    found = {word}
    for part in ("VERB", "NOUN"):
        found.update(lemmatize(Doc(nlp.vocab, words=[word], pos=[part])[0]))
    return frozenset(found)


def _words(text: str) -> list[str]:
    composed = _CAMEL.sub(" ", unicodedata.normalize("NFKC", text).replace("’", "'"))
    words = _WORD.findall(composed.lower())
    return [word.removesuffix("'s") for word in words]


def _of_results(results: Any, path: Path) -> dict[str, Any]:
    """The accuracies of classes in a file that ``crosspair evaluate`` wrote."""
    listed = results if isinstance(results, list) else []
    by_protocol: dict[str, dict[str, Any]] = {}
    for result in listed:
        if result.get("of") == "trained" and result.get("details", {}).get("per_class"):
            by_protocol.setdefault(result["protocol"], result["details"]["per_class"])
    if not by_protocol:
        raise ManifestError(
            f"accuracy file {path} holds no result that tells classes apart; "
            "make one by crosspair evaluate zeroshot"
        )
    return by_protocol.get("zero-shot") or next(iter(by_protocol.values()))


def _fraction(value: Any, label: str, path: Path) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= 1:
        raise ManifestError(
            f"accuracy file {path}: the accuracy of {label!r} is {value!r}; it must be a "
            "fraction, 0 to 1"
        )
    return number


_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
