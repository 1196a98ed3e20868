"""Captions of training pairs: which pairs have any, and which caption an epoch reads."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from crosspair.corpora.manifest import Manifest
from crosspair.errors import ManifestError, TextError
from crosspair.models.cpd import CPD
from crosspair.video.loader import CAPTION

logger = logging.getLogger(__name__)


def titled_pairs(manifest: Manifest, name: str, column: str) -> Manifest:
    """Return the pairs of a split that have a title and no error; ManifestError if it has no such pair."""
    split = manifest.split(name)
    kept = split.drop_unusable(column)
    if len(split) and not len(kept):
        raise ManifestError(
            f"{split.path}: all {len(split)} pairs of split {name} lack a {column} or a readable "
            f'video. Run "crosspair check {split.path}" to list unreadable videos.'
        )
    return kept


def list_captions(split: Manifest, column: str) -> list[list[str]]:
    """Return the captions of each pair: ``titles``, where they are set and ``column`` is title, or its one title."""
    several = split.column("titles") if column == "title" else [None] * len(split)
    return [captions or [title] for captions, title in zip(several, split.column(column), strict=True)]


def drop_unknown_captions(
    split: Manifest, captions: Sequence[list[str]], model: CPD, policy: str
) -> tuple[Manifest, list[list[str]]]:
    """Drop captions without a word known to the text encoder, and pairs without a known caption.

    With policy "error", a pair without a known caption raises a TextError.
    """
    known = [[caption for caption in each if not model.text_encoder.is_empty(caption)] for each in captions]
    ids, unknown = split.column("pair_id"), [row for row, each in enumerate(known) if not each]
    if unknown and policy == "error":
        first = unknown[0]
        raise TextError(
            f"{split.path}: {len(unknown)} titles contain no known word, the first is "
            f"{captions[first][0]!r} (pair {ids[first]!r}); fix them or set text.empty_titles=drop"
        )
    for row in unknown:
        logger.warning("skipped %s: no known word in %r", ids[row], captions[row][0])
    return split.take([row for row, each in enumerate(known) if each]), [each for each in known if each]


def draw_captions(captions: Sequence[Sequence[str]], rows: Iterable[int], seed: int, epoch: int) -> list[str]:
    """Draw a caption for some training pairs in an epoch, the same for a pair whichever batch it is in.

    Args:
        captions: of all pairs.
        rows: indices of pairs.
        seed, epoch: of the draws.
    """
    draws = _caption_draws(seed, epoch, len(captions))
    return [captions[row][int(draws[row] * len(captions[row]))] for row in rows]


@lru_cache(maxsize=1)
def _caption_draws(seed: int, epoch: int, pairs: int) -> NDArray[np.float64]:
    """Draw a number in [0, 1) for each pair (pairs,); a generator per pair would take longer than a cached step."""
    return np.random.default_rng((seed, CAPTION, epoch)).random(pairs)
