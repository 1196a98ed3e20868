"""Corpora of classes with three official splits, one manifest a split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from crosspair.corpora.join import Listed
from crosspair.corpora.labels import class_phrase
from crosspair.corpora.manifest import Manifest
from crosspair.corpora.official import TitleChoices, official_corpus
from crosspair.corpora.output import Output
from crosspair.errors import ManifestError

SPLITS = (1, 2, 3)


def three_splits_corpus(
    folder: Path,
    out: Path,
    splits: Sequence[int],
    members: Callable[[int], Sequence[Listed]],
    group: Callable[[Mapping[str, Any]], str],
    **choices: Unpack[TitleChoices],
) -> list[Manifest]:
    """Write a manifest for each split that is asked for; every video is probed once.

    Args:
        folder: of videos.
        out: a manifest; in a folder, ``split1.parquet`` and so on.
        splits: of `SPLITS`.
        members: from the number of a split to its pairs, with official labels.
        group: of a row, to be held out as a whole.
        **choices: a pair without a title stays, with an empty one.

    Raises:
        ManifestError: an input does not do, or several splits should go to one file; nothing is
            written then.
    """
    if out.suffix == ".parquet" and len(splits) > 1:
        raise ManifestError(
            f"output {out}: {len(splits)} splits are as many manifests; name a folder for them"
        )
    lists = [(Output(out, f"split{split}.parquet"), members(split)) for split in splits]
    return official_corpus(
        folder, lists, what="listed videos", phrase=class_phrase, group=group, **choices
    )
