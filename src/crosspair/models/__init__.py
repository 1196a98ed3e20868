"""The two towers: slow-only 3D ResNet, text encoders, heads."""

from __future__ import annotations

import os
from collections.abc import Sequence

from crosspair.config import Recipe, TextConfig
from crosspair.models.classifier import Classifier
from crosspair.models.cpd import CPD, TextEncoder
from crosspair.models.foreign_resnets import inflate
from crosspair.models.hub import CLASSIFIER_TYPE, CPD_TYPE, local_folder, read_config
from crosspair.models.import_weights import ImportedModel, import_weights
from crosspair.models.init import (
    FrameAverageModel,
    InitWeights,
    load_frozen_model,
    load_imagenet_model,
    load_init_weights,
    load_pretrained_towers,
)
from crosspair.models.resnet3d import ResNet3d
from crosspair.models.text import (
    TransformerAverage,
    WordAverage,
    learn_word_vectors,
    read_word_vectors,
    tokenize,
)


def build_text_encoder(config: TextConfig, titles: Sequence[str], seed: int) -> TextEncoder:
    """The text encoder that a recipe asks for.

    Args:
        config: which, and from where.
        titles: the train split's titles, to learn word vectors from.
        seed: of that learning.
    """
    if config.encoder == "transformer":
        return TransformerAverage(config.source, config.max_tokens)
    if config.source == "titles":
        return learn_word_vectors(titles, config.dimensions, seed)
    return read_word_vectors(config.source, config.max_words)


def build_model(recipe: Recipe, titles: Sequence[str]) -> CPD:
    """A fresh model after a recipe; the caller seeds torch."""
    encoder = build_text_encoder(recipe.text, titles, recipe.training.seed)
    return CPD(encoder, recipe.clip, recipe.video, recipe.text, recipe.head)


def load_model(source: str | os.PathLike[str]) -> CPD | Classifier:
    """A model of either kind, from its folder or by its name on the hub.

    Raises:
        ModelError: there is none, or it is not whole.
    """
    folder = local_folder(source)
    kind = read_config(folder, CPD_TYPE, CLASSIFIER_TYPE)["model_type"]
    return (CPD if kind == CPD_TYPE else Classifier).from_pretrained(folder)


__all__ = [
    "CPD",
    "Classifier",
    "FrameAverageModel",
    "ImportedModel",
    "InitWeights",
    "ResNet3d",
    "TextEncoder",
    "TransformerAverage",
    "WordAverage",
    "build_model",
    "build_text_encoder",
    "import_weights",
    "inflate",
    "learn_word_vectors",
    "load_frozen_model",
    "load_imagenet_model",
    "load_init_weights",
    "load_model",
    "load_pretrained_towers",
    "read_word_vectors",
    "tokenize",
]
