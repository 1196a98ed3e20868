"""End-to-end runs of import-weights, pretrain from imported weights, export and report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from crosspair.evaluation import Result, provenance, write_results
from crosspair.models import CPD
from tests.e2e.conftest import crosspair, pretrain_arguments, refused
from tests.models import conftest as models_conftest
from tests.models.slowonly import authors, pyslowfast, slow_only
from tests.models.test_inflate import Code
from tests.reporting.ablations import write_ablation

language_model = models_conftest.language_model
A10 = ("video.depth=10", "video.width=4", "video.shortcut=A")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, language_model) -> Path:
    """A checkpoint of the authors' training code."""
    file = tmp_path_factory.mktemp("authors") / "cpd.pth"
    torch.save(authors(10, 4, language_model, pairs=300), file)
    return file


@pytest.fixture(scope="module")
def imported(checkpoint, tmp_path_factory, language_model) -> Path:
    """The imported model folder with both towers."""
    out = tmp_path_factory.mktemp("imported") / "model"
    done = crosspair("import-weights", checkpoint, "--out", out, "--tokenizer", language_model)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "the authors' code: ResNet-10, width 4, shortcut A; clips of 8 frames, 4/30 s apart, 224 px",
        done.stdout.splitlines()[1],
        f"model: {out}",
        f"use: --init {out} {' '.join(A10)}",
    ]
    assert done.stdout.splitlines()[1].startswith("skipped: ")
    assert "300 pairs" in done.stdout
    return out


def test_import_of_both_towers(imported) -> None:
    model = CPD.from_pretrained(imported)
    assert model.untrained == ()
    card = (imported / "README.md").read_text()
    assert "| data | weights of the authors' code, from cpd.pth; its licence applies |" in card


def test_import_of_the_video_tower(checkpoint, tmp_path) -> None:
    done = crosspair("import-weights", checkpoint, "--out", tmp_path / "model", "clip.frames=16")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "clips of 16 frames" in lines[0]
    assert lines[2].startswith("skipped: the text tower: ")
    assert lines[3] == "untrained: text_encoder, text_head"


def test_pretraining_from_an_imported_model(rendered, imported, tmp_path) -> None:
    run = tmp_path / "run"
    given = pretrain_arguments(rendered.path, run, f"--init={imported}", "training.epochs=1", *A10)
    done = crosspair(*given)
    assert done.returncode == 0, done.stderr
    model = CPD.from_pretrained(imported)
    log = " ".join(re.sub(r"\d\d:\d\d:\d\d", "", done.stderr).split())
    assert f"CPD {model.hash}: video_encoder; random: video_head, text_encoder" in log
    assert json.loads((run / "manifest.json").read_text())["init"] == f"CPD {model.hash}"
    again = crosspair(*given, "--resume")
    assert again.returncode == 0, again.stderr
    without = [each for each in given if not str(each).startswith("--init")]
    done = crosspair(*without, "--resume")
    assert done.returncode == 2
    line = " ".join(done.stderr.split())
    for text in (str(run), f"CPD {model.hash}", "random"):
        assert text in line


def test_resume_of_a_run_of_an_earlier_version(rendered, tmp_path) -> None:
    run = tmp_path / "run"
    given = pretrain_arguments(rendered.path, run, "training.epochs=1")
    assert crosspair(*given).returncode == 0
    origin = json.loads((run / "manifest.json").read_text())
    assert origin.pop("init") == "random"
    (run / "manifest.json").write_text(json.dumps(origin))
    done = crosspair(*given, "--resume")
    assert done.returncode == 0, done.stderr


def test_export(imported, tmp_path) -> None:
    # At its own 224 × 224 a test would take long.
    config = json.loads((imported / "config.json").read_text())
    config["clip"].update(size=40, frames=2)
    model = tmp_path / "model"
    CPD.from_pretrained(imported).save_pretrained(model)
    (model / "config.json").write_text(json.dumps(config))
    out = tmp_path / "m.pt2"
    done = crosspair("export", "--model", model, "--out", out, "--format", "torch")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(rf"{out}: \d+\.\d MiB", lines[0])
    assert lines[1:3] == [
        "  inputs   clips uint8 (B, 3, T, H, W)",
        "  outputs  visual_feature float32 (B, 32), video_embedding float32 (B, 6)",
    ]
    checks = [line for line in lines if "maximum difference" in line]
    assert len(checks) == 6
    assert all(line.endswith("(tolerance 1e-04)") for line in checks)
    assert lines[-1] == f"token ids and mask: from the tokenizer in language_model/ of {model}"
    assert out.exists()
    assert out.with_suffix(".text.pt2").exists()


def test_publish_with_results(imported, tmp_path) -> None:
    model = CPD.from_pretrained(imported)
    model.save_pretrained(tmp_path / "model")
    result = Result("kNN", "top-1", 0.25, "trained", feature="visual", count=8)
    for name, of in (("results.json", model.hash), ("other.json", "0123456789ab")):
        origin = provenance(recipe="", model=of, manifest="", seed=0)
        write_results(tmp_path / name, [result], origin)
    done = crosspair("export", "--card", "--model", tmp_path / "model", "--license", "mit")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "model" / "README.md") in done.stdout
    card = (tmp_path / "model" / "README.md").read_text()
    assert "license: mit\n" in card
    assert "| kNN | visual | test | top-1 | 25.0 % |\n" in card
    other = tmp_path / "other.json"
    line = refused("export", "--card", "--model", tmp_path / "model", "--results", other)
    assert all(value in line for value in (str(other), "0123456789ab", model.hash))


def test_errors_are_one_line(tmp_path) -> None:
    torch.save({"state_dict": {"w": Code(tmp_path / "made")}}, tmp_path / "code.pth")
    torch.save({"cfg": "  STRIDE_1X1: True", **pyslowfast(slow_only(18, 4))}, tmp_path / "s.pyth")
    out = tmp_path / "out"
    model = tmp_path / "none"
    for arguments, message in (
        (("import-weights", tmp_path / "code.pth", "--out", out), "code.pth"),
        (("import-weights", tmp_path / "s.pyth", "--out", out), "1×1"),
        (("import-weights", model, "--out", out), str(model)),
        (("export", "--model", model, "--out", out), str(model)),
        (("export", "--card", "--model", tmp_path), str(tmp_path)),
        (("export", "--card", "--model", tmp_path, "--private"), "--private"),
        (("export", "--model", tmp_path), "--out"),
    ):
        assert message in refused(*arguments)
        assert not out.exists()


@pytest.mark.parametrize(
    ("config", "file"), [('{"mine": 1}', "config.json"), ('{"model_type": "crosspair-cpd"}', "README.md")]
)
def test_imported_weights_replace_no_folder_of_another_program(tmp_path, config, file) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "README.md").write_text("mine")
    assert file in refused("import-weights", tmp_path / "none.pth", "--out", tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


# --- report ---


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    result = Result("zero-shot", "top-1", 0.5, "trained", feature="embedding", count=40)
    origin = provenance(recipe="", model="0123456789ab", manifest="ba9876543210", seed=0)
    write_results(tmp_path / "run" / "results.json", [result], origin)
    return tmp_path / "run"


def test_a_report_of_two_runs(tmp_path: Path, evaluated: Path) -> None:
    done = crosspair("report", evaluated, f"again={evaluated}", "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    page = tmp_path / "report" / "report.html"
    assert done.stdout == (f"{page}, report.md, report.csv: 2 values of 2 runs in 1 table\n")
    assert {path.name for path in page.parent.iterdir()} == {
        "report.html", "report.md", "report.csv",
    }  # fmt: skip
    assert page.read_text("utf-8").count("50.0 %") == 2


def test_errors_of_report(tmp_path: Path, evaluated: Path) -> None:
    out = tmp_path / "report"
    assert "'run'" in refused("report", evaluated, evaluated, "--out", out)
    assert f"{tmp_path}" in refused("report", tmp_path, "--out", out)
    (tmp_path / "notes.json").write_text("[]")
    assert "notes.json" in refused("report", evaluated, tmp_path / "notes.json", "--out", out)
    assert not out.exists()
    assert "results.json" in refused("report", evaluated, "--out", evaluated / "results.json")


def test_ablation_report_is_written_to_its_folder(tmp_path: Path, evaluated: Path) -> None:
    folder = tmp_path / "ablation"
    folder.mkdir()
    write_ablation(folder, {"objective": ("one", "other")})
    line = f"{folder} is an ablation"
    assert line in refused("report", folder, evaluated)
    assert line in refused("report", folder, "--out", tmp_path)
    assert "--out" in refused("report", evaluated)
    done = crosspair("report", folder)
    assert done.returncode == 0, done.stderr
    assert str(folder / "report.html") in done.stdout
    assert "other" in (folder / "report.html").read_text("utf-8")
