"""CPD, the classifier and the frame-average network: their outputs, and initial weights."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from crosspair.config import ClipConfig, FinetuneRecipe
from crosspair.errors import ModelError
from crosspair.models import (
    CPD,
    Classifier,
    FrameAverageModel,
    WordAverage,
    build_model,
    load_frozen_model,
    load_imagenet_model,
    load_init_weights,
    load_pretrained_towers,
)
from crosspair.models.cpd import PARTS
from crosspair.recipes import make_recipe, recipe_of
from crosspair.video.pixels import normalize
from tests.models.slowonly import features2d, resnet2d, saved

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["a dog is playing", "the cat", "a ball and nothing else"]
CLASSES = ["dancing", "diving", "digging"]
VIDEO = {"video.depth": 10, "video.width": 4, "clip.size": 32}
HEADS = {"head.embedding": 6, "head.hidden": 8}
WORDS = ("dog", "cat")


def cpd(seed: int = 0, words: tuple[str, ...] = WORDS, **settings: object) -> CPD:
    recipe = recipe_of({**VIDEO, **HEADS, **settings})
    torch.manual_seed(seed)
    encoder = WordAverage(words, torch.randn(len(words), 5))
    return CPD(encoder, recipe.clip, recipe.video, recipe.text, recipe.head).eval()


def with_language_model(source: Path, seed: int) -> CPD:
    chosen = {"text.encoder": "transformer", "text.source": str(source), "text.max_tokens": 9}
    torch.manual_seed(seed)
    model = build_model(recipe_of({**VIDEO, **HEADS, **chosen}), [])
    with torch.no_grad():
        for values in model.text_encoder.parameters():
            values += seed
    return model


def classifier(classes: list[str] = CLASSES, **settings: object) -> Classifier:
    recipe = make_recipe(FinetuneRecipe, {**VIDEO, **settings})
    torch.manual_seed(0)
    return Classifier(classes, recipe.clip, recipe.video, recipe.classifier)


def clips(frames: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 3, frames, 32, 32), dtype=torch.uint8, generator=generator)


def same_parts(model: CPD, other: CPD) -> list[str]:
    """The parts whose weights are the same."""
    return [
        part
        for part in PARTS
        if {n: v.tolist() for n, v in getattr(model, part).state_dict().items()}
        == {n: v.tolist() for n, v in getattr(other, part).state_dict().items()}
    ]


# --- CPD ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_both_towers_return_unit_vectors() -> None:
    model = cpd()
    features, video = model.encode_video(clips())
    text = model.encode_text(TEXTS)
    assert features.shape == (3, 32)
    assert video.shape == text.shape == (3, 6)
    for embedding in (video, text):
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))
    together = model(clips(), TEXTS)
    assert torch.equal(together[0], video)
    assert torch.equal(together[1], text)


@torch.no_grad()
def test_heads_compute_in_float32() -> None:
    model = cpd()
    text = model.encode_text(TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, video = model.encode_video(clips())
        assert torch.equal(model.encode_text(TEXTS), text)
    assert features.dtype == torch.float32
    assert torch.equal(video, nn.functional.normalize(model.video_head(features), dim=1))


@torch.no_grad()
def test_forms_of_the_same_clip() -> None:
    model = cpd()
    expected = model.encode_video(clips())
    for form in (normalize(clips()), clips().contiguous(memory_format=torch.channels_last_3d)):
        torch.testing.assert_close(model.encode_video(form), expected)


@torch.no_grad()
def test_any_number_of_frames_and_any_size() -> None:
    model = cpd()
    assert model.encode_video(clips()[:, :, :, :24, :])[0].shape == (3, 32)
    # A still clip, long enough that its borders in time weigh little, is about as its first half.
    still = clips(1).expand(3, 3, 16, 32, 32)
    longer, shorter = (model.encode_video(still[:, :, :n])[1] for n in (16, 8))
    assert (longer * shorter).sum(dim=1).min() > 0.95


# --- the classifier -----------------------------------------------------------------------------


@torch.no_grad()
def test_logits_are_linear_in_the_visual_feature_in_float32() -> None:
    model = classifier().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(clips())
        features = model.video_encoder((clips().float() / 255 - 0.45) / 0.225)
    assert logits.dtype == torch.float32
    expected = features @ model.fc.weight.T + model.fc.bias
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-2)
    uniform = torch.full((3, 3), 1 / 3)  # almost, of an untrained layer
    torch.testing.assert_close(logits.softmax(dim=1), uniform, atol=0.1, rtol=0)


def test_dropout_only_in_training() -> None:
    model = classifier(**{"classifier.dropout": 0.5}).train()
    for module in model.video_encoder.modules():
        module.eval()
    assert not torch.equal(model(clips()), model(clips()))
    model.eval()
    assert torch.equal(model(clips()), model(clips()))


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_normalisation_does_not_change(frozen: bool) -> None:
    model = classifier(**{"classifier.frozen_norm": frozen}).eval().train()
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


# --- the frame-average network ------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "frames"), [(18, 1), (50, 5)])
@torch.no_grad()
def test_features_are_the_mean_over_frames(depth: int, frames: int, tmp_path: Path) -> None:
    weights = resnet2d(depth)
    model = load_imagenet_model(saved(weights, tmp_path / "w.pth"), ClipConfig(size=32))
    clip = torch.randint(0, 256, (1, 3, frames, 64, 64), dtype=torch.uint8)
    each = features2d(weights, depth, clip[0].transpose(0, 1) / 255)  # (T, F)
    expected = each.mean(dim=0, keepdim=True)
    assert each.std() > 0.01
    visual, embedding = model.encode_video(clip)
    torch.testing.assert_close(visual, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))
    assert embedding.shape == (1, 256)


def test_load_frozen_model(tmp_path: Path) -> None:
    file = saved(resnet2d(10), tmp_path / "w.safetensors")
    before = torch.get_rng_state()
    model = load_frozen_model(f"imagenet:{file}")
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(model, FrameAverageModel)
    assert (model.clip, model.training) == (ClipConfig(size=224), False)
    assert model.hash == load_imagenet_model(file).hash
    with pytest.raises(ModelError, match=f"{tmp_path}/model"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


# --- initial weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [CLASSES, ["a", "b", "c"]])
def test_initial_weights_of_a_classifier(tmp_path: Path, classes: list[str]) -> None:
    trained = classifier()
    nn.init.normal_(trained.fc.weight)
    trained.save_pretrained(tmp_path / "model")
    init = load_init_weights(str(tmp_path / "model"))
    assert init.name == f"classifier {trained.hash}"
    model = classifier(classes)
    nn.init.zeros_(model.video_encoder.stem[0].weight)
    init.load_into(model)
    assert torch.equal(model.fc.weight, trained.fc.weight) == (classes == CLASSES)
    assert torch.equal(model.video_encoder.stem[0].weight, trained.video_encoder.stem[0].weight)


def test_initial_weights_of_cpd(tmp_path: Path) -> None:
    before, model = cpd(1), classifier()
    before.save_pretrained(tmp_path / "model")
    layer = model.fc.weight.clone()
    init = load_init_weights(str(tmp_path / "model"))
    assert init.name == f"CPD {before.hash}"
    init.load_into(model)
    for name, values in before.video_encoder.state_dict().items():
        assert torch.equal(model.video_encoder.state_dict()[name], values), name
    assert torch.equal(model.fc.weight, layer)
    with pytest.raises(ModelError, match=rf"{init.name} .*video.depth=10 video.width=4"):
        init.load_into(classifier(**{"video.depth": 18, "video.width": 8}))


@pytest.mark.parametrize("source", ["{}/none", "imagenet:{}/none.pth"])
def test_missing_weights(tmp_path: Path, source: str) -> None:
    for load in (load_init_weights, load_frozen_model):
        with pytest.raises(ModelError, match=f"{tmp_path}/none"):
            load(source.format(tmp_path))


@pytest.mark.parametrize(
    ("settings", "words", "loaded"),
    [
        ({}, WORDS, list(PARTS)),
        ({}, ("cat", "dog"), ["video_encoder", "video_head"]),
        ({"head.embedding": 7}, WORDS, ["video_encoder", "text_encoder"]),
        ({"head.hidden": 9}, WORDS, ["video_encoder", "video_head", "text_encoder"]),
    ],
)
def test_matching_parts_are_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict, words: tuple, loaded: list
) -> None:
    other = cpd(1)
    other.save_pretrained(tmp_path / "model")
    model = cpd(2, words, **settings)
    with caplog.at_level(logging.INFO):
        assert load_pretrained_towers(model, str(tmp_path / "model")) == f"CPD {other.hash}"
    assert same_parts(model, other) == loaded
    (message,) = caplog.messages
    assert ", ".join(loaded) in message


def test_untrained_parts_are_not_loaded(tmp_path: Path) -> None:
    other, model = cpd(1), cpd(2)
    other.untrained = ("text_encoder", "text_head")
    other.save_pretrained(tmp_path / "model")
    load_pretrained_towers(model, str(tmp_path / "model"))
    assert same_parts(model, other) == ["video_encoder", "video_head"]


def test_language_model_keeps_its_attention_to_padding(tmp_path: Path, language_model: Path) -> None:
    other = with_language_model(language_model, 1)
    other.text_encoder.attend_to_padding()
    other.text_encoder.max_tokens = 11
    other.save_pretrained(tmp_path / "model")
    model = with_language_model(language_model, 2)
    load_pretrained_towers(model, str(tmp_path / "model"))
    assert same_parts(model, other) == list(PARTS)
    assert model.text_encoder.attends_to_padding
    assert model.text_encoder.max_tokens == 9
    words = cpd(3)
    load_pretrained_towers(words, str(tmp_path / "model"))
    assert same_parts(words, other) == ["video_encoder", "video_head"]


def test_video_encoder_of_a_classifier_and_of_a_2d_network(tmp_path: Path) -> None:
    trained, model = classifier(), cpd(2)
    trained.save_pretrained(tmp_path / "model")
    assert load_pretrained_towers(model, str(tmp_path / "model")) == f"classifier {trained.hash}"
    assert torch.equal(model.video_encoder.stem[0].weight, trained.video_encoder.stem[0].weight)
    name = load_pretrained_towers(model, f"imagenet:{saved(resnet2d(10), tmp_path / 'w.pth')}")
    assert name.startswith("ImageNet ")
    assert not torch.equal(model.video_encoder.stem[0].weight, trained.video_encoder.stem[0].weight)
