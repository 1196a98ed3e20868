"""Video and text encoders, model folders, and weights of other projects."""

from crosspair.models.classifier import Classifier
from crosspair.models.cpd import CPD, build_model
from crosspair.models.import_weights import ImportedModel, import_weights, inflate
from crosspair.models.init import (
    FrameAverageModel,
    InitWeights,
    load_frozen_model,
    load_imagenet_model,
    load_init_weights,
    load_model,
    load_pretrained_towers,
)
from crosspair.models.resnet3d import ResNet3d
from crosspair.models.text import (
    TextEncoder,
    TransformerAverage,
    WordAverage,
    build_text_encoder,
    learn_word_vectors,
    read_word_vectors,
    tokenize,
)

__all__ = [
    "CPD", "Classifier", "FrameAverageModel", "ImportedModel", "InitWeights", "ResNet3d",
    "TextEncoder", "TransformerAverage", "WordAverage", "build_model", "build_text_encoder",
    "import_weights", "inflate", "learn_word_vectors", "load_frozen_model", "load_imagenet_model",
    "load_init_weights", "load_model", "load_pretrained_towers", "read_word_vectors", "tokenize",
]  # fmt: skip
