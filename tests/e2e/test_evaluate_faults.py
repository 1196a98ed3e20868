"""Invalid input of evaluate and finetune: one line, status 2, and no partial output.

The tests check the offending key, file or value in the line, not its wording.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crosspair.cli import main
from crosspair.config import FinetuneRecipe
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.models import Classifier, build_model
from crosspair.recipes import read_recipe, recipe_of
from tests.e2e.conftest import command
from tests.models.test_inflate import Code, resnet2d, saved

pytestmark = pytest.mark.usefixtures("one_thread")

VIDEOS = 12
CLASSES = ["falling", "rising", "turning"]
TINY = {"video.depth": 10, "video.width": 4, "clip.size": 32, "clip.frames": 4}
SMALL = ("--clips=2", "--workers=0")


@pytest.fixture(scope="module")
def corpus(rendered: Manifest) -> Path:
    """Twelve videos of three classes, three of them tested."""
    return write(rendered, "faults", as_they_are)


def write(rendered: Manifest, name: str, change: Callable[[list[dict]], object]) -> Path:
    rows = rendered.table.to_pylist()[:VIDEOS]
    for index, row in enumerate(rows):
        row["label"] = CLASSES[index % 3]
        row["split"] = "test" if index < 3 else "train"
    change(rows)
    path = rendered.path.with_name(f"{name}.parquet")
    return manifest_from_rows(rows, path).write(path).path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folders of each kind, and one that diverged."""
    folder = tmp_path_factory.mktemp("models")
    heads = {"text.dimensions": 4, "head.hidden": 4, "head.embedding": 4}
    torch.manual_seed(0)
    for depth in (10, 18):
        recipe = recipe_of({**TINY, **heads, "video.depth": depth})
        model = build_model(recipe, ["a falling dog"] * 2)
        model.save_pretrained(folder / f"cpd{depth}")
    model.video_head.weight.data[0] = float("nan")
    model.save_pretrained(folder / "diverged")
    recipe = read_recipe(FinetuneRecipe, "laptop-finetune", [f"{k}={v}" for k, v in TINY.items()])
    classifier = Classifier(CLASSES, recipe.clip, recipe.video, recipe.classifier)
    classifier.save_pretrained(folder / "classifier")
    shutil.copytree(folder / "cpd10", folder / "cut")
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    saved(resnet2d(18), folder / "resnet18.pth")
    torch.save({"conv1.weight": Code(folder / "made")}, folder / "code.pth")
    return folder


@pytest.fixture(scope="module")
def features(corpus: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the good model and corpus."""
    out = tmp_path_factory.mktemp("features") / "features"
    main(["-q", "features", *inputs(folder / "cpd10", corpus), f"--out={out}", *SMALL])
    return out


def inputs(model: object, manifest: object) -> list[str]:
    return [f"--model={model}", f"--manifest={manifest}"]


Refused = Callable[..., str]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Refused:
    """Run the command, check that it fails, and return the error line."""

    def call(*arguments: object) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["--quiet", *map(str, arguments)])
        out, log = capfd.readouterr()
        assert ended.value.code == 2, log
        assert not out
        *_, last = log.strip().splitlines()
        assert log.count("crosspair: error: ") == 1
        return last.removeprefix("crosspair: error: ")

    return call


# --- evaluate: checks before a video is read ----------------------------------------------------


def no_labels(rows: list[dict]) -> None:
    for row in rows:
        row["label"] = None


def one_class(rows: list[dict]) -> None:
    for row in rows:
        row["label"] = "rising"


def no_test(rows: list[dict]) -> None:
    for row in rows:
        row["split"] = "train"


def a_new_class(rows: list[dict]) -> None:
    rows[0]["label"] = "parrot"


def as_they_are(rows: list[dict]) -> None:
    pass


@pytest.mark.parametrize(
    ("protocol", "change", "more", "value"),
    [
        ("knn", no_labels, (), "test"),
        ("zeroshot", one_class, (), "'rising'"),
        ("knn", no_test, (), "test"),
        ("lowshot", a_new_class, (), "'parrot'"),
        ("knn", as_they_are, (), "25"),
        ("knn", as_they_are, ("--k=0",), "0"),
        (
            "knn", as_they_are, ("--weighting=distance", "--k=2", "--temperature=0"),
            "temperature",
        ),
        ("knn", as_they_are, ("--split=train",), "train"),
        ("linear", as_they_are, ("--epochs=0",), "epoch"),
        ("linear", as_they_are, ("--lr=-1",), "-1"),
        ("lowshot", as_they_are, ("--fractions", "0.5", "1.5"), "1.5"),
        ("zeroshot", as_they_are, ("--classes", "9"), "9"),
    ],
)  # fmt: skip
def test_invalid_manifest_or_setting(
    rendered: Manifest, folder: Path, tmp_path: Path, refused: Refused,
    protocol: str, change: Callable, more: tuple[str, ...], value: str,
) -> None:  # fmt: skip
    manifest = write(rendered, "changed", change)
    out = tmp_path / "out" / "results.json"
    given = (*inputs(folder / "cpd10", manifest), f"--out={out}", *SMALL, *more)
    assert value in refused("evaluate", protocol, *given)
    assert not out.parent.exists()  # no features either


@pytest.mark.parametrize(
    ("protocol", "model", "file"),
    [
        ("knn", "nowhere", "nowhere"),
        ("knn", "cut", "cut/model.safetensors"),
        ("knn", "classifier", "classifier"),
        ("multiview", "cpd10", "cpd10"),
    ],
)
def test_invalid_model(
    corpus: Path, folder: Path, tmp_path: Path, refused: Refused,
    protocol: str, model: str, file: str,
) -> None:  # fmt: skip
    out = tmp_path / "results.json"
    given = (*inputs(folder / model, corpus), f"--out={out}", "--workers=0")
    assert file in refused("evaluate", protocol, *given)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("protocol", ["knn", "multiview"])
def test_unwritable_results(corpus: Path, folder: Path, tmp_path: Path, refused: Refused, protocol: str) -> None:
    model = "classifier" if protocol == "multiview" else "cpd10"
    given = ("evaluate", protocol, *inputs(folder / model, corpus))
    assert f"--out {tmp_path} " in refused(*given, f"--out={tmp_path}")
    file = tmp_path / "file"
    file.write_text("mine")
    line = refused(*given, f"--out={file / 'deep' / 'results.json'}")
    assert line.startswith(f"--out {file}/deep/results.json: {file} ")
    if Path("/proc").is_dir():  # not writable, even for root
        line = refused(*given, "--out=/proc/results.json")
        assert line.startswith("--out /proc/results.json: /proc ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("option", ["--clips=0", "--workers=-1", "--batch-size=x"])
def test_invalid_numbers(corpus: Path, folder: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "knn", *inputs(folder / "cpd10", corpus), "--out=r.json", option])
    assert ended.value.code == 2
    name, _, given = option.partition("=")
    assert f"argument {name}: {given!r} " in capsys.readouterr().err


def test_template_without_placeholder(corpus: Path, folder: Path, tmp_path: Path, refused: Refused) -> None:
    templates, out = tmp_path / "templates.txt", tmp_path / "results.json"
    templates.write_text("a video of {}\na video\n")
    given = (*inputs(folder / "cpd10", corpus), f"--out={out}", f"--templates={templates}")
    line = refused("evaluate", "zeroshot", *given)
    assert "templates.txt" in line
    assert "2: 'a video'" in line
    assert not out.exists()


# --- evaluate: errors found while encoding ------------------------------------------------------


@pytest.mark.parametrize("protocol", ["knn", "multiview"])
def test_no_readable_video(rendered: Manifest, folder: Path, tmp_path: Path, refused: Refused, protocol: str) -> None:
    def lost(rows: list[dict]) -> None:
        for row in rows:
            row["path"] = "videos/gone.mp4"

    model = "classifier" if protocol == "multiview" else "cpd10"
    given = (*inputs(folder / model, write(rendered, "lost", lost)), "--workers=0")
    more = () if protocol == "multiview" else ("--k=3", f"--features={tmp_path / 'features'}")
    line = refused("evaluate", protocol, *given, *more, f"--out={tmp_path / 'results.json'}")
    assert "gone.mp4: " in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_features_that_are_not_finite(corpus: Path, folder: Path, tmp_path: Path, refused: Refused) -> None:
    given = (*inputs(folder / "diverged", corpus), *SMALL, "--k=3", f"--out={tmp_path / 'r.json'}")
    line = refused("evaluate", "knn", *given)
    assert "12 of 12 videos" in line
    assert "'00000'" in line
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
    corpus: Path, folder: Path, features: Path, tmp_path: Path, refused: Refused,
    damage: str, value: str,
) -> None:  # fmt: skip
    there = shutil.copytree(features, tmp_path / "features")
    if (there / damage).is_file():
        os.truncate(there / damage, 500)
    model = folder / ("cpd18" if damage == "another model" else "cpd10")
    clips = 3 if damage == "another protocol" else 2
    given = (*inputs(model, corpus), f"--features={there}", f"--clips={clips}", "--k=3")
    line = refused("evaluate", "knn", *given, f"--out={tmp_path / 'results.json'}")
    assert str(there) in line
    assert value in line
    assert not (tmp_path / "results.json").exists()


def test_results_in_a_new_folder_and_features_in_the_current_one(
    corpus: Path, folder: Path, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "not" / "yet" / "results.json"
    monkeypatch.chdir(shutil.copytree(features, tmp_path / "features"))
    given = (*inputs(folder / "cpd10", corpus), *SMALL, "--features=.", "--k=3", "--random-baseline")
    main(["-q", "evaluate", "knn", *given, f"--out={out}"])
    assert json.loads(out.read_text())["results"]
    assert (tmp_path / "features-random" / "index.parquet").is_file()


def test_ctrl_c_leaves_no_results_and_keeps_encoded_videos(corpus: Path, folder: Path, tmp_path: Path) -> None:
    out, features = tmp_path / "results.json", tmp_path / "features"
    given = (*inputs(folder / "cpd10", corpus), "--workers=2", "--k=3", f"--features={features}")
    line = command("evaluate", "knn", *given, f"--out={out}", "--clips=100", "--batch-size=10")
    # Its own group, as a terminal gives it, whose every process gets the signal.
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    journal = features / "parts" / "0.jsonl"
    while not (journal.exists() and journal.stat().st_size):
        assert process.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 130, log
    # Not "Traceback": a thread of Python's own may report that a worker closed its pipe.
    assert "/crosspair/" not in log
    assert not out.exists()
    assert not (features / "index.parquet").exists()
    assert journal.read_text().splitlines()


@pytest.mark.parametrize("protocol", ["retrieval", "zeroshot"])
def test_protocols_with_text_refuse_a_network_of_frames(
    corpus: Path, folder: Path, tmp_path: Path, refused: Refused, protocol: str
) -> None:
    given = inputs(f"imagenet:{folder / 'resnet18.pth'}", corpus)
    assert "text" in refused("evaluate", protocol, *given, f"--out={tmp_path / 'results.json'}")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["evaluate", "finetune"])
def test_a_file_with_code_is_refused(corpus: Path, folder: Path, tmp_path: Path, refused: Refused, call: str) -> None:
    source = f"imagenet:{folder / 'code.pth'}"
    given = ["evaluate", "knn", *inputs(source, corpus), f"--out={tmp_path / 'results.json'}"]
    if call == "finetune":
        given = finetuning(corpus, tmp_path / "run", source)
    line = refused(*given)
    assert "code.pth" in line
    assert "posix.system" in line
    assert not any(tmp_path.iterdir())


# --- finetune -----------------------------------------------------------------------------------


def finetuning(manifest: object, run: Path, init: object, *more: str) -> list[object]:
    tiny = [f"{key}={value}" for key, value in TINY.items()]
    return [
        "finetune", "--recipe=laptop-finetune", f"--init={init}", f"--manifest={manifest}",
        f"--run={run}", *more, *tiny, "training.workers=0", "training.batch_size=4",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("init", "more", "value"),
    [
        ("cpd18", (), "video.depth=18"),
        ("imagenet:resnet18.pth", (), "video.depth=18"),
        ("nowhere", (), "nowhere"),
        ("cut", (), "cut/model.safetensors"),
        ("random", ("--labels=0",), "labels.share"),
        ("random", ("--labels=1.5",), "labels.share"),
        ("random", ("--splits=1,2",), "--splits"),
    ],
)
def test_invalid_weights_or_settings(
    corpus: Path, folder: Path, tmp_path: Path, refused: Refused,
    init: str, more: tuple[str, ...], value: str,
) -> None:  # fmt: skip
    kind, _, name = init.rpartition(":")
    source = init if init == "random" else f"{kind}{':' if kind else ''}{folder / name}"
    assert value in refused(*finetuning(corpus, tmp_path / "run", source, *more))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "value"), [(no_labels, "'00000'"), (one_class, "'rising'"), (no_test, "--test-split")]
)
def test_manifest_that_cannot_be_trained_on(
    rendered: Manifest, tmp_path: Path, refused: Refused, change: Callable, value: str
) -> None:
    manifest = write(rendered, "unlearnable", change)
    assert value in refused(*finetuning(manifest, tmp_path / "run", "random"))
    assert not (tmp_path / "run").exists()


def test_run_folder_that_is_a_file(corpus: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "run").write_text("mine")
    assert str(tmp_path / "run") in refused(*finetuning(corpus, tmp_path / "run", "random"))
    assert (tmp_path / "run").read_text() == "mine"
