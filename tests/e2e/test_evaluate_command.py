"""End-to-end runs of evaluate, and of embed to a folder: cached, killed, on two processes, invalid input.

The tests of errors check the offending key, file or value in the line, not its wording.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crosspair import evaluate, models
from crosspair.config import FinetuneRecipe
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.evaluation import load_features, read_results
from crosspair.models import CPD, Classifier
from crosspair.recipes import read_recipe, recipe_of
from tests.e2e.conftest import command, crosspair, refused, run
from tests.models.conftest import write_pretrained
from tests.models.test_inflate import Code, resnet2d, saved

CLASSES = ["falling", "rising", "turning"]
SMALL = ("--clips", 2, "--batch-size", 6, "--workers", 0)
TINY = {"video.depth": 10, "video.width": 4, "clip.size": 32, "clip.frames": 4}
Rows = list[dict]


@pytest.fixture(scope="module")
def corpus(rendered: Manifest) -> Manifest:
    """29 videos, one of them missing: not a multiple of the processes or of the batch size."""
    rows = rendered.table.to_pylist()[:29]
    for row, values in enumerate(rows):
        values["label"] = CLASSES[row % 3]
        values["split"] = "test" if row % 5 == 0 else "train"
    rows[7]["path"] = "videos/gone.mp4"
    return manifest_from_rows(rows, rendered.path).write(rendered.path.with_name("corpus.parquet"))


@pytest.fixture(scope="module")
def folder(corpus: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folders of each kind, one that diverged, one that is damaged, and files of weights."""
    folder = tmp_path_factory.mktemp("models")
    heads = {"text.dimensions": 8, "head.hidden": 8, "head.embedding": 8}
    torch.manual_seed(0)
    for depth in (18, 10):
        model = models.build_model(recipe_of({**TINY, **heads, "video.depth": depth}), corpus.column("title"))
        model.save_pretrained(folder / f"cpd{depth}")
    model.video_head.weight.data[0] = float("nan")
    model.save_pretrained(folder / "diverged")
    recipe = read_recipe(FinetuneRecipe, "laptop-finetune", [f"{k}={v}" for k, v in TINY.items()])
    Classifier(CLASSES, recipe.clip, recipe.video, recipe.classifier).save_pretrained(folder / "classifier")
    shutil.copytree(folder / "cpd10", folder / "cut")
    os.truncate(folder / "cut" / "model.safetensors", 1000)
    saved(resnet2d(10), folder / "resnet10.safetensors")
    torch.save({"conv1.weight": Code(folder / "made")}, folder / "code.pth")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return folder / "cpd10"


def arguments(model: object, manifest: object, out: Path, *more: object) -> tuple[object, ...]:
    path = manifest.path if isinstance(manifest, Manifest) else manifest
    return ("evaluate", "--model", model, "--manifest", path, "--out", out, *SMALL, *more)


@pytest.fixture(scope="module")
def everything(corpus: Manifest, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("all") / "results.json"
    done = crosspair(*arguments(model, corpus, out, "knn.k=5", "zeroshot.class_counts=[2]", "--details", out.parent))
    assert done.returncode == 0, done.stderr
    assert "zero-shot" in done.stdout
    return out


def features_of(out: Path, model: Path) -> Path:
    (folder,) = out.parent.glob(f"features-{CPD.from_pretrained(model).hash}-*")
    return folder


def test_all_protocols_are_compared_with_random_weights_and_chance(everything, corpus, model) -> None:
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


def test_accuracies_have_intervals_and_details(everything, corpus) -> None:
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
    table = everything.parent / "kNN-visual.classes.csv"
    assert table.read_text().startswith("class,accuracy,videos\nfalling,")
    assert (everything.parent / "kNN-visual.confusion.png").read_bytes().startswith(b"\x89PNG")
    run("titles", "words", corpus.path, "--exact", "--accuracy", table, "--out", everything.parent / "words")


def test_another_protocol_uses_the_cached_features(everything, corpus, model) -> None:
    features = features_of(everything, model) / "features.safetensors"
    written = features.stat().st_mtime_ns
    out = everything.with_name("some.json")
    run(*arguments(model, corpus, out, "--protocols", "knn,zeroshot", "knn.k=5"))
    every, some = (
        {(r.protocol, r.feature): r.value for r in read_results(path)[0] if r.of == "trained"}
        for path in (everything, out)
    )
    assert {protocol for protocol, _ in some} == {"kNN", "zero-shot"}
    assert some.items() <= every.items()
    assert "random weights" not in {result.of for result in read_results(out)[0]}
    assert features.stat().st_mtime_ns == written


def test_evaluate_from_python_without_a_results_file(corpus, model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = evaluate(model, corpus.path, ["knn"], clips=2, workers=0, feature="visual", overrides=["knn.k=3"])
    assert {(each.of, each.feature) for each in results} == {("trained", "visual"), ("chance", "visual")}
    assert not any(tmp_path.iterdir())


def test_two_processes_give_the_same_numbers(everything, corpus, model, tmp_path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    given = arguments(
        model, corpus, tmp_path / "results.json", "--features", tmp_path / "features", "knn.k=5",
        "zeroshot.class_counts=[2]", "--no-random-baseline",
    )  # fmt: skip
    line = [sys.executable, *launcher, "-m", "--", "crosspair", *map(str, given)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = load_features(features_of(everything, model)), load_features(tmp_path / "features")
    for name in ("rows", "visual", "embedding"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert [pair_id for pair_id, _ in two.failures] == [corpus.column("pair_id")[7]]
    results, expected = (json.loads(path.read_text())["results"] for path in (tmp_path / "results.json", everything))
    assert results == [line for line in expected if line["of"] != "random weights"]


def test_features_of_single_frames(corpus, folder, tmp_path) -> None:
    out = tmp_path / "results.json"
    run(*arguments(f"imagenet:{folder / 'resnet10.safetensors'}", corpus, out, "knn.k=3", "--no-random-baseline"))
    results, _ = read_results(out)
    assert {(each.protocol, each.feature) for each in results} == {
        (name, "visual") for name in ("kNN", "linear", "low-shot 1 %", "low-shot 10 %", "low-shot 20 %")
    }
    assert {each.settings["network"] for each in results} == {"ImageNet ResNet-10"}


def test_a_classifier_is_tested_with_several_views(corpus, folder, tmp_path) -> None:
    out = tmp_path / "results.json"
    run(*arguments(folder / "classifier", corpus, out, "multiview.crops=1"))
    results, origin = read_results(out)
    assert {result.protocol for result in results} == {"2 views"}
    assert origin.model == Classifier.from_pretrained(folder / "classifier").hash


def test_other_models_are_compared(corpus, folder, tmp_path, capsys) -> None:
    """Each with its own clip format; the models have the names of their files and run folders."""
    clip = write_pretrained(tmp_path / "clip", "clip")
    run_folder = shutil.copytree(folder / "cpd18", tmp_path / "older" / "model")
    frames = f"imagenet:{folder / 'resnet10.safetensors'}"
    out, features = tmp_path / "results.json", tmp_path / "features"
    more = ("--protocols", "knn,zeroshot,fewshot,attentive", "knn.k=3", "--features", features)
    more += ("fewshot.draws=2", "attentive.clips=1", "attentive.epochs=1")
    others = ("--compare-with", clip, "--compare-with", run_folder, frames)
    run(*arguments(folder / "cpd10", corpus, out, *more, *others))
    results, origin = read_results(out)
    found = {name: {r.protocol for r in results if r.of == name} for name in dict.fromkeys(r.of for r in results)}
    every = {"kNN", "zero-shot", "few-shot, 8 labels", "attentive"}
    assert found == {
        "trained": every, "chance": every, "clip": every, "older": every,
        "resnet10.safetensors": every - {"zero-shot"},
    }  # fmt: skip
    assert origin.compared["older"] == CPD.from_pretrained(run_folder).hash
    assert (tmp_path / f"features-{origin.compared['clip']}" / "index.parquet").is_file()
    head = capsys.readouterr().out.splitlines()[1]
    assert "clip" in head
    assert "older" in head
    run("report", out, "--out", tmp_path / "report")
    assert "resnet10.safetensors" in (tmp_path / "report" / "report.md").read_text()
    alone = tmp_path / "alone" / "results.json"
    run(*arguments(clip, corpus, alone, "--protocols", "knn", "knn.k=3"))
    (value,) = (r.value for r in read_results(alone)[0] if r.of == "trained")
    assert value == next(r.value for r in results if (r.of, r.protocol) == ("clip", "kNN"))


def test_classifiers_are_compared(corpus, folder, tmp_path) -> None:
    other = shutil.copytree(folder / "classifier", tmp_path / "older" / "model")
    out = tmp_path / "results.json"
    run(*arguments(folder / "classifier", corpus, out, "multiview.crops=1", "--compare-with", other))
    values = {result.of: result.value for result in read_results(out)[0]}
    assert set(values) == {"trained", "older", "chance"}
    assert values["older"] == values["trained"]


def test_models_that_cannot_be_compared(corpus, folder, tmp_path) -> None:
    for model, others in (("cpd10", ["classifier"]), ("cpd10", ["cpd18", "cpd18"]), ("classifier", ["cpd18"])):
        more = (word for other in others for word in ("--compare-with", folder / other))
        assert others[0] in refused(*arguments(folder / model, corpus, tmp_path / "r.json", *more))
    assert not any(tmp_path.iterdir())


def test_splits_are_tested_in_turn_and_averaged(model, corpus, tmp_path) -> None:
    for split in (1, 2):  # the same videos, tested on one part of them and on another
        rows = corpus.table.to_pylist()
        for row, values in enumerate(rows):
            values["path"] = str(corpus.path.parent / values["path"])
            values["split"] = "test" if row % 5 == split else "train"
        manifest_from_rows(rows, tmp_path / "m").write(tmp_path / f"split{split}.parquet")
    out = tmp_path / "results.json"
    more = ("--protocols", "knn", "knn.k=3", "--splits", "1,2", "--details", tmp_path / "details")
    run(*arguments(model, tmp_path / "split{}.parquet", out, *more, "--compare-with", model.with_name("cpd18")))
    results, origin = read_results(out)
    other = next(each for each in results if each.of == "cpd18")
    assert other.settings["mean of splits"] == [1, 2]
    assert set(origin.compared) == {"cpd18"}
    mean, first, second = (each for each in results if each.of == "trained" and each.feature == "visual")
    assert mean.value == pytest.approx((first.value + second.value) / 2)
    assert mean.settings["mean of splits"] == [1, 2]
    assert mean.interval is not None
    assert origin.manifest_file == "split1.parquet+split2.parquet"
    assert (tmp_path / "details" / "split2").is_dir()
    assert "{}" in refused(*arguments(model, corpus, out, "--splits", "1,2"))


def test_results_in_a_new_folder_and_features_in_the_current_one(
    everything: Path, corpus: Manifest, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "not" / "yet" / "results.json"
    monkeypatch.chdir(shutil.copytree(features_of(everything, model), tmp_path / "features"))
    more = ("--features=.", "--protocols=knn", "knn.k=3", "--random-baseline")
    run(*arguments(model, corpus, out, *more))
    assert read_results(out)[0]
    assert (tmp_path / "features-random" / "index.parquet").is_file()


def test_a_killed_embed_resumes(corpus, model, tmp_path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    inputs = ("embed", corpus.path, "--model", model, *SMALL)
    run(*inputs, "--out", whole)
    process = subprocess.Popen(command(*inputs, "--out", out), stderr=subprocess.DEVNULL)
    wait_for(out / "parts", "protocol.json", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "index.parquet").exists()
    run(*inputs, "--out", out)
    one, two = (load_file(folder / "features.safetensors") for folder in (whole, out))
    assert all(torch.equal(one[name], two[name]) for name in ("visual", "embedding"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_results_and_keeps_encoded_videos(rendered, model, tmp_path, number) -> None:
    out, features = tmp_path / "results.json", tmp_path / "features"
    given = ("evaluate", "--model", model, "--manifest", rendered.path, "--out", out, "--features", features)
    line = command(*given, "--protocols", "knn", "--clips=10", "--workers=2")
    # Its own group, as a terminal gives it, whose every process gets the signal.
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(features / "parts", "0-*.parquet", process)
    os.killpg(process.pid, number)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 128 + number, log
    # Not "Traceback": a thread of Python's own may report that a worker closed its pipe.
    assert "/crosspair/" not in log
    assert not out.exists()
    assert not (features / "index.parquet").exists()
    assert list((features / "parts").glob("0-*.parquet"))


def wait_for(folder: Path, pattern: str, process: subprocess.Popen) -> None:
    """Wait until a folder has a file with content."""
    deadline = time.monotonic() + 120
    while not any(file.stat().st_size for file in folder.glob(pattern)):
        assert process.poll() is None, "the process ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.002)


# --- invalid input: checked before a video is read ----------------------------------------------


def change(corpus: Manifest, name: str, edit: Callable[[Rows], object]) -> Path:
    rows = corpus.table.to_pylist()
    edit(rows)
    path = corpus.path.with_name(f"{name}.parquet")
    return manifest_from_rows(rows, path).write(path).path


def no_labels(rows: Rows) -> None:
    for row in rows:
        row["label"] = None


def a_new_class(rows: Rows) -> None:
    rows[0]["label"] = "parrot"


@pytest.mark.parametrize(
    ("edit", "more", "value"),
    [
        (no_labels, ("--protocols=knn",), "test"),
        (a_new_class, ("--protocols=lowshot",), "'parrot'"),
        (len, ("--protocols=knn", "knn.k=100"), "100"),
        (len, ("knn.kk=3",), "'knn.k'"),
        (len, ("linear.lr=fast",), "linear.lr"),
        (len, ("--protocols=zeroshot", "zeroshot.templates=none.txt"), "none.txt"),
        (len, ("--protocols=knn,zeroshott",), "'zeroshott'"),
        (len, ("--splits=1,x",), "'1,x'"),
        (len, ("--splits=2,2",), "'2,2'"),
    ],
)
def test_invalid_manifest_or_setting(
    corpus: Manifest, model: Path, tmp_path: Path, edit: Callable[[Rows], object], more: tuple[str, ...], value: str
) -> None:
    out = tmp_path / "out" / "results.json"
    assert value in refused(*arguments(model, change(corpus, "changed", edit), out, *more))
    assert not out.parent.exists()  # no features either


@pytest.mark.parametrize(
    ("source", "protocol", "values"),
    [
        ("nowhere", "knn", ("nowhere",)),
        ("cut", "knn", ("cut/model.safetensors",)),
        ("classifier", "knn", ("classifier",)),
        ("cpd10", "multiview", ("cpd10",)),
        ("imagenet:resnet10.safetensors", "retrieval", ("text",)),
        ("imagenet:code.pth", "knn", ("code.pth", "posix.system")),
    ],
)
def test_invalid_model(
    corpus: Manifest, folder: Path, tmp_path: Path, source: str, protocol: str, values: tuple[str, ...]
) -> None:
    kind, colon, name = source.rpartition(":")
    line = refused(*arguments(f"{kind}{colon}{folder / name}", corpus, tmp_path / "r.json", "--protocols", protocol))
    assert all(value in line for value in values)
    assert not any(tmp_path.iterdir())
    assert not (folder / "made").exists()


def test_unwritable_results(corpus: Manifest, model: Path, tmp_path: Path) -> None:
    assert f"{tmp_path} is " in refused(*arguments(model, corpus, tmp_path))
    file = tmp_path / "file"
    file.write_text("mine")
    line = refused(*arguments(model, corpus, file / "deep" / "results.json"))
    assert line.startswith(f"{file}/deep/results.json: {file} ")
    if Path("/proc").is_dir():  # not writable, even for root
        line = refused(*arguments(model, corpus, "/proc/results.json"))
        assert line.startswith("/proc/results.json cannot be written")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- invalid input: found while encoding --------------------------------------------------------


@pytest.mark.parametrize("source", ["cpd10", "classifier"])
def test_no_readable_video(corpus: Manifest, folder: Path, tmp_path: Path, source: str) -> None:
    def lost(rows: Rows) -> None:
        for row in rows:
            row["path"] = "videos/gone.mp4"

    line = refused(*arguments(folder / source, change(corpus, "lost", lost), tmp_path / "results.json", "knn.k=3"))
    assert "gone.mp4: " in line
    assert not (tmp_path / "results.json").exists()


def test_features_that_are_not_finite(corpus: Manifest, folder: Path, tmp_path: Path) -> None:
    line = refused(*arguments(folder / "diverged", corpus, tmp_path / "r.json", "knn.k=3"))
    assert "diverged/model.safetensors" in line
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("damage", "value"),
    [
        ("another model", "(model "),
        ("another protocol", "(clips 2, not 3)"),
        ("features.safetensors", "features.safetensors"),
        ("index.parquet", "index.parquet"),
    ],
)
def test_invalid_feature_folder(
    everything: Path, corpus: Manifest, folder: Path, tmp_path: Path, damage: str, value: str
) -> None:
    features = shutil.copytree(features_of(everything, folder / "cpd10"), tmp_path / "features")
    if (features / damage).is_file():
        os.truncate(features / damage, 500)
    model = folder / ("cpd18" if damage == "another model" else "cpd10")
    clips = 3 if damage == "another protocol" else 2
    more = (f"--features={features}", "--clips", clips, "knn.k=3")
    line = refused(*arguments(model, corpus, tmp_path / "results.json", *more))
    assert str(features) in line
    assert value in line
    assert not (tmp_path / "results.json").exists()
