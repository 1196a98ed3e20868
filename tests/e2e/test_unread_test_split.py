"""Training does not read the labels, titles or videos of the test split.

Runs with wrong or absent test rows give the same metrics and weights, and no test video is opened
before the training has ended.
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
    """Sums depend on the number of threads in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpus(rendered: Manifest) -> Manifest:
    """24 videos of two classes, 6 of them test and 6 val."""
    rows = rendered.table.to_pylist()[:24]
    for index, row in enumerate(rows):
        row["path"] = str(rendered.path.parent / row["path"])
        row["label"] = ("early", "late")[index % 2]
        row["title"] = f"{('red', 'blue', 'green')[index % 3]} and {row['label']}"
        row["split"] = "test" if index < TESTED else "val" if index < 12 else "train"
    return manifest_from_rows(rows, rendered.path)


def remove_rows(rows: Rows) -> None:
    rows[:] = [row for row in rows if row["split"] != "test"]


def falsify_rows(rows: Rows) -> None:
    """Swap labels, use unknown words in titles and missing videos."""
    other = {"early": "late", "late": "early"}
    for row in rows:
        if row["split"] == "test":
            row |= {"title": "zebra zebra quagga quagga", "label": other[row["label"]]}
            row["path"] = f"{row['path']}.gone"


def mark_broken(rows: Rows) -> None:
    for row in rows:
        if row["split"] == "test":
            row["error"] = "cut"


def train(verb: str, corpus: Manifest, folder: Path, change: Callable[[Rows], object]) -> Path:
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
    return verb, train(verb, corpus, tmp_path_factory.mktemp(verb), len)


@pytest.mark.parametrize("change", [remove_rows, falsify_rows, mark_broken])
def test_test_split_has_no_effect_on_the_training(
    run: tuple[str, Path], corpus: Manifest, tmp_path: Path, change: Callable[[Rows], object]
) -> None:
    verb, whole = run
    other = train(verb, corpus, tmp_path, change)
    assert metrics(other) == metrics(whole)
    assert weights(other) == weights(whole)


@pytest.mark.parametrize("split", ["train", "val"])
def test_other_splits_have_an_effect(run: tuple[str, Path], corpus: Manifest, tmp_path: Path, split: str) -> None:
    """Check that the test above is able to fail."""

    def change(rows: Rows) -> None:
        first, second, *_ = (row for row in rows if row["split"] == split)
        for name in ("label", "title"):
            first[name], second[name] = second[name], first[name]

    verb, whole = run
    assert metrics(train(verb, corpus, tmp_path, change)) != metrics(whole)


def test_test_videos_are_opened_after_the_training(
    corpus: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = manifest_from_rows(corpus.table.to_pylist(), tmp_path / "m.parquet").write(tmp_path / "m.parquet").path
    split_of = dict(zip(corpus.column("path"), corpus.column("split"), strict=True))
    opened: list[str] = []
    weights_at_test: list[str] = []
    real = av.open

    def watched(file: Any, *arguments: Any, **options: Any) -> Any:
        split = split_of[str(file).removeprefix("file:")]
        if split == "test" and not weights_at_test:
            weights_at_test.append(weights(tmp_path / "run"))
        opened.append(split)
        return real(file, *arguments, **options)

    monkeypatch.setattr(av, "open", watched)
    given = ("--recipe=laptop-finetune", "--init=random", f"--manifest={path}")
    main(["-q", "finetune", *given, f"--run={tmp_path / 'run'}", *TINY])
    first = opened.index("test")
    assert set(opened[:first]) == {"train", "val"}
    assert "train" not in opened[first:]  # the report shows validation videos
    results, origin = read_results(tmp_path / "run" / "results.json")
    assert weights_at_test == [origin.model]
    assert results[0].count == TESTED
