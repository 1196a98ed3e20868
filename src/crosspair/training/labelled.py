"""What fine-tuning learns from and validates on: videos with labels, never those of the test."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crosspair.config import LabelsConfig
from crosspair.corpora import Manifest
from crosspair.corpora.splits import hold_out
from crosspair.errors import ManifestError
from crosspair.evaluation.lowshot import label_subset

logger = logging.getLogger(__name__)

_OF_RECORDING = re.compile(r"(.+)_c\d+")  # UCF101: clips of one recording differ in this alone


@dataclass(frozen=True)
class Labelled:
    """Videos with labels.

    Attributes:
        classes: the names of the train split's classes, sorted.
        train: to learn from.
        validation: to tell saturation and the best weights by; may be empty.
    """

    classes: list[str]
    train: Manifest
    validation: Manifest

    def targets(self, split: Manifest) -> list[int]:
        """The classes of a split's videos, as positions in ``classes``."""
        position = {name: index for index, name in enumerate(self.classes)}
        return [position[label] for label in split.column("label")]


def labelled_videos(
    manifest: Manifest, config: LabelsConfig, seed: int, tested: str = "test"
) -> Labelled:
    """Choose the videos that fine-tuning may see.

    Validation is the manifest's split ``val``. Where there is none, or it is what will be tested,
    a part of ``train`` is held out for it, clips of one recording together. Of both, a share of
    each class's labels is used: in low-shot, validation knows no more labels than training.

    Args:
        manifest: whose splits ``train`` and ``val`` are read, and no other.
        config: the share of labels, and what to hold out.
        seed: of both choices.
        tested: the split that will be tested; it is not read.

    Raises:
        ManifestError: there are no labels, or those of one class only.
    """
    train = manifest.split("train")
    # Without any label, one line is told rather than one for each video.
    train = usable(train, "label") if any(train.column("label")) else manifest.take([])
    classes = sorted(set(train.column("label")))
    if len(classes) < 2:
        found = f"one class only, {classes[0]!r}" if classes else "no readable video with a label"
        raise ManifestError(
            f"{manifest.path}: split train has {found}; a classifier needs two classes at least"
        )
    validation = manifest.take([])
    if tested != "val":
        validation = _of_classes(usable(manifest.split("val"), "label"), classes)
    if not len(validation):
        train, validation = _held_out(train, config.hold_out, seed)
    if config.share < 1:
        train, validation = (
            each.take(label_subset(each.column("label"), config.share, seed))
            for each in (train, validation)
        )
    return Labelled(classes, train, validation)


def usable(split: Manifest, column: str) -> Manifest:
    """Rows with a value in the column, and without an error; the others are named."""
    ids, values, errors = (split.column(name) for name in ("pair_id", column, "error"))
    keep = []
    for row, (pair_id, value, error) in enumerate(zip(ids, values, errors, strict=True)):
        if error or not value:
            logger.warning("left out %s: %s", pair_id, error or f"no {column}")
        else:
            keep.append(row)
    return split.take(keep)


def _of_classes(validation: Manifest, classes: list[str]) -> Manifest:
    labels, known = validation.column("label"), set(classes)
    unknown = sorted(set(labels) - known)
    if unknown:
        logger.warning(
            "validation does without %d classes that split train lacks: %s",
            len(unknown), ", ".join(unknown),
        )  # fmt: skip
    return validation.take([row for row, label in enumerate(labels) if label in known])


def _held_out(train: Manifest, share: float, seed: int) -> tuple[Manifest, Manifest]:
    rows: list[dict[str, Any]] = [
        {"pair_id": pair_id, "label": label, "split": "train"}
        for pair_id, label in zip(train.column("pair_id"), train.column("label"), strict=True)
    ]
    hold_out(rows, share, seed, _recording)
    left = {row["label"] for row in rows if row["split"] == "train"}
    # A class of a single recording stays with training as a whole.
    held = [i for i, row in enumerate(rows) if row["split"] == "val" and row["label"] in left]
    kept = sorted(set(range(len(rows))) - set(held))
    return train.take(kept), train.take(held)


def _recording(row: Mapping[str, Any]) -> str:
    found = _OF_RECORDING.fullmatch(row["pair_id"])
    return found[1] if found else str(row["pair_id"])
