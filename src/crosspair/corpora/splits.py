"""The splits of a corpus: what its files call them, and what is held out of train."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from crosspair.errors import ManifestError

_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "validate": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def split_named(name: str, where: str) -> str | None:
    """The manifest's word for a split; None where ``name`` is empty.

    >>> split_named("validate", "val.csv, line 2")
    'val'

    Raises:
        ManifestError: no split is called so.
    """
    if not name:
        return None
    try:
        return _NAMES[name.lower()]
    except KeyError as error:
        raise ManifestError(
            f"{where}: split {name!r} is unknown; the names are {', '.join(_NAMES)}"
        ) from error


def hold_out(
    rows: list[dict[str, Any]],
    share: float,
    seed: int,
    group: Callable[[dict[str, Any]], str] = lambda row: str(row["pair_id"]),
) -> None:
    """Move a random part of train, whole groups of it, to split ``val``.

    Args:
        rows: of a manifest; those without a split belong to train.
        share: of the rows of train, 0 to 1; reached as nearly as the groups allow, and only by
            one group alone surpassed.
        seed: of the choice.
        group: of a row. What would be recognised, as two clips of one scene, is of one group.

    Raises:
        ManifestError: the share is none.
    """
    if not 0 <= share < 1:
        raise ManifestError(f"the share to hold out for validation is {share}; it must be 0 to 1")
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row.get("split") in (None, "train"):
            groups[group(row)].append(row)
    wanted, held = round(share * sum(map(len, groups.values()))), 0
    members = list(groups.values())
    for index in np.random.default_rng(seed).permutation(len(members)):
        if held < wanted and (not held or held + len(members[index]) <= wanted):
            held += len(members[index])
            for row in members[index]:
                row["split"] = "val"
