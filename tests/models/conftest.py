"""A language model with a few thousand weights, saved in the usual format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

WORDS = ["a", "person", "is", "playing", "with", "ball", "dog", "cat", "the", "##s", "run"]


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a DistilBERT of 2 layers and 32 dimensions. Tests only read it."""
    from transformers import DistilBertConfig

    config = DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64)
    return write_language_model(tmp_path_factory.mktemp("language_model"), config)


def write_language_model(folder: Path, config: PreTrainedConfig) -> Path:
    """Write a model of random weights, and a tokenizer that knows `WORDS`."""
    from transformers import AutoModel

    config.vocab_size = write_tokenizer(folder)
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path) -> int:
    """Write a tokenizer that knows `WORDS`, and return the size of its vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    return len(vocabulary)


PRETRAINED = (
    "clip", "metaclip_2", "siglip", "siglip2", "dinov2", "vit", "convnext", "resnet", "xclip", "videoprism",
    "videoprism_vision_model", "videomae", "vivit", "timesformer", "vjepa2",
)  # fmt: skip
TWO_TOWERS = ("clip", "metaclip_2", "siglip", "siglip2", "xclip", "videoprism")
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def write_pretrained(folder: Path, kind: str) -> Path:
    """Write a model of another project with random weights; videos have 4 frames of 32 pixels (VideoPrism: 36)."""
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {kind}")
    folder.mkdir(parents=True, exist_ok=True)
    size = 36 if kind.startswith("videoprism") else 32
    layers: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2}
    layers |= {"hidden_size": 32, "intermediate_size": 40}
    prism = {"num_spatial_layers": 1, "num_temporal_layers": 1, "num_auxiliary_layers": 1}
    image = {**layers, "image_size": size, "patch_size": 16, "num_frames": 4, "tubelet_size": 2}
    if kind.startswith("videoprism"):
        image = {**layers, **prism, "image_size": size, "num_frames": 4}
    elif kind == "vivit":
        image["tubelet_size"] = [2, 16, 16]
    elif kind in ("convnext", "resnet"):
        image = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1], "embedding_size": 8}
    elif kind == "vjepa2":
        image |= {"crop_size": size, "frames_per_clip": 4}
        image |= {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    elif kind == "siglip2":
        image["num_patches"] = 4
    elif kind == "xclip":
        image |= {f"mit_{name}": value for name, value in layers.items()}
    settings = image
    if kind in TWO_TOWERS:
        vocabulary = {"vocab_size": write_tokenizer(folder), "max_position_embeddings": 16}
        special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
        settings = {"text_config": {**layers, **vocabulary, **special}, "vision_config": image}
        if kind not in ("siglip", "siglip2", "videoprism"):
            settings["projection_dim"] = 32 if kind == "xclip" else 24
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **settings))
    with torch.no_grad():
        for value in model.parameters():  # zeros, such as biases and positions, would hide faults
            if not value.any():
                value.normal_(std=0.1)
    model.save_pretrained(folder)
    preprocessor = {"image_mean": MEAN, "image_std": STD, "size": {"shortest_edge": size + 4}, "crop_size": size}
    if kind == "siglip2":
        preprocessor = {"image_mean": MEAN, "image_std": STD, "max_num_patches": 4, "patch_size": 16}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder
