"""The text encoder of a pre-trained language model: the mean of its tokens (Section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from crosspair.errors import TextError

FOLDER = "language_model"


class TransformerAverage(nn.Module):
    """A text becomes the mean of its tokens' last hidden states, padding left out.

    Args:
        source: a local folder or a hub name (``distilbert-base-uncased``).
        max_tokens: where longer texts are cut.

    Shapes:
        list of B texts → (B, hidden size), 768 for DistilBERT.

    Raises:
        TextError: transformers is missing, the folder holds no model, or its tokenizer knows no
            ordinary word.
    """

    def __init__(self, source: str, max_tokens: int) -> None:
        super().__init__()
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise TextError(
                'text.encoder=transformer needs the extra: pip install "crosspair[text]"'
            ) from error
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(source)
            self.model, found = AutoModel.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True
            )
        except Exception as error:  # tokenizers and safetensors raise kinds of their own
            raise TextError(f"language model {source}: {_cannot_be_loaded(error)}") from error
        # Poolers are often absent, and not used here; anything else would be left random.
        missing = sorted(name for name in found["missing_keys"] if "pooler" not in name)
        if missing:
            raise TextError(
                f"language model {source}: {len(missing)} weights are missing, as {missing[0]}"
            )
        self.max_tokens = max_tokens
        self.features: int = self.model.config.hidden_size
        self._check_tokenizer(source)

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(self.model.device)
        hidden = self.model(**tokens).last_hidden_state.float()  # (B, L, H)
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # (B, L, 1)
        mean: torch.Tensor = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return mean

    def is_empty(self, text: str) -> bool:
        """Whether nothing but special and unknown tokens is left of the text."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return all(token == self.tokenizer.unk_token_id for token in ids)

    def save(self, folder: Path) -> None:
        """Write the configuration and the tokenizer; the weights are among the model's."""
        self.model.config.save_pretrained(folder / FOLDER)
        self.tokenizer.save_pretrained(folder / FOLDER)

    @classmethod
    def load(cls, folder: Path, max_tokens: int) -> TransformerAverage:
        """Rebuild from `save`'s files, with weights still to be loaded."""
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        encoder = cls.__new__(cls)
        nn.Module.__init__(encoder)
        source = str(folder / FOLDER)
        try:
            encoder.tokenizer = AutoTokenizer.from_pretrained(source)
            config = AutoConfig.from_pretrained(source)
            encoder.model = AutoModel.from_config(config)
        except Exception as error:  # as above
            raise TextError(f"language model {source}: {_cannot_be_loaded(error)}") from error
        encoder.max_tokens, encoder.features = max_tokens, config.hidden_size
        return encoder

    def _check_tokenizer(self, source: str) -> None:
        # A tokenizer made from the wrong files gives nothing but unknown tokens, without a word.
        if self.is_empty("a person is playing with a ball"):
            raise TextError(
                f"language model {source}: its tokenizer knows no ordinary word; "
                "the folder needs tokenizer.json or a full set of tokenizer files"
            )


def _cannot_be_loaded(error: Exception) -> str:
    return f"cannot be loaded ({(str(error) or type(error).__name__).splitlines()[0]})"
