"""Which labels a low-shot protocol may see: a balanced share of each class (Section 4.4)."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence

from crosspair.errors import CrosspairError

SHARES = (0.01, 0.1, 0.2)  # Section 4.4


def label_subset(labels: Sequence[str], share: float, seed: int) -> list[int]:
    """Draw a share of each class.

    With one seed the subsets are nested: that of 1 % lies in that of 10 %, and so on. What is drawn
    of a class depends on the number of its items alone, not on the other classes.

    Args:
        labels: of all items.
        share: of each class to draw, above 0 to 1; at least one item of a class is drawn, and half
            an item counts as one.
        seed: of the draw.

    Returns:
        The drawn items' positions in ``labels``, ascending.

    Raises:
        CrosspairError: the share is none, or an item has no label.

    >>> len(label_subset(["dog"] * 100 + ["cat"] * 20, 0.1, seed=0))
    12
    """
    if not 0 < share <= 1:
        raise CrosspairError(f"a share of labels lies above 0 and goes up to 1; {share:g} does not")
    of_class: dict[str, list[int]] = defaultdict(list)
    for position, label in enumerate(labels):
        if not label:
            raise CrosspairError(f"item {position} has no label; low-shot draws from labelled ones")
        of_class[label].append(position)
    drawn: list[int] = []
    for label, positions in of_class.items():
        random.Random(f"{seed} {label}").shuffle(positions)
        drawn += positions[: max(1, math.floor(round(share * len(positions), 9) + 0.5))]
    return sorted(drawn)
