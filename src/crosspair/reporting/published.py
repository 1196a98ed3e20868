"""Published accuracies, to stand beside one's own: the only numbers of a report that are typed."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Published:
    """One accuracy, and all that its source tells of how it came to be: a line of published.csv.

    Attributes:
        value: top-1 accuracy, 0 to 1.
        protocol: as in `crosspair.evaluation.Result`.
        labels: share of the labels that were seen.
        data: what it was tested on.
        classes: of the test.
        method, network: as the source calls them, or "not told".
        pretrained: what it was pre-trained on, and by what supervision where that is not CPD's.
        source: as "paper, Table 3".
    """

    value: float
    protocol: str
    labels: float
    data: str
    classes: int
    method: str
    network: str
    pretrained: str
    source: str


def _read() -> tuple[Published, ...]:
    file = resources.files(__package__) / "published.csv"
    _, *lines = csv.reader(file.read_text(encoding="utf-8").splitlines())
    return tuple(
        Published(
            round(float(percent) / 100, 3), protocol, float(labels), data, int(classes), *told
        )
        for percent, protocol, labels, data, classes, *told in lines
    )


PUBLISHED = _read()
