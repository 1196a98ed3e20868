"""A small rendered corpus, and helpers to run the command."""

import subprocess
import sys
from pathlib import Path

import pytest

from crosspair.corpora import Manifest
from crosspair.corpora.rendered import render_corpus

# A small network and training: a run takes seconds.
TINY = (
    "clip.size=32", "clip.frames=4", "video.width=4", "text.dimensions=8", "head.hidden=16",
    "head.embedding=16", "objective.noise_samples=16", "training.batch_size=8",
    "training.epochs=2", "training.log_every=1", "training.workers=1", "training.validate_every=1",
)  # fmt: skip


@pytest.fixture(scope="session")
def rendered(tmp_path_factory) -> Manifest:
    return render_corpus(tmp_path_factory.mktemp("rendered"), pairs=64, seed=0, workers=2)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "crosspair", *map(str, arguments)]


def crosspair(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command, and return its output and exit status."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300)


def pretrain_arguments(manifest: Path, run: Path, *more: str) -> list[object]:
    first = ["pretrain", "--recipe", "laptop", "--manifest", manifest, "--run", run]
    options = [each for each in more if each.startswith("-")]
    overrides = [each for each in more if not each.startswith("-")]
    return [*first, *options, *TINY, *overrides]
