"""The classification task of a manifest's labels: classes, training and test videos."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd
import torch

from crosspair.corpora.manifest import Manifest
from crosspair.errors import ManifestError
from crosspair.evaluation.features import Features
from crosspair.evaluation.linear import label_subset
from crosspair.evaluation.multiview import check_labels

Split = Literal["test", "val", "train"]

# Splits that a classifier is trained on, by test split: never the test split or a later one.
TRAIN_SPLITS: dict[Split, tuple[str, ...]] = {"test": ("train", "val"), "val": ("train",), "train": ()}


@dataclass(frozen=True)
class ClassTask:
    """Training and test videos, as positions in `Features`, and their indices in the sorted names of all labels."""

    classes: list[str]  # C
    train: torch.Tensor  # (N,) int64
    train_labels: torch.Tensor  # (N,) int64
    test: torch.Tensor  # (V,) int64
    test_labels: torch.Tensor  # (V,) int64

    @property
    def test_classes(self) -> list[int]:
        """Indices of the classes that occur in the test videos, sorted."""
        return sorted(set(self.test_labels.tolist()))

    @property
    def train_names(self) -> list[str]:
        """Class names of the training videos, (N,)."""
        return [self.classes[i] for i in self.train_labels.tolist()]

    def subset(self, fraction: float, seed: int) -> ClassTask:
        """Draw a fraction of the training videos of each class, at least one; see `label_subset`."""
        drawn = torch.tensor(label_subset(self.train_names, fraction, seed))
        return replace(self, train=self.train[drawn], train_labels=self.train_labels[drawn])


def class_task(manifest: Manifest, features: Features, split: Split, *, trained: bool = True) -> ClassTask:
    """Build the classification task of a manifest's labels for a test split.

    Raises:
        ManifestError: the split has no readable video, a test video has no label, all labels are equal, or, for a
            ``trained`` classifier, the test split is train or a test class has no training video.
    """
    test = split_positions(manifest, features, split)
    check_labels(manifest.take(features.rows[test].tolist()), split)
    classes = sorted({label for label in manifest.column("label") if label})
    if len(classes) < 2:
        raise ManifestError(f"{manifest.path}: all labels are {classes[0]!r}; classification needs two classes")
    videos = manifest.take(features.rows.tolist())
    labels = torch.tensor(pd.Categorical(videos.column("label"), classes).codes).long()  # -1 for none
    in_train = torch.tensor([(name or "train") in TRAIN_SPLITS[split] for name in videos.column("split")])
    train = ((labels >= 0) & in_train).nonzero().squeeze(1)
    task = ClassTask(classes, train, labels[train], test, labels[test])
    if trained and not TRAIN_SPLITS[split]:
        raise ManifestError(f"{manifest.path}: split {split} cannot test a classifier trained on it. Use val or test")
    missing = sorted(set(task.test_classes) - set(task.train_labels.tolist()))
    if trained and missing:
        names = ", ".join(repr(classes[i]) for i in missing[:3])
        raise ManifestError(
            f"{manifest.path}: {len(missing)} classes of split {split} have no readable training video in "
            f"split {' and '.join(TRAIN_SPLITS[split])}: {names}"
        )
    return task


def split_positions(manifest: Manifest, features: Features, split: Split) -> torch.Tensor:
    """Return the positions in ``features`` of the videos of a split, (V,) int64; rows without a split are in train."""
    splits = manifest.column("split")
    positions = [i for i, row in enumerate(features.rows.tolist()) if (splits[row] or "train") == split]
    if not positions:
        present = ", ".join(sorted({name or "train" for name in splits}))
        raise ManifestError(f"{manifest.path}: split {split} has no readable video to test on (splits: {present})")
    return torch.tensor(positions)
