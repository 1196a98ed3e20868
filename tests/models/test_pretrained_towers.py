"""Initialisation of a pre-training: the parts of another model that match."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from crosspair.config import FinetuneRecipe
from crosspair.errors import ModelError
from crosspair.models import CPD, Classifier, WordAverage, build_model, load_pretrained_towers
from crosspair.models.cpd import PARTS
from crosspair.recipes import make_recipe, recipe_of
from tests.models.test_inflate import resnet2d

TINY = {"video.depth": 10, "video.width": 4, "head.embedding": 6, "head.hidden": 8}
WORDS = ("dog", "cat")


def with_words(seed: int, words: tuple[str, ...] = WORDS, **settings: object) -> CPD:
    recipe = recipe_of({**TINY, **settings})
    torch.manual_seed(seed)
    encoder = WordAverage(words, torch.randn(len(words), 5))
    return CPD(encoder, recipe.clip, recipe.video, recipe.text, recipe.head)


def with_language_model(source: Path, seed: int) -> CPD:
    chosen = {"text.encoder": "transformer", "text.source": str(source), "text.max_tokens": 9}
    torch.manual_seed(seed)
    model = build_model(recipe_of({**TINY, **chosen}), [])
    with torch.no_grad():
        for values in model.text_encoder.parameters():
            values += seed
    return model


def same_parts(model: CPD, other: CPD) -> list[str]:
    """The parts whose weights are the same."""
    return [
        part
        for part in PARTS
        if {n: v.tolist() for n, v in getattr(model, part).state_dict().items()}
        == {n: v.tolist() for n, v in getattr(other, part).state_dict().items()}
    ]


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
    other = with_words(1)
    other.save_pretrained(tmp_path / "model")
    model = with_words(2, words, **settings)
    with caplog.at_level(logging.INFO):
        assert load_pretrained_towers(model, str(tmp_path / "model")) == f"CPD {other.hash}"
    assert same_parts(model, other) == loaded
    (message,) = caplog.messages
    assert f"CPD {other.hash}" in message
    assert ", ".join(loaded) in message


def test_untrained_parts_are_not_loaded(tmp_path: Path) -> None:
    other = with_words(1)
    other.untrained = ("text_encoder", "text_head")
    other.save_pretrained(tmp_path / "model")
    model = with_words(2)
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
    words = with_words(3)
    load_pretrained_towers(words, str(tmp_path / "model"))
    assert same_parts(words, other) == ["video_encoder", "video_head"]


def test_video_encoder_of_a_classifier_and_of_a_2d_network(tmp_path: Path) -> None:
    recipe = make_recipe(FinetuneRecipe, {"video.depth": 10, "video.width": 4})
    classifier = Classifier(["a", "b"], recipe.clip, recipe.video, recipe.classifier)
    classifier.save_pretrained(tmp_path / "model")
    torch.save(resnet2d(10), tmp_path / "w.pth")
    model = with_words(2)
    name = load_pretrained_towers(model, str(tmp_path / "model"))
    assert name == f"classifier {classifier.hash}"
    kernel = model.video_encoder.stem[0].weight
    assert torch.equal(kernel, classifier.video_encoder.stem[0].weight)
    assert load_pretrained_towers(model, f"imagenet:{tmp_path / 'w.pth'}").startswith("ImageNet ")
    assert not torch.equal(kernel, classifier.video_encoder.stem[0].weight)


def test_random_initialisation_changes_nothing() -> None:
    model, same = with_words(2), with_words(2)
    assert load_pretrained_towers(model, "random") == "random"
    assert same_parts(model, same) == list(PARTS)


def test_another_video_encoder_is_refused(tmp_path: Path) -> None:
    other = with_words(1, **{"video.shortcut": "A"})
    other.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=rf"CPD {other.hash} .*video.shortcut=A"):
        load_pretrained_towers(with_words(2), str(tmp_path / "model"))
