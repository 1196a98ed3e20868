"""Test a classifier with any number of processes; run by test_processes.py."""

import sys
from pathlib import Path

import torch

from crosspair.config import MultiviewConfig
from crosspair.corpora import Manifest
from crosspair.distributed import init_distributed
from crosspair.evaluation.multiview import multiview_scores
from crosspair.models import Classifier


def main(manifest: Path, model: Path, out: Path) -> None:
    torch.set_num_threads(1)
    with init_distributed() as world:
        classifier, videos = Classifier.from_pretrained(model), Manifest.read(manifest)
        rows, probabilities = multiview_scores(classifier, videos, MultiviewConfig(clips=12), workers=0, world=world)
        if world.is_main:
            torch.save({"rows": rows, "probabilities": probabilities}, out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
