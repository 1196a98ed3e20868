"""The text encoder of a pre-trained language model: the mean of its tokens (Section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import nn

from crosspair.devices import sent
from crosspair.errors import TextError
from crosspair.models.folder import first_line

FOLDER = "language_model"
# Models of which every layer attends to all tokens alike, and which take its mask ready-made, as
# PyTorch's own attention has it.
READY_MADE = frozenset({"bert", "distilbert", "roberta", "xlm-roberta"})
SDPA = "sdpa"


class TransformerAverage(nn.Module):
    """A text becomes the mean of its tokens' last hidden states, padding left out.

    Args:
        source: a local folder or a hub name (``distilbert-base-uncased``).
        max_tokens: where longer texts are cut.
        weights: whether they are read, too; without them, configuration and tokenizer do.

    Shapes:
        list of B texts → (B, hidden size), 768 for DistilBERT.

    Raises:
        TextError: transformers is missing, the folder holds no model, or its tokenizer knows no
            ordinary word.
    """

    def __init__(self, source: str, max_tokens: int, *, weights: bool = True) -> None:
        super().__init__()
        try:
            import transformers
        except ImportError as error:
            raise TextError(
                'text.encoder=transformer needs the extra: pip install "crosspair[text]"'
            ) from error
        missing: list[str] = []
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(source)
            if weights:
                self.model, found = transformers.AutoModel.from_pretrained(
                    source, dtype=torch.float32, output_loading_info=True
                )
                missing = found["missing_keys"]
            else:
                config = transformers.AutoConfig.from_pretrained(source)
                self.model = transformers.AutoModel.from_config(config, dtype=torch.float32)
        except Exception as error:  # tokenizers and safetensors raise kinds of their own
            raise TextError(
                f"language model {source}: cannot be loaded ({first_line(error)})"
            ) from error
        # Poolers are often absent, and not used here; anything else would be left random.
        missing = sorted(name for name in missing if "pooler" not in name)
        if missing:
            raise TextError(
                f"language model {source}: {len(missing)} weights are missing, as {missing[0]}"
            )
        positions = getattr(self.model.config, "max_position_embeddings", max_tokens)
        if 0 < positions < max_tokens:
            raise TextError(
                f"language model {source}: it reads {positions} tokens at most; "
                f"text.max_tokens is {max_tokens}"
            )
        self.max_tokens = max_tokens
        self.features: int = self.model.config.hidden_size
        # A tokenizer made from the wrong files gives nothing but unknown tokens, without a word.
        if self.is_empty("a person is playing with a ball"):
            raise TextError(
                f"language model {source}: its tokenizer knows no ordinary word; "
                "the folder needs tokenizer.json or a full set of tokenizer files"
            )

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        ids, mask = self.tokens(texts)
        return self.average(sent(ids, self.model.device), sent(mask, self.model.device))

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Let the weights learn, or not; a pooler never, as the mean makes no use of it.

        Processes that train together would wait for its gradient.
        """
        super().requires_grad_(requires_grad)
        if isinstance(pooler := getattr(self.model, "pooler", None), nn.Module):
            pooler.requires_grad_(False)
        return self

    def tokens(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (B, L) int64 of B texts, and a mask (B, L) int64: 0 where padding fills up."""
        if self.attends_to_padding:
            fill = [self.tokenizer.pad_token_id] * self.max_tokens
            rows = self.tokenizer(list(texts), verbose=False)["input_ids"]
            ids = torch.tensor([(row + fill)[: self.max_tokens] for row in rows])
            return ids, (ids != self.tokenizer.pad_token_id).long()
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        return tokens["input_ids"], tokens["attention_mask"]

    def average(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The mean (B, H) of what `tokens` gives."""
        attended = torch.ones_like(mask) if self.attends_to_padding else mask
        config = self.model.config
        if ids.is_cuda and config.model_type in READY_MADE and config._attn_implementation == SDPA:
            attended = as_attention(attended)
        output = self.model(input_ids=ids, attention_mask=attended)
        hidden = output.last_hidden_state.float()  # (B, L, H)
        weight = mask.unsqueeze(-1).to(hidden.dtype)  # (B, L, 1)
        mean: torch.Tensor = (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
        return mean

    @property
    def attends_to_padding(self) -> bool:
        """Whether the model sees texts cut and filled up to ``max_tokens``, all of it attended to.

        So were the authors' released weights trained.
        """
        return bool(getattr(self.model.config, "attends_to_padding", False))

    def attend_to_padding(self) -> None:
        """See `attends_to_padding`; `save` keeps it."""
        self.model.config.attends_to_padding = True

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
        return cls(str(folder / FOLDER), max_tokens, weights=False)


def as_attention(mask: torch.Tensor) -> torch.Tensor:
    """A mask (B, L) as attention takes it, (B, 1, 1, L): what each token may attend to.

    Models make this themselves, but look first whether the mask hides anything: with it on a GPU,
    the host would wait there in each step.
    """
    return mask[:, None, None, :].bool()
