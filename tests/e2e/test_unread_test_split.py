"""Nothing of the tested split is read before the test: not its labels, titles, or videos.

Runs whose tested rows are wrong in every respect, or absent, leave the same lines of metrics and
the same weights; and no tested video is opened while anything is still learnt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from crosspair.cli import main
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.evaluation import read_results
from crosspair.models import CPD, Classifier
from tests.e2e.test_pretrain import without_rates

Rows = list[dict[str, Any]]
TESTED = 6  # of 24 videos
TINY = (
    "clip.size=32", "clip.frames=2", "video.depth=10", "video.width=4", "training.workers=0",
    "training.batch_size=6", "training.epochs=4", "training.log_every=1", "training.export=best",
    "training.precision=fp32", "optimizer.name=sgd", "optimizer.lr=0.05",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For all trainings alike: on another number of threads, sums differ in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpus(rendered: Manifest) -> Manifest:
    """24 videos of two classes; a third are val, or test."""
    rows = rendered.table.to_pylist()[:24]
    for index, row in enumerate(rows):
        row["path"] = str(rendered.path.parent / row["path"])
        row["label"] = ("early", "late")[index % 2]
        row["title"] = f"{('red', 'blue', 'green')[index % 3]} and {row['label']}"
        row["split"] = "test" if index < TESTED else "val" if index < 12 else "train"
    return manifest_from_rows(rows, rendered.path)


def absent(rows: Rows) -> None:
    rows[:] = [row for row in rows if row["split"] != "test"]


def wrong(rows: Rows) -> None:
    """Labels turned, titles of words that nobody uses, videos that are not there."""
    other = {"early": "late", "late": "early"}
    for row in rows:
        if row["split"] == "test":
            row |= {"title": "zebra zebra quagga quagga", "label": other[row["label"]]}
            row["path"] = f"{row['path']}.gone"


def broken(rows: Rows) -> None:
    for row in rows:
        if row["split"] == "test":
            row["error"] = "cut"


def trained(verb: str, corpus: Manifest, folder: Path, change: Callable[[Rows], object]) -> Path:
    rows = corpus.table.to_pylist()
    change(rows)
    path = manifest_from_rows(rows, folder / "m.parquet").write(folder / "m.parquet").path
    more = {
        "pretrain": ["--recipe=laptop", "text.dimensions=4", "head.hidden=4", "head.embedding=4"],
        "finetune": ["--recipe=laptop-finetune", "--init=random", "--no-test"],
    }[verb]
    main(["-q", verb, f"--manifest={path}", f"--run={folder / 'run'}", *more, *TINY])
    return folder / "run"


def metrics(run: Path) -> list[dict[str, Any]]:
    return [without_rates(json.loads(line)) for line in (run / "metrics.jsonl").open()]


def weights(run: Path) -> str:
    kind = CPD if "cpd" in (run / "model" / "config.json").read_text() else Classifier
    return kind.from_pretrained(run / "model").hash


@pytest.fixture(scope="module", params=["pretrain", "finetune"])
def run(request, corpus: Manifest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    verb = request.param
    return verb, trained(verb, corpus, tmp_path_factory.mktemp(verb), len)


@pytest.mark.parametrize("change", [absent, wrong, broken])
def test_a_training_is_the_same_whatever_the_test_holds(
    run: tuple[str, Path], corpus: Manifest, tmp_path: Path, change: Callable[[Rows], object]
) -> None:
    verb, whole = run
    other = trained(verb, corpus, tmp_path, change)
    assert metrics(other) == metrics(whole)
    assert weights(other) == weights(whole)


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_comparison_sees_what_is_read(
    run: tuple[str, Path], corpus: Manifest, tmp_path: Path, split: str
) -> None:
    """The twin of the test above: the same change of another split does not pass unseen."""

    def change(rows: Rows) -> None:
        first, second, *_ = (row for row in rows if row["split"] == split)
        for name in ("label", "title"):
            first[name], second[name] = second[name], first[name]

    verb, whole = run
    assert metrics(trained(verb, corpus, tmp_path, change)) != metrics(whole)


def test_tested_videos_are_opened_when_nothing_is_learnt_any_more(
    corpus: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = (
        manifest_from_rows(corpus.table.to_pylist(), tmp_path / "m.parquet")
        .write(tmp_path / "m.parquet")
        .path
    )
    split_of = dict(zip(corpus.column("path"), corpus.column("split"), strict=True))
    opened: list[str] = []
    weights_then: list[str] = []
    real = av.open

    def watched(file: Any, *arguments: Any, **options: Any) -> Any:
        split = split_of[str(file).removeprefix("file:")]
        if split == "test" and not weights_then:
            weights_then.append(weights(tmp_path / "run"))
        opened.append(split)
        return real(file, *arguments, **options)

    monkeypatch.setattr(av, "open", watched)
    given = ("--recipe=laptop-finetune", "--init=random", f"--manifest={path}")
    main(["-q", "finetune", *given, f"--run={tmp_path / 'run'}", *TINY])
    first = opened.index("test")
    assert set(opened[:first]) == {"train", "val"}
    assert set(opened[first:]) == {"test"}
    results, origin = read_results(tmp_path / "run" / "results.json")
    assert weights_then == [origin.model]
    assert results[0].count == TESTED
