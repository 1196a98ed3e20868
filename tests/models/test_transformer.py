"""The transformer encoder: mean over tokens, and invalid folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from crosspair.errors import TextError
from crosspair.models import TransformerAverage
from crosspair.models.text import EXPANDED_MASK_MODELS

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["a dog", "the cat is playing with a ball", "dogs run", "person"]


@pytest.fixture(scope="module")
def encoder(language_model: Path) -> TransformerAverage:
    return TransformerAverage(str(language_model), max_tokens=16).eval()


@pytest.fixture
def copy(language_model: Path, tmp_path: Path) -> Path:
    """A copy of the language model to damage."""
    return Path(shutil.copytree(language_model, tmp_path / "copy"))


def refused(folder: Path, cause: str = "") -> None:
    with pytest.raises(TextError, match=f"{folder}: .*{cause}") as caught:
        TransformerAverage(str(folder), 16)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_text_is_the_mean_of_its_last_hidden_states(language_model: Path, encoder: TransformerAverage) -> None:
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    model = AutoModel.from_pretrained(language_model).eval()
    for text, found in zip(TEXTS, encoder(TEXTS), strict=True):
        ids = tokenizer(text)["input_ids"]
        states = model(torch.tensor([ids])).last_hidden_state[0]
        mean = sum(states) / len(ids)
        torch.testing.assert_close(found, mean, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_batch_composition_does_not_matter(encoder: TransformerAverage) -> None:
    alone = torch.cat([encoder([text]) for text in TEXTS])
    torch.testing.assert_close(encoder(TEXTS), alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder(TEXTS[::-1]).flip(0), alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", sorted(EXPANDED_MASK_MODELS))
def test_expanded_mask_matches_padding_mask(kind: str) -> None:
    torch.manual_seed(0)
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    if kind != "distilbert":
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        sizes = dict(zip(names, sizes.values(), strict=True))
    model = AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=50, **sizes)).eval()
    assert model.config._attn_implementation == "sdpa"
    ids, lengths = torch.randint(5, 50, (3, 7)), torch.tensor([[7], [4], [2]])
    mask = (torch.arange(7) < lengths).long()
    padding, expanded, unmasked = (
        model(input_ids=ids, attention_mask=each).last_hidden_state[mask.bool()]
        for each in (mask, mask[:, None, None, :].bool(), None)
    )
    torch.testing.assert_close(expanded, padding)
    assert (unmasked - padding).abs().max() > 1e-3


def test_text_without_known_words(encoder: TransformerAverage) -> None:
    assert not any(encoder.is_empty(text) for text in TEXTS)
    assert encoder.is_empty("")
    assert encoder.is_empty("unicorn 😍")
    assert encoder(["", "unicorn"]).isfinite().all()


@torch.no_grad()
def test_long_texts_are_truncated(encoder: TransformerAverage) -> None:
    long = "dog " * 500
    torch.testing.assert_close(encoder([long]), encoder(["dog " * 14]))


# --- invalid folders ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", None), ("model.safetensors", b"{}"), ("config.json", None), ("tokenizer.json", b"{"),
        ("tokenizer.json", b'{"model": {"type": "Nonsense"}}'),
    ],
)  # fmt: skip
def test_a_damaged_folder(copy: Path, name: str, content: bytes | None) -> None:
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    refused(copy)
    refused(copy / "none")


def test_configuration_of_other_weights(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    assert TransformerAverage(str(copy), 16, weights=False).model.dtype == torch.float32
    (copy / "config.json").write_text(json.dumps({**config, "n_layers": 3}))
    refused(copy, "16 .*transformer.layer.2.")
    (copy / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 15}))
    refused(copy)


def test_tokenizer_without_words(copy: Path) -> None:
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {word if word.startswith("[") else f"{word}~": i for word, i in vocabulary.items()}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(copy, "tokenizer.json")
