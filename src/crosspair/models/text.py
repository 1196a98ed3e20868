"""The text encoder of averaged word vectors (Section 3.3), and where word vectors come from."""

from __future__ import annotations

import json
import logging
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from crosspair.device import to_device
from crosspair.errors import ModelError, TextError
from crosspair.models.hub import first_line

WORDS_FILE = "words.json"
logging.getLogger("gensim").setLevel(logging.WARNING)  # it tells of every file it opens
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def tokenize(title: str) -> list[str]:
    """Split a title into lower-case words; hashtags in camel case come apart.

    >>> tokenize("Baby CRAWLING, #MyFirstSteps 😍 don't_blink")
    ['baby', 'crawling', 'my', 'first', 'steps', "don't", 'blink']
    """
    composed = unicodedata.normalize("NFC", title)  # a lone accent would end its word
    return [word.lower().replace("’", "'") for word in _WORD.findall(_CAMEL.sub(" ", composed))]


class WordAverage(nn.Module):
    """A text becomes the mean of its known words' vectors.

    Args:
        words: the vocabulary, without repetition.
        vectors: (words, dimensions) float, one row a word.

    Shapes:
        list of B texts → (B, dimensions) float; a text without a known word becomes zeros.
    """

    def __init__(self, words: Sequence[str], vectors: torch.Tensor) -> None:
        super().__init__()
        self.words = list(words)
        self.vectors = nn.EmbeddingBag.from_pretrained(
            vectors.float(), freeze=False, mode="mean", include_last_offset=True
        )
        self.features = vectors.shape[1]
        self._row = {word: row for row, word in enumerate(self.words)}

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        rows = [self._rows(text) for text in texts]
        offsets = np.cumsum([0, *(len(of_text) for of_text in rows)])
        flat = [row for of_text in rows for row in of_text]
        device = self.vectors.weight.device
        mean: torch.Tensor = self.vectors(
            to_device(torch.tensor(flat, dtype=torch.long), device),
            to_device(torch.as_tensor(offsets), device),
        )
        return mean

    def tokens(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (B, L) int64 of the words of B texts, and a mask (B, L) int64: 0 where none is."""
        rows = [torch.tensor(self._rows(text), dtype=torch.long) for text in texts]
        ids = nn.utils.rnn.pad_sequence([*rows, torch.zeros(1, dtype=torch.long)], True)[:-1]
        lengths = torch.tensor([len(row) for row in rows])
        return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()

    def average(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The mean (B, dimensions) of what `tokens` gives: for programs that know no texts."""
        weight = mask.unsqueeze(-1).to(self.vectors.weight.dtype)  # (B, L, 1)
        vectors = nn.functional.embedding(ids, self.vectors.weight) * weight
        return vectors.sum(dim=1) / weight.sum(dim=1).clamp(min=1)

    def is_empty(self, text: str) -> bool:
        """Whether the text holds no known word."""
        return not self._rows(text)

    def save(self, folder: Path) -> None:
        """Write the vocabulary; the vectors are among the model's weights."""
        text = json.dumps({"words": self.words, "dimensions": self.features}, ensure_ascii=False)
        (folder / WORDS_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> WordAverage:
        """Rebuild from `save`'s vocabulary, with vectors still to be loaded."""
        try:
            saved = json.loads((folder / WORDS_FILE).read_text(encoding="utf-8"))
            return cls(saved["words"], torch.zeros(len(saved["words"]), saved["dimensions"]))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ModelError(
                f"{folder / WORDS_FILE}: not a model's vocabulary ({error})"
            ) from error

    def _rows(self, text: str) -> list[int]:
        return [self._row[word] for word in tokenize(text) if word in self._row]


def read_word_vectors(path: str, max_words: int) -> WordAverage:
    """Read word vectors from a word2vec (binary or text), GloVe or fastText file.

    Args:
        path: ``.bin`` files are read as word2vec binary, others as text, with or without the
            header line that tells words from dimensions; ``.gz`` is understood.
        max_words: how many words to read; files begin with the most frequent.

    Raises:
        TextError: there is no such file, or it is not one of those formats.
    """
    gensim = _gensim()
    if not Path(path).is_file():
        raise TextError(f"word vectors {path}: no such file")
    binary = ".bin" in Path(path).suffixes
    try:
        headless = not binary and not _has_header(path)
        vectors = gensim.KeyedVectors.load_word2vec_format(
            path, binary=binary, no_header=headless, limit=max_words, unicode_errors="replace"
        )
    except (OSError, ValueError, EOFError, MemoryError, zlib.error) as error:
        raise TextError(_not_vectors(path, " ".join(str(error).split()))) from error
    rows: dict[str, int] = {}
    for row, word in enumerate(vectors.index_to_key):
        rows.setdefault(word.lower(), row)  # files are sorted by frequency: the first is the best
    if not vectors.vectors.size or not np.isfinite(vectors.vectors).all():
        raise TextError(_not_vectors(path, "it has no words, or values that are not finite"))
    return WordAverage(list(rows), torch.from_numpy(vectors.vectors[list(rows.values())].copy()))


def learn_word_vectors(titles: Iterable[str], dimensions: int, seed: int) -> WordAverage:
    """Learn word vectors from a corpus's own titles by word2vec (skip-gram, in gensim).

    Args:
        titles: the texts; words that occur once get no vector.
        dimensions: length of the vectors (300 in the paper; 64 is enough for small corpora).
        seed: the same titles and seed give the same vectors.

    Raises:
        TextError: no word occurs twice.
    """
    gensim = _gensim()
    sentences = [tokenize(title) for title in titles]
    try:
        # One worker: more would make the order of updates, and so the vectors, a matter of luck.
        model = gensim.Word2Vec(
            sentences, vector_size=dimensions, window=8, min_count=2, sg=1, negative=8,
            sample=1e-3, epochs=40, seed=seed, workers=1, hashfxn=_stable_hash,
        )  # fmt: skip
    except RuntimeError as error:
        raise TextError(
            f"no word occurs twice in the {len(sentences)} titles, so none can be learnt; "
            "give text.source a word-vector file"
        ) from error
    return WordAverage(list(model.wv.index_to_key), torch.from_numpy(model.wv.vectors.copy()))


def _gensim() -> Any:
    try:
        from gensim import models
    except ImportError as error:
        raise TextError(
            'text.encoder=words needs the extra: pip install "crosspair[text]"'
        ) from error
    return models


def _stable_hash(word: str) -> int:
    """Python's own hash of strings changes from one process to the next."""
    value = 2166136261
    for byte in word.encode():
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return value


def _has_header(path: str) -> bool:
    from smart_open import open as open_any

    with open_any(path, encoding="utf-8", errors="replace") as lines:
        first = lines.readline(100_000).split()
    if len(first) < 2:
        raise ValueError("its first line is neither a header nor a word with its vector")
    return len(first) == 2


def _not_vectors(path: str, reason: str) -> str:
    return f"word vectors {path}: not a word2vec (.bin or text), GloVe or fastText file ({reason})"


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
        return self.average(to_device(ids, self.model.device), to_device(mask, self.model.device))

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
            attended = expand_attention_mask(attended)
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


def expand_attention_mask(mask: torch.Tensor) -> torch.Tensor:
    """A mask (B, L) as attention takes it, (B, 1, 1, L): what each token may attend to.

    Models make this themselves, but look first whether the mask hides anything: with it on a GPU,
    the host would wait there in each step.
    """
    return mask[:, None, None, :].bool()
