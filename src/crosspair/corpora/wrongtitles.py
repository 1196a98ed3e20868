"""Titles put to the wrong videos, as a dial: how much noise does a method bear?"""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from crosspair.corpora.manifest import TITLES, Manifest
from crosspair.errors import ManifestError

Rows: TypeAlias = NDArray[np.int64]


def with_wrong_titles(manifest: Manifest, share: float, seed: int) -> Manifest:
    """Give a share of the train split the titles of other videos, all title columns together.

    A wrong title is that of a pair with another label (of any other pair, where one has none) and
    reads differently. What is wrong at a share is wrong, with the same title, at every larger one.
    Only training is spoilt: validation and test stay as they are, so that what they measure is the
    same at every share.

    Args:
        manifest: the pairs.
        share: of the train split's pairs with a title, 0 to 1; rounded to whole pairs.
        seed: which pairs, and whose titles they get.

    Returns:
        A manifest of the same path, not written.

    Raises:
        ManifestError: the share is not in [0, 1], or a pair has no other to take a title from.
    """
    if not 0 <= share <= 1:
        raise ManifestError(f"the share of wrong titles is {share}; pass 0 to 1")
    rows = _titled(manifest)
    wrong = round(share * len(rows))
    if not wrong:
        return manifest
    order = np.random.default_rng((seed, 0)).permutation(len(rows))[:wrong]
    donors = _donors(manifest, rows, seed)[order]
    taken = np.arange(len(manifest))
    taken[rows[order]] = rows[donors]
    titles = manifest.table.select(TITLES).take(taken)
    return manifest.with_columns({name: titles.column(name).to_pylist() for name in TITLES})


def _titled(manifest: Manifest) -> Rows:
    splits, titles = manifest.column("split"), manifest.column("title")
    return np.array([
        row
        for row, (split, title) in enumerate(zip(splits, titles, strict=True))
        if (split or "train") == "train" and title
    ], dtype=np.int64)  # fmt: skip


def _donors(manifest: Manifest, rows: Rows, seed: int) -> Rows:
    """For each of ``rows`` the position in them of one whose title would be wrong there."""
    given = manifest.column("label")
    # A pair without a label has a label of its own.
    labels = _numbered([given[row] or row for row in rows.tolist()])
    titles = manifest.column("title")
    texts = _numbered([titles[row] for row in rows.tolist()])
    _check_others(manifest, rows, labels, texts)
    rng = np.random.default_rng((seed, 1))
    donors = rng.integers(len(rows), size=len(rows))
    while True:
        fits = (labels[donors] != labels) & (texts[donors] != texts)
        if fits.all():
            return donors
        donors[~fits] = rng.integers(len(rows), size=int((~fits).sum()))


def _numbered(values: list[object]) -> Rows:
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values])


def _check_others(manifest: Manifest, rows: Rows, labels: Rows, texts: Rows) -> None:
    """There is somebody to take a title from for every pair, or drawing would never end."""
    both = list(zip(labels.tolist(), texts.tolist(), strict=True))
    of_label, of_text, of_both = (Counter(each) for each in (labels.tolist(), texts.tolist(), both))
    for position, (label, text) in enumerate(both):
        if of_label[label] + of_text[text] - of_both[label, text] == len(rows):
            pair_id = manifest.column("pair_id")[rows[position]]
            raise ManifestError(
                f"{manifest.path}: no pair of split train has another label and another title than "
                f"{pair_id!r}, so that no title would be wrong there"
            )
