"""A classification task made of a manifest's labels: what to learn from, and what to test on."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from crosspair.corpora.manifest import Manifest
from crosspair.errors import CrosspairError, ManifestError
from crosspair.evaluation.features import Features

# What may be learnt from when a split is tested; never that split itself, nor one kept for later.
LEARNT_FROM = {"test": ("train", "val"), "val": ("train",), "train": ()}


@dataclass(frozen=True)
class ClassTask:
    """Videos with labels, as positions in `Features`.

    Attributes:
        split: that is tested.
        classes: C names, sorted; of all labels of the manifest.
        training: (N,) int64, positions of the videos to learn from.
        labels: (N,) int64, their classes.
        tested: (V,) int64, positions of the tested videos.
        truth: (V,) int64, their classes.
    """

    split: str
    classes: list[str]
    training: torch.Tensor
    labels: torch.Tensor
    tested: torch.Tensor
    truth: torch.Tensor

    def check_training(self, manifest: Manifest) -> None:
        """See that every tested class can be learnt.

        Raises:
            ManifestError: there is nothing to learn from, or not of a class that is tested.
        """
        learnt_from = " and ".join(LEARNT_FROM[self.split])
        if not learnt_from:
            raise ManifestError(
                f"{manifest.path}: split train cannot be tested by what is learnt from it; "
                "test val or test"
            )
        if not len(self.training):
            raise ManifestError(
                f"{manifest.path}: no readable video of split {learnt_from} has a label; there is "
                "nothing to learn from"
            )
        missing = sorted(set(self.truth.tolist()) - set(self.labels.tolist()))
        if missing:
            names = ", ".join(repr(self.classes[i]) for i in missing[:3])
            raise ManifestError(
                f"{manifest.path}: {len(missing)} classes of split {self.split} have no readable "
                f"video in split {learnt_from} to learn from: {names}"
            )


def tested_positions(manifest: Manifest, features: Features, split: str) -> torch.Tensor:
    """Positions in ``features`` of the videos of a split.

    Raises:
        ManifestError: it has none that can be read.
    """
    splits = manifest.column("split")
    tested = [
        i for i, row in enumerate(features.rows.tolist()) if (splits[row] or "train") == split
    ]
    if not tested:
        present = ", ".join(sorted({of or "train" for of in splits}))
        raise ManifestError(
            f"{manifest.path}: no readable video of split {split}; there is nothing to test on "
            f"(splits: {present})"
        )
    return torch.tensor(tested)


def check_labels(tested: Manifest, split: str) -> None:
    """See that all videos of a split have a label.

    Raises:
        ManifestError: one has none.
    """
    for pair_id, label in zip(tested.column("pair_id"), tested.column("label"), strict=True):
        if not label:
            raise ManifestError(f"{tested.path}: pair {pair_id!r} of split {split} has no label")


def class_task(manifest: Manifest, features: Features, split: str) -> ClassTask:
    """The task that a manifest's labels make, with one of its splits tested.

    Raises:
        ManifestError: a tested video has no label, or all videos have the same.
    """
    tested = tested_positions(manifest, features, split)
    labels, splits = manifest.column("label"), manifest.column("split")
    rows = features.rows.tolist()
    check_labels(manifest.take(features.rows[tested].tolist()), split)
    classes = sorted({label for label in labels if label})
    if len(classes) < 2:
        raise ManifestError(
            f"{manifest.path}: all labels are {classes[0]!r}; there is nothing to tell apart"
        )
    index = {label: i for i, label in enumerate(classes)}
    training = [
        i
        for i, row in enumerate(rows)
        if labels[row] and (splits[row] or "train") in LEARNT_FROM[split]
    ]
    return ClassTask(
        split=split,
        classes=classes,
        training=torch.tensor(training, dtype=torch.long),
        labels=torch.tensor([index[labels[rows[i]]] for i in training], dtype=torch.long),
        tested=tested,
        truth=torch.tensor([index[labels[rows[i]]] for i in tested.tolist()]),
    )


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
