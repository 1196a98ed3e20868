"""The classifier: a new layer on the encoder, what it begins with, and its folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from crosspair.config import ClassifierConfig, FinetuneRecipe
from crosspair.errors import ModelError
from crosspair.models import CPD, Classifier, WordAverage, load_init_weights
from crosspair.recipes import make_recipe, recipe_of

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ["dancing", "diving", "digging"]
TINY = {"video.depth": 10, "video.width": 4, "clip.size": 32}


def tiny(classes: list[str] = CLASSES, **settings: object) -> Classifier:
    recipe = make_recipe(FinetuneRecipe, {**TINY, **settings})
    torch.manual_seed(0)
    return Classifier(classes, recipe.clip, recipe.video, recipe.classifier)


def pretrained(folder: Path) -> CPD:
    recipe = recipe_of({**TINY, "head.embedding": 8, "head.hidden": 8})
    torch.manual_seed(1)
    words = WordAverage(["dog"], torch.randn(1, 6))
    model = CPD(words, recipe.clip, recipe.video, recipe.text, recipe.head)
    model.save_pretrained(folder)
    return model


def clips(count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, 4, 32, 32), dtype=torch.uint8, generator=generator)


# --- the network --------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_are_a_layer_on_the_visual_feature_in_float32() -> None:
    model = tiny().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(clips())
        features = model.video_encoder((clips().float() / 255 - 0.45) / 0.225)
    assert logits.shape == (3, 3)
    assert logits.dtype == torch.float32
    expected = features @ model.fc.weight.T + model.fc.bias
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-2)


def test_a_new_layer_finds_all_classes_about_as_likely() -> None:
    with torch.no_grad():
        probabilities = tiny().eval()(clips()).softmax(dim=1)
    torch.testing.assert_close(probabilities, torch.full((3, 3), 1 / 3), atol=0.1, rtol=0)


def test_dropout_is_of_training_alone() -> None:
    model = tiny(**{"classifier.dropout": 0.5}).train()
    for module in model.video_encoder.modules():
        module.eval()
    torch.manual_seed(0)
    assert not torch.equal(model(clips()), model(clips()))
    model.eval()
    assert torch.equal(model(clips()), model(clips()))


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_normalisation_does_not_move(frozen: bool) -> None:
    model = tiny(**{"classifier.frozen_norm": frozen}).eval().train()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(moving, lr=0.1, weight_decay=0.1)
    model(clips()).square().sum().backward()
    optimizer.step()
    norms = {
        f"{name}.{key}"
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm3d)
        for key in module.state_dict()
    }
    moved = {name for name, values in model.state_dict().items() if values.ne(before[name]).any()}
    assert {"fc.weight", "fc.bias", "video_encoder.stem.0.weight"} <= moved
    assert moved & norms == (set() if frozen else norms)


# --- what it begins with ------------------------------------------------------------------------


def test_a_pretrained_encoder_gets_a_new_layer(tmp_path: Path) -> None:
    before, model = pretrained(tmp_path / "model"), tiny()
    layer = model.fc.weight.clone()
    start = load_init_weights(str(tmp_path / "model"))
    assert start.name == f"CPD {before.hash}"
    start.begin(model)
    for name, values in before.video_encoder.state_dict().items():
        assert torch.equal(model.video_encoder.state_dict()[name], values), name
    assert torch.equal(model.fc.weight, layer)


@pytest.mark.parametrize("same", [True, False])
def test_a_classifier_keeps_its_layer_for_the_same_classes(tmp_path: Path, same: bool) -> None:
    trained = tiny()
    nn.init.normal_(trained.fc.weight)
    trained.save_pretrained(tmp_path / "model")
    start = load_init_weights(str(tmp_path / "model"))
    assert start.name == f"classifier {trained.hash}"
    model = tiny(CLASSES if same else ["a", "b", "c"])
    start.begin(model)
    assert torch.equal(model.fc.weight, trained.fc.weight) == same
    assert torch.equal(model.video_encoder.stem[0].weight, trained.video_encoder.stem[0].weight)


def test_random_weights_are_those_that_were_drawn() -> None:
    model, same = tiny(), tiny()
    load_init_weights("random").begin(model)
    for name, values in same.state_dict().items():
        assert torch.equal(model.state_dict()[name], values)


def test_another_architecture_is_told_with_what_to_give(tmp_path: Path) -> None:
    start = read_start_of(tmp_path)
    message = (
        rf"^the weights of {start.name} have video.depth 10 \(the recipe: 18\), video.width 4 "
        r"\(the recipe: 8\); give video.depth=10 video.width=4$"
    )
    with pytest.raises(ModelError, match=message):
        start.begin(tiny(**{"video.depth": 18, "video.width": 8}))


def read_start_of(folder: Path):
    pretrained(folder / "model")
    return load_init_weights(str(folder / "model"))


def test_weights_that_are_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"^model folder {tmp_path}/none does not exist$"):
        load_init_weights(str(tmp_path / "none"))
    with pytest.raises(ModelError, match=f"^weights {tmp_path}/none.pth: no such file$"):
        load_init_weights(f"imagenet:{tmp_path}/none.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"a section is missing \('video'\)$"), ({"video": 3}, r"a section is missing \("),
        ({"video": {"depth": 11}}, "video.depth"),
    ],
)  # fmt: skip
def test_a_folder_whose_architecture_is_not_told(
    tmp_path: Path, content: dict, message: str
) -> None:
    pretrained(tmp_path / "model")
    config = {"model_type": "crosspair-cpd", **content}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"config\.json: .*{message}"):
        load_init_weights(str(tmp_path / "model"))


# --- folders ------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_saved_classifier_gives_the_same_bit_for_bit(tmp_path: Path) -> None:
    model = tiny(["über", "b/c"], **{"classifier.frozen_norm": True, "clip.frames": 5}).eval()
    model.save_pretrained(tmp_path / "model")
    again = Classifier.from_pretrained(tmp_path / "model")
    assert not again.training
    assert again.classes == ["über", "b/c"]
    assert again.classifier == ClassifierConfig(frozen_norm=True)
    assert (again.clip, again.video, again.hash) == (model.clip, model.video, model.hash)
    assert torch.equal(again(clips()), model(clips()))
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]


def test_the_two_kinds_of_models_are_not_taken_for_each_other(tmp_path: Path) -> None:
    pretrained(tmp_path / "cpd")
    tiny().save_pretrained(tmp_path / "classifier")
    message = r"holds a pre-trained model \(CPD\); what is needed is a fine-tuned classifier$"
    with pytest.raises(ModelError, match=message):
        Classifier.from_pretrained(tmp_path / "cpd")
    message = r"holds a fine-tuned classifier; what is needed is a pre-trained model \(CPD\)$"
    with pytest.raises(ModelError, match=message):
        CPD.from_pretrained(tmp_path / "classifier")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 3}, r"its classes are no list of names$"),
        ({"classes": [1, 2]}, r"its classes are no list of names$"),
        ({"clip": None}, r"a section is missing \("),
        ({"classifier": {"dropout": 2}}, "classifier.dropout is 2"),
        ({"classes": ["a", "b"]}, "does not fit config.json beside it: size mismatch for fc"),
        ({"video": {"depth": 18}}, "does not fit config.json beside it: "),
    ],
)
def test_a_configuration_with_a_mistake(tmp_path: Path, change: dict, message: str) -> None:
    tiny().save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ModelError, match=message) as caught:
        Classifier.from_pretrained(tmp_path / "model")
    assert "\n" not in str(caught.value)
    file.write_text(json.dumps({"model_type": "crosspair-classifier"}))
    with pytest.raises(ModelError, match=r"a section is missing \('clip'\)$"):
        Classifier.from_pretrained(tmp_path / "model")
