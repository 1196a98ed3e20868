"""Model cards: metadata, training and results, as far as available."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from crosspair.config import FinetuneRecipe
from crosspair.errors import ModelError
from crosspair.evaluation import Result
from crosspair.models import CPD, Classifier, WordAverage
from crosspair.models.hub import write_card
from crosspair.recipes import make_recipe, recipe_of

TINY = {"video.depth": 10, "video.width": 4, "clip.size": 32, "clip.stride": 7}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in its run's folder."""
    recipe = recipe_of({**TINY, "head.embedding": 6, "head.hidden": 8})
    words = WordAverage(["dog"], torch.randn(1, 5))
    model = CPD(words, recipe.clip, recipe.video, recipe.text, recipe.head)
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("clip:\n  size: 32\n")
    (run / "manifest.json").write_text('{"manifest": "0123456789ab", "init": "random"}\n')
    (run / "metrics.jsonl").write_text('{"kind": "pairs", "train": 1234, "val": 9}\n{"kind": "x"}\n')
    model.save_pretrained(run / "model")
    return run / "model"


def card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def front(folder: Path) -> dict:
    """The metadata that the Hub reads."""
    _, head, _ = card(folder).split("---\n", 2)
    return yaml.safe_load(head)


def test_card_of_a_run(folder: Path) -> None:
    assert front(folder) == {
        "license": "unknown",
        "library_name": "crosspair",
        "pipeline_tag": "feature-extraction",
        "tags": ["video", "crosspair", "cross-modal-pair-discrimination"],
    }
    for text in (
        "# CPD: slow-only 3D ResNet-10\n", "CPD.from_pretrained(", "| frames | 8, 7/30 s apart |",
        "| size | short side 37, crop 32 × 32 pixels |", "| manifest | 0123456789ab |",
        "| init | random |", "| training pairs | 1,234 |", "clip:\n  size: 32\n",
        "## Licence\n\nUnknown",
    ):  # fmt: skip
        assert text in card(folder), text
    assert "## Results" not in card(folder)
    assert "untrained" not in card(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", b"[1, 2]"), ("recipe.yaml", b"# caf\xe9"), ("metrics.jsonl", b"[1]\n"),
        ("metrics.jsonl", b'{"kind": "pairs", "step": 3}\n'),
    ],
)  # fmt: skip
def test_foreign_files_next_to_the_model_are_ignored(folder: Path, name: str, content: bytes) -> None:
    (folder.parent / name).write_bytes(content)
    CPD.from_pretrained(folder).save_pretrained(folder)
    assert "# CPD: slow-only 3D ResNet-10\n" in card(folder)


def test_results_licence_and_data(folder: Path) -> None:
    results = [
        Result("kNN", "top-1", 0.5, "trained", feature="visual", count=9),
        Result("kNN", "top-1", 0.1, "chance", feature="visual", count=9),
        Result("retrieval|text", "median rank", 12.5, "trained", split="val", count=9),
    ]
    path = write_card(folder, results=results, license="apache-2.0", data="clips of\nmy dog")
    assert path == folder / "README.md"
    assert front(folder)["license"] == "apache-2.0"
    (index,) = front(folder)["model-index"]
    found = {
        (metric["name"], metric["type"], metric["value"], result["dataset"]["name"])
        for result in index["results"]
        for metric in result["metrics"]
    }
    assert found == {
        ("kNN visual", "top-1", 0.5, "test"), ("retrieval|text", "median rank", 12.5, "val")
    }  # fmt: skip
    for text in (
        "| protocol | feature | split | metric | trained | chance |\n",
        "| kNN | visual | test | top-1 | 50.0 % | 10.0 % |\n",
        "| retrieval\\|text |  | val | median rank | 12.5 |  |\n",
        "| data | clips of my dog |\n", "## Licence\n\napache-2.0\n",
    ):  # fmt: skip
        assert text in card(folder), text


def test_card_of_a_classifier(tmp_path: Path) -> None:
    recipe = make_recipe(FinetuneRecipe, TINY)
    model = Classifier(["a", "b"], recipe.clip, recipe.video, recipe.classifier)
    model.save_pretrained(tmp_path / "model")
    assert front(tmp_path / "model")["pipeline_tag"] == "video-classification"
    for text in ("Classifier.from_pretrained(", "| classes | 2, see config.json |"):
        assert text in card(tmp_path / "model")


def test_untrained_parts_are_listed(folder: Path) -> None:
    model = CPD.from_pretrained(folder)
    model.untrained = ("text_encoder", "text_head")
    model.save_pretrained(folder)
    assert "| untrained | text encoder, text head |" in card(folder)
    assert "mean of word vectors" not in card(folder)


def test_folder_of_an_earlier_version(folder: Path) -> None:
    before = card(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["preprocessing"], config["untrained"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").unlink()
    write_card(folder)
    assert card(folder) == before


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"{tmp_path}.*config\.json"):
        write_card(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "crosspair-cpd"}')
    with pytest.raises(ModelError, match=r"config\.json.*clip"):
        write_card(tmp_path)
    assert not (tmp_path / "README.md").exists()
