"""Exported files: the same outputs as the model for inputs of any shape, or no file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from crosspair.config import FinetuneRecipe
from crosspair.errors import ModelError
from crosspair.models import CPD, Classifier, WordAverage, build_model, load_model
from crosspair.models import export as module
from crosspair.models.export import TOLERANCE, export
from crosspair.models.text import TextTower
from crosspair.recipes import make_recipe, recipe_of
from tests.models.conftest import write_pretrained

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {"video.depth": 10, "video.width": 4, "clip.size": 48, "clip.frames": 2}
HEAD = {"head.embedding": 6, "head.hidden": 8}
TEXTS = ["the cat is playing", "a dog", "nothing that is known"]


def with_words(**settings: object) -> CPD:
    recipe = recipe_of({**TINY, **HEAD, **settings})
    torch.manual_seed(0)
    words = WordAverage(["dog", "cat", "playing"], torch.randn(3, 5))
    return CPD(words, recipe.clip, recipe.video, recipe.text, recipe.head).eval()


def clips(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def outputs(file: Path, *given: torch.Tensor) -> dict[str, torch.Tensor]:
    """Run a file with ONNX Runtime."""
    session = onnxruntime.InferenceSession(file)
    names = [each.name for each in session.get_inputs()]
    found = session.run(None, {n: g.numpy() for n, g in zip(names, given, strict=True)})
    names = [each.name for each in session.get_outputs()]
    return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 1e-3
    assert float((found - expected).abs().max() / expected.abs().max()) < TOLERANCE


# --- ONNX ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[CPD, Path, list[module.ExportedFile]]:
    folder = tmp_path_factory.mktemp("exported")
    model = with_words(**{"video.shortcut": "A"})
    return model, folder, export(model, folder / "model.onnx")


@pytest.mark.parametrize("shape", [(1, 3, 1, 33, 33), (3, 3, 7, 64, 41)])
@torch.no_grad()
def test_video_tower_for_any_shape(exported, shape) -> None:
    model, folder, _ = exported
    found = outputs(folder / "model.onnx", clips(*shape))
    visual, embedding = model.encode_video(clips(*shape))
    assert list(found) == ["visual_feature", "video_embedding"]
    near(found["visual_feature"], visual)
    near(found["video_embedding"], embedding)


@torch.no_grad()
def test_text_tower_of_word_vectors(exported) -> None:
    model, folder, _ = exported
    ids = torch.tensor([[1, 2, 0], [0, 0, 0], [2, 2, 2]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    found = outputs(folder / "model.text.onnx", ids, mask)
    near(found["text_embedding"], model.encode_text(TEXTS))


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("clip", ["clips uint8 (B, 3, T, 32, 32)", "ids int64 (B, L)", "mask int64 (B, L)"]),
        ("siglip", ["clips uint8 (B, 3, T, 32, 32)", "ids int64 (B, 16)"]),
        ("dinov2", ["clips uint8 (B, 3, T, 32, 32)"]),
        ("videomae", ["clips uint8 (B, 3, 4, 32, 32)"]),
    ],
)
@torch.no_grad()
def test_pretrained_encoders(tmp_path: Path, kind: str, inputs: list[str]) -> None:
    model = CPD.from_pretrained(write_pretrained(tmp_path / kind, kind))
    files = export(model, tmp_path / "model.onnx")
    assert [name for file in files for name in file.inputs] == inputs
    given = clips(3, 3, 4 if kind == "videomae" else 5, 32, 32)
    found = outputs(tmp_path / "model.onnx", given)
    for name, expected in zip(("visual_feature", "video_embedding"), model.encode_video(given), strict=True):
        near(found[name], expected)
    if not model.untrained:
        assert isinstance(model.text_encoder, TextTower)
        texts = ["a cat is playing with the ball", "a dog", "the person"]
        found = outputs(tmp_path / "model.text.onnx", *model.text_encoder.tokenize(texts))
        near(found["text_embedding"], model.encode_text(texts))


def test_description_of_exported_files(exported) -> None:
    model, folder, (video, text) = exported
    assert (video.path, text.path) == (folder / "model.onnx", folder / "model.text.onnx")
    assert video.inputs == ["clips uint8 (B, 3, T, H, W)"]
    assert video.outputs == ["visual_feature float32 (B, 32)", "video_embedding float32 (B, 6)"]
    assert text.inputs == ["ids int64 (B, L)", "mask int64 (B, L)"]
    assert list(video.differences) == [
        f"{name} of {form}"
        for form in ("2 × 3 × 3 × 64 × 80", "1 × 3 × 2 × 48 × 48")
        for name in ("visual_feature", "video_embedding")
    ]
    assert all(0 <= value <= TOLERANCE for value in video.differences.values())
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.text.onnx"]
    metadata = onnxruntime.InferenceSession(folder / "model.onnx").get_modelmeta()
    about = json.loads(metadata.custom_metadata_map["crosspair"])
    assert about["model"] == model.hash
    assert about["preprocessing"]["frames"] == 2
    assert about["preprocessing"]["short_side"] == 55


@torch.no_grad()
def test_classifier(tmp_path: Path) -> None:
    recipe = make_recipe(FinetuneRecipe, TINY)
    torch.manual_seed(0)
    model = Classifier(["über", "b"], recipe.clip, recipe.video, recipe.classifier).eval()
    model.fc.weight.normal_()
    model.save_pretrained(tmp_path / "model")
    (file,) = export(load_model(tmp_path / "model"), tmp_path / "classes.onnx")
    assert file.outputs == ["logits float32 (B, 2)"]
    near(outputs(file.path, clips(2, 3, 3, 40, 40))["logits"], model(clips(2, 3, 3, 40, 40)))
    metadata = onnxruntime.InferenceSession(file.path).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["crosspair"])["classes"] == ["über", "b"]


# --- torch.export -------------------------------------------------------------------------------


@torch.no_grad()
def test_exported_program(tmp_path: Path) -> None:
    model = with_words()
    video, text = export(model, tmp_path / "model.pt2", "torch")
    extra = {"crosspair": ""}
    program = torch.export.load(video.path, extra_files=extra).module()
    given = clips(3, 3, 5, 41, 64)
    for found, expected in zip(program(given), model.encode_video(given), strict=True):
        near(found, expected)
    assert json.loads(extra["crosspair"])["preprocessing"]["mean"] == 0.45
    words = torch.export.load(text.path).module()
    ids, mask = model.text_encoder.tokenize(TEXTS)
    assert ids.tolist() == [[1, 2], [0, 0], [0, 0]]
    assert mask.tolist() == [[1, 1], [1, 0], [0, 0]]
    near(words(ids, mask)[0], model.encode_text(TEXTS))


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_text_tower_of_a_language_model(language_model: Path, tmp_path: Path, suffix: str) -> None:
    chosen = {"text.encoder": "transformer", "text.source": str(language_model)}
    torch.manual_seed(0)
    model = build_model(recipe_of({**TINY, **HEAD, **chosen}), []).eval()
    _, text = export(model, tmp_path / f"model{suffix}", "onnx" if suffix == ".onnx" else "torch")
    inputs = model.text_encoder.tokenize(TEXTS)
    if suffix == ".onnx":
        found = outputs(text.path, *inputs)["text_embedding"]
    else:
        (found,) = torch.export.load(text.path).module()(*inputs)
    near(found, model.encode_text(TEXTS))


# --- files that are not written ------------------------------------------------------------------


@torch.no_grad()
def test_untrained_parts_are_not_exported(tmp_path: Path) -> None:
    model = with_words()
    model.untrained = ("video_head", "text_encoder", "text_head")
    (file,) = export(model, tmp_path / "model.pt2", "torch")
    assert file.outputs == ["visual_feature float32 (B, 32)"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_file_with_other_outputs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    load = module._load_program

    def other(content: bytes):
        run = load(content)
        return lambda given: tuple(wrong * each for each in run(given))

    monkeypatch.setattr(module, "_load_program", other)
    with pytest.raises(ModelError, match=rf"{tmp_path}/model.pt2 .*visual_feature"):
        export(with_words(), tmp_path / "model.pt2", "torch")
    assert not list(tmp_path.iterdir())


def test_text_tower_that_fails_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program = module._to_program

    def fails(for_input: str):
        def make(tower, about):
            if for_input in tower.axes:
                raise RuntimeError("no such operator\nmore on this")
            return program(tower, about)

        return make

    monkeypatch.setattr(module, "_to_program", fails("ids"))
    (file,) = export(with_words(), tmp_path / "model.pt2", "torch")
    assert file.path == tmp_path / "model.pt2"
    assert f"{tmp_path}/model.text.pt2" in caplog.messages[-1]
    assert "no such operator" in caplog.messages[-1]
    file.path.unlink()
    monkeypatch.setattr(module, "_to_program", fails("clips"))
    with pytest.raises(ModelError, match=r"model.pt2 .*no such operator"):
        export(with_words(), tmp_path / "model.pt2", "torch")
    assert not list(tmp_path.iterdir())
