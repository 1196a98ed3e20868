"""Projection heads: linear, with a hidden layer, dropout, and heads that start as the identity."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crosspair.config import ClipConfig, HeadConfig, TextConfig, VideoConfig
from crosspair.errors import RecipeError
from crosspair.models import CPD, WordAverage
from crosspair.recipes import load_recipe, recipe_hash

WORDS = ["a", "dog", "cat"]
TEXTS = ["a dog", "cat"]


def model(head: HeadConfig, dimensions: int = 32) -> CPD:
    torch.manual_seed(0)
    words = WordAverage(WORDS, torch.randn(len(WORDS), dimensions))
    return CPD(words, ClipConfig(size=32, frames=4), VideoConfig(10, 4), TextConfig(), head)


@pytest.mark.parametrize(
    ("head", "video", "text"),
    [
        (HeadConfig(8, 0), [nn.Linear], [nn.Linear]),
        (HeadConfig(8, 6), [nn.Linear], [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]),
        (HeadConfig(8, 0, video_hidden=6, dropout=0.5), [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear], [nn.Linear]),
    ],
)
def test_layers(head: HeadConfig, video: list[type], text: list[type]) -> None:
    found = model(head)
    for module, layers in ((found.video_head, video), (found.text_head, text)):
        assert [type(layer) for layer in (module if isinstance(module, nn.Sequential) else [module])] == layers
    assert found.encode_text(TEXTS).shape == (2, 8)


def test_dropout_is_for_training_only() -> None:
    network = model(HeadConfig(8, 0, dropout=0.5))
    features = torch.rand(4, 32)
    torch.manual_seed(1)
    kept = F.dropout(features, 0.5)
    torch.manual_seed(1)
    torch.testing.assert_close(network.project_video(features), F.normalize(network.video_head(kept), dim=1))
    network.eval()
    torch.testing.assert_close(network.project_video(features), F.normalize(network.video_head(features), dim=1))


def test_identity_heads_start_as_the_original_space(tmp_path: Path) -> None:
    network = model(HeadConfig(projection="identity")).eval()
    assert network.head.embedding == 32
    features = torch.rand(4, 32)
    torch.testing.assert_close(network.project_video(features), F.normalize(features, dim=1))
    torch.testing.assert_close(network.encode_text(TEXTS), F.normalize(network.text_encoder(TEXTS), dim=1))
    network.save_pretrained(tmp_path / "model")
    assert CPD.from_pretrained(tmp_path / "model").hash == network.hash


def test_interpolation() -> None:
    network = model(HeadConfig(projection="identity")).eval()
    with torch.no_grad():
        for head in (network.video_head, network.text_head):
            head.weight.copy_(torch.randn(32, 32))
            head.bias.copy_(torch.randn(32))
    trained = {name: value.clone() for name, value in network.state_dict().items()}
    features = torch.rand(4, 32)
    for weight in (0.0, 0.25, 1.0):
        mixed = features + weight * (network.video_head(features) - features)  # linear in the weights
        with network.interpolated(weight):
            torch.testing.assert_close(network.project_video(features), F.normalize(mixed, dim=1))
        assert all(torch.equal(trained[name], value) for name, value in network.state_dict().items())


def test_invalid_heads() -> None:
    with pytest.raises(RecipeError, match=r"head\.projection"):
        model(HeadConfig(projection="identity"), dimensions=31)
    for field, value in (("interpolation", 0.5), ("dropout", 1.0), ("video_hidden", -1), ("hidden", 2**17)):
        with pytest.raises(RecipeError, match=f"head.{field}"):
            HeadConfig(**{field: value})


def test_settings_without_effect() -> None:
    for field, value in (("dropout", 0.5), ("video_hidden", 8)):
        with pytest.raises(RecipeError, match=f"head.{field}"):
            HeadConfig(projection="identity", **{field: value})


def test_new_settings_change_no_hash_by_default() -> None:
    assert recipe_hash(load_recipe("laptop")) == recipe_hash(load_recipe("laptop", ["head.dropout=0.0"]))
    assert recipe_hash(load_recipe("laptop")) != recipe_hash(load_recipe("laptop", ["head.dropout=0.1"]))
