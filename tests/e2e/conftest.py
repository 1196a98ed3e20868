"""A small rendered corpus, a tiny model, and helpers to run commands."""

import io
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from crosspair.cli import main
from crosspair.corpora import Manifest
from crosspair.corpora.rendered import render_corpus
from tests.evaluation.conftest import tiny_model

# A small network and training: a run takes seconds.
TINY = (
    "clip.size=32", "clip.frames=4", "video.width=4", "text.dimensions=8", "head.hidden=16",
    "head.embedding=16", "objective.noise_samples=16", "training.batch_size=8",
    "training.epochs=2", "training.log_every=1", "training.workers=1", "training.validate_every=1",
)  # fmt: skip
FAST = ("--device", "cpu", "--workers", "0", "--precision", "fp32")


@pytest.fixture(scope="session")
def rendered(tmp_path_factory) -> Manifest:
    return render_corpus(tmp_path_factory.mktemp("rendered"), pairs=64, seed=0, workers=2)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """The folder of a model with random weights."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_model().save_pretrained(folder)
    return folder


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "crosspair", *map(str, arguments)]


def crosspair(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a new process, and return its output and exit status."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300)


def run(*arguments: object) -> None:
    """Run the command in this process; it must succeed."""
    main(["-q", *map(str, arguments)])


def refused(*arguments: object) -> str:
    """Run the command in this process, check that it fails with one line, and return the message."""
    shown = io.StringIO()
    with redirect_stderr(shown), pytest.raises(SystemExit) as ended:
        main(["-q", *map(str, arguments)])
    assert ended.value.code == 2, shown.getvalue()
    assert shown.getvalue().count("crosspair: error: ") == 1
    return shown.getvalue().strip().splitlines()[-1].removeprefix("crosspair: error: ")


def pretrain_arguments(manifest: Path, run: Path, *more: str) -> list[object]:
    first = ["pretrain", "--recipe", "laptop", "--manifest", manifest, "--run", run]
    return [*first, *TINY, *more]
