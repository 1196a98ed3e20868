"""End-to-end runs of features and evaluate: cached, killed, on two processes, invalid input."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crosspair import models
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.evaluation import load_features, read_results
from crosspair.models import CPD
from crosspair.recipes import recipe_of
from tests.e2e.conftest import command, crosspair
from tests.models.test_inflate import resnet2d, saved

SMALL = ("--clips", 2, "--batch-size", 6, "--workers", 0)


@pytest.fixture(scope="module")
def corpus(rendered: Manifest) -> Manifest:
    """29 videos, one of them missing: not a multiple of the processes or of the batch size."""
    rows = rendered.table.to_pylist()[:29]
    for row, values in enumerate(rows):
        values["label"] = ["rising", "falling", "turning"][row % 3]
        values["split"] = "test" if row % 5 == 0 else "train"
    rows[7]["path"] = "videos/gone.mp4"
    return manifest_from_rows(rows, rendered.path).write(rendered.path.with_name("corpus.parquet"))


@pytest.fixture(scope="module")
def model(corpus: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = recipe_of({
        "video.depth": 10, "video.width": 4, "clip.size": 32, "clip.frames": 4,
        "text.dimensions": 8, "head.hidden": 8, "head.embedding": 8,
    })  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "model"
    models.build_model(recipe, corpus.column("title")).save_pretrained(folder)
    return folder


def evaluate(protocol: str, model: Path | str, corpus: Manifest, out: Path, *more: object):
    inputs = ("--model", model, "--manifest", corpus.path, "--out", out)
    return crosspair("evaluate", protocol, *inputs, *SMALL, *more)


def results_of(path: Path) -> list[dict]:
    return json.loads(path.read_text())["results"]


def on_two_processes(*arguments: object) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    line = [sys.executable, *launcher, "-m", "--", "crosspair", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def everything(corpus, model, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("all") / "results.json"
    done = evaluate("all", model, corpus, out, "--k", 5, "--classes", 2, "--details", out.parent)
    assert done.returncode == 0, done.stderr
    assert "zero-shot" in done.stdout
    return out


def test_all_compares_with_random_weights_and_chance(everything, corpus, model) -> None:
    results, origin = read_results(everything)
    assert (origin.manifest, origin.model) == (corpus.hash, CPD.from_pretrained(model).hash)
    assert {result.settings["clips"] for result in results} == {2}
    protocols = {result.protocol for result in results}
    assert protocols == {
        "retrieval text→video", "retrieval video→text", "kNN", "linear", "low-shot 1 %",
        "low-shot 10 %", "low-shot 20 %", "zero-shot", "zero-shot, 2 random classes",
    }  # fmt: skip
    for protocol in protocols:
        of = {result.of for result in results if result.protocol == protocol}
        assert of == {"trained", "random weights", "chance"}


def test_accuracies_have_intervals_and_details(everything) -> None:
    results, _ = read_results(everything)
    for result in results:
        if result.metric == "top-1" and result.of != "chance":
            low, high = result.interval
            assert 0 <= low <= result.value <= high <= 1
        if result.of == "trained" and result.protocol in {"kNN", "linear", "zero-shot"}:
            confusion = result.details["confusion"]
            assert sum(sum(row.values()) for row in confusion.values()) == result.count == 6
            right = sum(row.get(label, 0) for label, row in confusion.items())
            assert right / 6 == pytest.approx(result.value)


def test_words_accepts_the_accuracy_of_each_class(everything, corpus) -> None:
    table = everything.parent / "kNN-visual.classes.csv"
    assert table.read_text().startswith("class,accuracy,videos\nfalling,")
    assert (everything.parent / "kNN-visual.confusion.png").read_bytes().startswith(b"\x89PNG")
    out = everything.parent / "words"
    done = crosspair("words", corpus.path, "--exact", "--accuracy", table, "--out", out)
    assert done.returncode == 0, done.stderr


def test_features_of_frames_are_tested(corpus, tmp_path) -> None:
    out = tmp_path / "results.json"
    weights = f"imagenet:{saved(resnet2d(10), tmp_path / 'w.safetensors')}"
    done = evaluate("all", weights, corpus, out, "--k", 3, "--no-random-baseline")
    assert done.returncode == 0, done.stderr
    results = results_of(out)
    assert {(r["protocol"], r["feature"]) for r in results} == {
        (name, "visual") for name in ("kNN", "linear", "low-shot 1 %", "low-shot 10 %", "low-shot 20 %")
    }
    assert {r["settings"]["network"] for r in results} == {"ImageNet ResNet-10"}
    assert {r["of"] for r in results} == {"trained", "chance"}


def test_another_protocol_uses_the_cached_features(everything, corpus, model) -> None:
    (folder,) = everything.parent.glob(f"features-{CPD.from_pretrained(model).hash}-*")
    written = (folder / "features.safetensors").stat().st_mtime_ns
    for protocol, more in (("knn", ("--k", 5)), ("zeroshot", ())):
        out = everything.with_name(f"{protocol}.json")
        done = evaluate(protocol, model, corpus, out, *more)
        assert done.returncode == 0, done.stderr
        both = [
            {(r.protocol, r.feature): r.value for r in read_results(path)[0] if r.of == "trained"}
            for path in (everything, out)
        ]
        assert both[1]
        assert both[1].items() <= both[0].items()
    assert (folder / "features.safetensors").stat().st_mtime_ns == written


def test_two_processes_give_the_same_numbers(everything, corpus, model, tmp_path) -> None:
    folder = tmp_path / "features"
    inputs = ("--model", model, "--manifest", corpus.path, "--features", folder)
    out = tmp_path / "results.json"
    done = on_two_processes(
        "evaluate", "all", *inputs, "--out", out, *SMALL, "--k", 5, "--classes", 2,
        "--no-random-baseline",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (alone,) = everything.parent.glob(f"features-{CPD.from_pretrained(model).hash}-*")
    one, two = load_features(alone), load_features(folder)
    assert torch.equal(one.rows, two.rows)
    assert torch.equal(one.visual, two.visual)
    assert torch.equal(one.embedding, two.embedding)
    assert one.failures == two.failures
    assert [pair_id for pair_id, _ in one.failures] == [corpus.column("pair_id")[7]]
    assert results_of(out) == [line for line in results_of(everything) if line["of"] != "random weights"]


def test_killed_features_resume(corpus, model, tmp_path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    inputs = ("features", "--model", model, "--manifest", corpus.path, *SMALL)
    done = crosspair(*inputs, "--out", whole)
    assert done.returncode == 0, done.stderr
    assert f"{whole}: features of 28 of 29 videos" in done.stdout
    process = subprocess.Popen(command(*inputs, "--out", out), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "parts" / "protocol.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "index.parquet").exists()
    assert crosspair(*inputs, "--out", out).returncode == 0
    one, two = (load_file(folder / "features.safetensors") for folder in (whole, out))
    assert all(torch.equal(one[name], two[name]) for name in ("visual", "embedding"))


def refused(done: subprocess.CompletedProcess[str], out: Path) -> str:
    """Check that a command failed, and return its error line."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
    return " ".join(done.stderr.split("crosspair: error: ")[-1].split())


def test_errors_are_one_line(everything, corpus, model, tmp_path) -> None:
    out = tmp_path / "out.json"
    (folder,) = everything.parent.glob(f"features-{CPD.from_pretrained(model).hash}-*")
    there = ("--features", folder)
    line = refused(evaluate("knn", model, corpus, out, "--k", 100, *there), out)
    assert "100" in line
    assert "23" in line
    line = refused(evaluate("knn", model, corpus, out, "--split", "val", *there), out)
    assert "val" in line
    line = refused(evaluate("knn", model, corpus, out, *there, "--k", 3, "--clips", 3), out)
    assert "(clips 2, not 3)" in line
    templates = tmp_path / "templates.txt"
    templates.write_text("a video of {}\na clip\n")
    done = evaluate("zeroshot", model, corpus, out, *there, "--templates", templates)
    assert "2: 'a clip'" in refused(done, out)


def test_weights_of_another_depth(corpus, model, tmp_path) -> None:
    other = tmp_path / "model"
    shutil.copytree(model, other)
    config = json.loads((other / "config.json").read_text())
    config["video"]["depth"] = 18
    (other / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out.json"
    line = refused(evaluate("knn", other, corpus, out), out)
    assert "model.safetensors" in line
    assert "config.json" in line


def test_splits_are_tested_in_turn_and_averaged(model, corpus, tmp_path) -> None:
    for split in (1, 2):  # the same videos, tested on one part of them and on another
        rows = corpus.table.to_pylist()
        for row, values in enumerate(rows):
            values["path"] = str(corpus.path.parent / values["path"])
            values["split"] = "test" if row % 5 == split else "train"
        manifest_from_rows(rows, tmp_path / "m").write(tmp_path / f"split{split}.parquet")
    out = tmp_path / "results.json"
    done = crosspair(
        "evaluate", "knn", "--model", model, "--manifest", tmp_path / "split{}.parquet",
        "--out", out, *SMALL, "--k", 3, "--splits", "1,2", "--details", tmp_path / "details",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results, origin = read_results(out)
    trained = [each for each in results if each.of == "trained" and each.feature == "visual"]
    mean, first, second = trained
    assert mean.value == pytest.approx((first.value + second.value) / 2)
    assert mean.settings["mean of splits"] == [1, 2]
    assert mean.interval is not None
    assert origin.manifest_file == "split1.parquet+split2.parquet"
    assert (tmp_path / "details" / "split2").is_dir()


@pytest.mark.parametrize("splits", ["1,x", "2,2"])
def test_invalid_splits(splits, model, corpus, tmp_path) -> None:
    done = evaluate("knn", model, corpus, tmp_path / "results.json", "--splits", splits)
    assert done.returncode == 2
    assert f"argument --splits: {splits!r} " in done.stderr
