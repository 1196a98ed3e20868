"""Test a classifier with any number of processes; run by test_processes.py."""

import sys
from pathlib import Path

import torch

from crosspair.corpora import Manifest
from crosspair.distributed import init_distributed
from crosspair.evaluation.multiview import multiview_scores
from crosspair.models import Classifier


def main(manifest: Path, model: Path, out: Path) -> None:
    torch.set_num_threads(1)
    with init_distributed() as world:
        scores = multiview_scores(
            Classifier.from_pretrained(model), Manifest.read(manifest),
            clips=12, workers=0, world=world,
        )  # fmt: skip
        if world.is_main:
            torch.save({"rows": scores.rows, "probabilities": scores.probabilities}, out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
