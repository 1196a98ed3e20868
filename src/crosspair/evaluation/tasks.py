"""Classification tasks defined by the labels and splits of a manifest."""

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

# Splits that a classifier is trained on, by test split: never the test split or a later one.
TRAIN_SPLITS = {"test": ("train", "val"), "val": ("train",), "train": ()}
LABEL_FRACTIONS = (0.01, 0.1, 0.2)  # for low-shot probes (Section 4.4)


@dataclass(frozen=True)
class ClassTask:
    """Training and test videos with their classes; videos are positions in `Features`.

    Attributes:
        split: name of the test split.
        classes: C sorted names of all labels of the manifest.
        train: (N,) int64, positions of the training videos.
        train_labels: (N,) int64, their classes.
        test: (V,) int64, positions of the test videos.
        test_labels: (V,) int64, their classes.
    """

    split: str
    classes: list[str]
    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor

    def check_training(self, manifest: Manifest) -> None:
        """Check that every test class has a training video.

        Raises:
            ManifestError: there are no training videos, none of a test class, or the test split is train.
        """
        splits = " and ".join(TRAIN_SPLITS[self.split])
        if not splits:
            raise ManifestError(
                f"{manifest.path}: split train cannot be the test split of a trained classifier. Use val or test"
            )
        if not len(self.train):
            raise ManifestError(f"{manifest.path}: split {splits} has no readable video with a label to train on")
        missing = sorted(set(self.test_labels.tolist()) - set(self.train_labels.tolist()))
        if missing:
            names = ", ".join(repr(self.classes[i]) for i in missing[:3])
            raise ManifestError(
                f"{manifest.path}: {len(missing)} classes of split {self.split} have no readable "
                f"training video in split {splits}: {names}"
            )


def class_task(manifest: Manifest, features: Features, split: str) -> ClassTask:
    """Build the classification task of a manifest's labels for a test split.

    Raises:
        ManifestError: the split has no readable video, a test video has no label, or all labels are equal.
    """
    test = split_positions(manifest, features, split)
    labels, splits = manifest.column("label"), manifest.column("split")
    rows = features.rows.tolist()
    check_labels(manifest.take(features.rows[test].tolist()), split)
    classes = sorted({label for label in labels if label})
    if len(classes) < 2:
        raise ManifestError(f"{manifest.path}: all labels are {classes[0]!r}; classification needs two classes")
    index = {label: i for i, label in enumerate(classes)}
    train = [i for i, row in enumerate(rows) if labels[row] and (splits[row] or "train") in TRAIN_SPLITS[split]]
    return ClassTask(
        split=split,
        classes=classes,
        train=torch.tensor(train, dtype=torch.long),
        train_labels=torch.tensor([index[labels[rows[i]]] for i in train], dtype=torch.long),
        test=test,
        test_labels=torch.tensor([index[labels[rows[i]]] for i in test.tolist()]),
    )


def split_positions(manifest: Manifest, features: Features, split: str) -> torch.Tensor:
    """Return the positions in ``features`` of the videos of a split, (V,) int64; rows without a split are in train.

    Raises:
        ManifestError: the split has no readable video.
    """
    splits = manifest.column("split")
    positions = [i for i, row in enumerate(features.rows.tolist()) if (splits[row] or "train") == split]
    if not positions:
        present = ", ".join(sorted({name or "train" for name in splits}))
        raise ManifestError(f"{manifest.path}: split {split} has no readable video to test on (splits: {present})")
    return torch.tensor(positions)


def check_labels(manifest: Manifest, split: str) -> None:
    """Check that all rows of a manifest have a label; ``split`` only names them in the message.

    Raises:
        ManifestError: a row has no label.
    """
    for pair_id, label in zip(manifest.column("pair_id"), manifest.column("label"), strict=True):
        if not label:
            raise ManifestError(f"{manifest.path}: pair {pair_id!r} of split {split} has no label")


def label_subset(labels: Sequence[str], fraction: float, seed: int) -> list[int]:
    """Draw a fraction of the items of each class.

    For one seed the subsets are nested: that of 1 % is part of that of 10 %. The items drawn of a
    class depend only on the seed, its label and the number of its items, not on the other classes.

    Args:
        labels: labels of all items.
        fraction: fraction of each class to draw, in (0, 1]. The number of items is rounded half up
            and is at least 1.
        seed: seed of the draw.

    Returns:
        Positions of the drawn items in ``labels``, ascending.

    Raises:
        CrosspairError: the fraction is out of range, or an item has no label.

    >>> len(label_subset(["dog"] * 100 + ["cat"] * 20, 0.1, seed=0))
    12
    """
    if not 0 < fraction <= 1:
        raise CrosspairError(f"the fraction of labels must be in (0, 1], not {fraction:g}")
    positions: dict[str, list[int]] = defaultdict(list)
    for position, label in enumerate(labels):
        if not label:
            raise CrosspairError(f"item {position} has no label; a label subset needs labels")
        positions[label].append(position)
    drawn: list[int] = []
    for label, members in positions.items():
        random.Random(f"{seed} {label}").shuffle(members)
        drawn += members[: max(1, math.floor(round(fraction * len(members), 9) + 0.5))]
    return sorted(drawn)
