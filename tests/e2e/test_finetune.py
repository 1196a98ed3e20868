"""The finetune command: train, test, resume, splits; the test split is not read in training."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.evaluation import read_results
from crosspair.models import Classifier, build_model
from crosspair.recipes import recipe_of
from tests.e2e.conftest import command, crosspair, refused
from tests.e2e.conftest import run as run_command
from tests.e2e.test_pretrain import lines, without_rates

TINY = (
    "clip.size=32", "clip.frames=4", "video.width=4", "training.batch_size=8", "training.epochs=3",
    "training.log_every=1", "training.workers=1", "classifier.dropout=0.3", "labels.hold_out=0.2", "training.ema=0.5",
)  # fmt: skip


@pytest.fixture(scope="module")
def labelled(rendered, tmp_path_factory) -> Manifest:
    """The rendered videos with two classes and splits train and test."""
    rows = rendered.table.to_pylist()
    actions = sorted({row["label"] for row in rows})
    for index, row in enumerate(rows):
        row["label"] = "early" if actions.index(row["label"]) < len(actions) // 2 else "late"
        row["split"] = "test" if index < 5 else "train"
        row["path"] = str(rendered.path.parent / row["path"])
    folder = tmp_path_factory.mktemp("labelled")
    return manifest_from_rows(rows, folder / "m.parquet").write(folder / "m.parquet")


@pytest.fixture(scope="module")
def init(tmp_path_factory) -> Path:
    """The folder of a pre-trained model."""
    folder = tmp_path_factory.mktemp("init") / "model"
    torch.manual_seed(0)
    build_model(recipe_of({"video.depth": 10, "video.width": 4}), ["a dog"] * 2).save_pretrained(folder)
    return folder


def arguments(manifest: Path | str, run: Path, init: Path | str, *more: str) -> list[object]:
    options = [each for each in more if each.startswith("-")]
    overrides = [each for each in more if not each.startswith("-")]
    return [
        "finetune", "--recipe", "laptop-finetune", "--manifest", manifest, "--run", run,
        "--init", init, *options, *TINY, *overrides,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole_run(labelled, init, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    done = crosspair(*arguments(labelled.path, run, init))
    assert done.returncode == 0, done.stderr
    return run


def test_files_of_a_run(whole_run, labelled) -> None:
    model = Classifier.from_pretrained(whole_run / "model")
    assert model.classes == ["early", "late"]
    results, origin = read_results(whole_run / "results.json")
    assert origin.model == model.hash
    assert origin.manifest == labelled.hash
    trained = results[0]
    assert (trained.protocol, trained.metric, trained.count) == ("30 views", "top-1", 5)
    assert trained.settings["labels"] == 1.0
    assert trained.settings["init"].startswith("CPD ")
    assert [line["epoch"] for line in lines(whole_run, "validation")] == [1, 2, 3]
    steps = [line["step"] for line in lines(whole_run)]
    assert steps == list(range(1, len(steps) + 1))


def test_evaluate_gives_the_same_results(whole_run, labelled, tmp_path) -> None:
    run_command(
        "evaluate", "--model", whole_run / "model", "--manifest", labelled.path, "--out", tmp_path / "results.json"
    )
    alone, origin = read_results(tmp_path / "results.json")
    within, same = read_results(whole_run / "results.json")
    assert [result.value for result in alone] == [result.value for result in within]
    assert (origin.recipe, origin.model) == (same.recipe, same.model)


def test_labels_of_the_test_split_affect_the_results_only(whole_run, labelled, init, tmp_path) -> None:
    rows = labelled.table.to_pylist()
    for row in rows:
        if row["split"] == "test":
            row["label"] = "unknown"
    other = manifest_from_rows(rows, tmp_path / "m.parquet").write(tmp_path / "m.parquet")
    done = crosspair(*arguments(other.path, tmp_path / "run", init))
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        [without_rates(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (tmp_path / "run", whole_run)
    )
    assert ours == theirs
    hashes = {Classifier.from_pretrained(run / "model").hash for run in (tmp_path / "run", whole_run)}
    assert len(hashes) == 1
    assert read_results(tmp_path / "run" / "results.json")[0][0].value == 0


def test_run_stopped_by_a_signal_to_its_group_resumes_bit_identically(whole_run, labelled, init, tmp_path) -> None:
    run = tmp_path / "run"
    given = arguments(labelled.path, run, init, "--resume")
    process = subprocess.Popen(command(*given), stderr=subprocess.PIPE, text=True, start_new_session=True)
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None, "the training ended before it was stopped"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGTERM)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 0, message
    assert "--resume" in message
    assert not (run / "results.json").exists()
    done = crosspair(*given)
    assert done.returncode == 0, done.stderr
    for kind in ("train", "validation"):
        resumed = [without_rates(line) for line in lines(run, kind)]
        assert resumed == [without_rates(line) for line in lines(whole_run, kind)]
    assert Classifier.from_pretrained(run / "model").hash == Classifier.from_pretrained(whole_run / "model").hash


def test_saturation_lowers_the_rate_and_ends_the_training(labelled, init, tmp_path) -> None:
    run = tmp_path / "run"
    settings = ("plateau.drops=1", "plateau.patience=1", "training.epochs=60", "optimizer.lr=0.5")
    more = ("--no-test", "training.export=best", "optimizer.name=sgd", *settings)
    done = crosspair(*arguments(labelled.path, run, init, *more))
    assert done.returncode == 0, done.stderr
    events = [line["event"] for line in lines(run, "event")]
    assert events == ["learning rate ÷ 10", "the training ends"]
    validations = lines(run, "validation")
    assert len(validations) < 60
    losses = [line["loss"] for line in validations]
    assert losses[-1] > min(losses)
    rates = [line["lr"] for line in lines(run)]
    assert rates[-1] < rates[len(rates) // 2] * 0.5 or rates[-1] < 0.1 * 0.5
    assert not (run / "results.json").exists()
    before = (run / "metrics.jsonl").read_text().count('"train"')
    again = crosspair(*arguments(labelled.path, run, init, "--resume", *more))
    assert again.returncode == 0, again.stderr
    assert (run / "metrics.jsonl").read_text().count('"train"') == before


def test_splits_are_averaged_and_not_repeated(labelled, init, tmp_path) -> None:
    rows = labelled.table.to_pylist()
    for number in (1, 3):
        for index, row in enumerate(rows):
            row["split"] = "test" if index % 9 == number else "train"
        manifest_from_rows(rows, tmp_path).write(tmp_path / f"split{number}.parquet")
    run = tmp_path / "run"
    given = arguments(
        tmp_path / "split{}.parquet", run, "random", "--splits=1,3", "labels.share=0.5",
        "training.epochs=1",
    )  # fmt: skip
    done = crosspair(*given)
    assert done.returncode == 0, done.stderr
    results, origin = read_results(run / "results.json")
    each = [read_results(run / f"split{n}" / "results.json")[0][0].value for n in (1, 3)]
    assert results[0].value == pytest.approx(sum(each) / 2)
    assert results[0].settings["mean of splits"] == [1, 3]
    assert results[0].settings["labels"] == 0.5
    assert results[0].settings["init"] == "random"
    assert len(origin.model.split("+")) == 2
    written = {n: (run / f"split{n}" / "results.json").stat().st_mtime_ns for n in (1, 3)}
    again = crosspair(*given, "--resume")
    assert again.returncode == 0, again.stderr
    assert read_results(run / "results.json")[0][0] == results[0]
    for n, stamp in written.items():
        assert (run / f"split{n}" / "results.json").stat().st_mtime_ns == stamp


def test_two_processes(labelled, init, tmp_path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    given = map(str, arguments(labelled.path, tmp_path / "run", init, "training.epochs=1"))
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "--", "crosspair", *given],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results, _ = read_results(tmp_path / "run" / "results.json")
    assert results[0].count == 5


def test_invalid_input(labelled, init, tmp_path) -> None:
    for more, item in (
        (("video.depth=18",), "video.depth"), (("--splits=1,2",), "--splits"),
        (("--init=nowhere",), "nowhere"), (("--recipe=laptop",), "'laptop'"),
    ):  # fmt: skip
        assert item in refused(*arguments(labelled.path, tmp_path / "run", init, *more))
    assert not (tmp_path / "run").exists()
