"""Text encoders (Section 3.3): averaged word vectors, averaged transformer tokens, and towers of pretrained models."""

from __future__ import annotations

import json
import logging
import math
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from crosspair.config import TextConfig
from crosspair.device import to_device
from crosspair.errors import ModelError, TextError, format_error
from crosspair.files import MAX_JSON, check_regular_file, read_json

WORDS_FILE, LANGUAGE_MODEL_FOLDER, PRETRAINED_FOLDER = "words.json", "language_model", "pretrained"  # in a model folder
# Architectures that accept an expanded attention mask and whose layers all use the same mask.
EXPANDED_MASK_MODELS = frozenset({"bert", "distilbert", "roberta", "xlm-roberta"})
ATTENTION = (None, "eager", "sdpa")  # implementations that do not load code
MAX_SETTING = 2**21  # numbers in the configuration of a language model: more classes or layers fill the memory
MAX_LANGUAGE_FILE = 2**26  # bytes of a file of a language model other than weights
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_WEIGHTS = {".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".pt", ".pth"}  # suffixes of files without limit
_ORDINARY_TEXT = "a person is playing with a ball"
_UNKNOWN_WORDS = "the tokenizer maps every word to the unknown token. Add tokenizer.json to the folder"  # unreported
_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")

logging.getLogger("gensim").setLevel(logging.WARNING)  # INFO logs every opened file


class WordAverage(nn.Module):
    """Mean of the word vectors of the known words of B texts, (B, dimensions); zeros for a text without a known word.

    Args:
        words: vocabulary without duplicates.
        vectors: (words, dimensions) float, one row per word.
    """

    def __init__(self, words: Sequence[str], vectors: torch.Tensor) -> None:
        super().__init__()
        self.words = list(words)
        self.features = vectors.shape[1]
        self.vectors = nn.EmbeddingBag.from_pretrained(vectors.float(), False, mode="mean", include_last_offset=True)
        self._row = {word: row for row, word in enumerate(self.words)}

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        rows = [self._word_ids(text) for text in texts]
        offsets = np.cumsum([0, *map(len, rows)])
        flat = torch.tensor([row for text_rows in rows for row in text_rows], dtype=torch.long)
        device = self.vectors.weight.device
        mean: torch.Tensor = self.vectors(to_device(flat, device), to_device(torch.as_tensor(offsets), device))
        return mean

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the ids (B, L) int64 of the known words of B texts, and a mask (B, L) int64, 0 at padding."""
        rows = [torch.tensor(self._word_ids(text), dtype=torch.long) for text in texts]
        ids = nn.utils.rnn.pad_sequence([*rows, torch.zeros(1, dtype=torch.long)], True)[:-1]
        lengths = torch.tensor([len(row) for row in rows])
        return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()

    def average(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the mean vectors (B, dimensions) for the output of `tokenize`; used by export."""
        return _masked_mean(nn.functional.embedding(ids, self.vectors.weight), mask)

    @property
    def description(self) -> str:
        """What the features depend on other than the weights, to recognise features that were stored before."""
        return f"WordAverage {self.words}"

    def is_empty(self, text: str) -> bool:
        """Return whether the text contains no known word."""
        return not self._word_ids(text)

    def save(self, folder: Path) -> None:
        """Write words and dimensions; the vectors are part of the model's weights."""
        text = json.dumps({"words": self.words, "dimensions": self.features}, ensure_ascii=False)
        (folder / WORDS_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, max_bytes: int = MAX_JSON) -> WordAverage:
        """Create an encoder, with vectors to be loaded, from a saved vocabulary of at most ``max_bytes``."""
        try:
            saved = read_json(folder / WORDS_FILE, max_bytes)
            words = saved["words"]
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise ValueError("words must be a list of words")
            if len(set(words)) < len(words):
                raise ValueError("words are duplicated")
            return cls(words, torch.empty(len(words), saved["dimensions"]))  # zeros would write the memory
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, MemoryError) as error:
            reason = format_error(error)
            raise ModelError(f"{folder / WORDS_FILE}: missing or invalid vocabulary ({reason}).") from error

    def _word_ids(self, text: str) -> list[int]:
        return [self._row[word] for word in tokenize(text) if word in self._row]


class TransformerAverage(nn.Module):
    """Mean of a transformer's last hidden states over the tokens of B texts, without padding: (B, hidden size).

    Args:
        source: local folder, or name on the Hugging Face Hub (``distilbert-base-uncased``).
        max_tokens: length to which texts are truncated.
        weights: load the weights; otherwise only the configuration and the tokenizer.

    Raises:
        TextError: transformers is missing, loading fails, or the tokenizer maps ordinary words to the unknown token.
    """

    def __init__(self, source: str, max_tokens: int, *, weights: bool = True) -> None:
        super().__init__()
        transformers = import_extra("transformers")
        fault, missing = "", []
        try:
            config = load_transformers_config(source)
            safe: dict[str, Any] = {"trust_remote_code": False}  # by default, transformers asks the user
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(source, **safe)
            safe["attn_implementation"] = config._attn_implementation
            if weights:
                with silence_transformers():
                    self.model, info = transformers.AutoModel.from_pretrained(
                        source, config=config, dtype=torch.float32, output_loading_info=True, **safe
                    )
                # Poolers are often missing, and are not used.
                missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
            else:
                self.model = transformers.AutoModel.from_config(config, dtype=torch.float32, **safe)
        except Exception as error:  # tokenizers and safetensors define their own exceptions
            raise TextError(f"language model {source}: loading failed ({format_error(error)}).") from error
        self.max_tokens = max_tokens
        self.features: int = self.model.config.hidden_size
        positions = getattr(self.model.config, "max_position_embeddings", max_tokens)
        if missing:
            fault = f"{len(missing)} weights are missing, e.g. {missing[0]}"
        elif 0 < positions < max_tokens:
            fault = f"text.max_tokens={max_tokens} exceeds its maximum length of {positions} tokens"
        elif self.is_empty(_ORDINARY_TEXT):
            fault = _UNKNOWN_WORDS
        if fault:
            raise TextError(f"language model {source}: {fault}.")

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        ids, mask = self.tokenize(texts)
        return self.average(to_device(ids, self.model.device), to_device(mask, self.model.device))

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set whether the weights are trained. The unused pooler stays frozen: DDP would wait for its gradient."""
        super().requires_grad_(requires_grad)
        if isinstance(pooler := getattr(self.model, "pooler", None), nn.Module):
            pooler.requires_grad_(False)
        return self

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the token ids (B, L) int64 of B texts, and a mask (B, L) int64, 0 at padding."""
        if self.attends_to_padding:
            fill = [self.tokenizer.pad_token_id] * self.max_tokens
            rows = self.tokenizer(list(texts), verbose=False)["input_ids"]
            ids = torch.tensor([(row + fill)[: self.max_tokens] for row in rows])
            return ids, (ids != self.tokenizer.pad_token_id).long()
        settings = {"padding": True, "truncation": True, "max_length": self.max_tokens, "return_tensors": "pt"}
        tokens = self.tokenizer(list(texts), **settings)
        return tokens["input_ids"], tokens["attention_mask"]

    def average(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states' mean (B, H) over unmasked tokens, for the output of `tokenize`."""
        attended = torch.ones_like(mask) if self.attends_to_padding else mask
        config = self.model.config
        expandable = config.model_type in EXPANDED_MASK_MODELS
        if ids.is_cuda and expandable and config._attn_implementation == "sdpa":
            # Transformers would expand the mask itself, but first checks whether it hides any
            # token, which synchronises with the GPU in each step.
            attended = attended[:, None, None, :].bool()  # (B, 1, 1, L)
        output = self.model(input_ids=ids, attention_mask=attended)
        return _masked_mean(output.last_hidden_state.float(), mask)

    @property
    def attends_to_padding(self) -> bool:
        """Whether texts are padded to ``max_tokens`` and the padding is attended to, as by the authors."""
        return bool(getattr(self.model.config, "attends_to_padding", False))

    @property
    def description(self) -> str:
        """See `WordAverage.description`."""
        return f"TransformerAverage {self.max_tokens} {_describe(self.model, self.tokenizer)}"

    def attend_to_padding(self) -> None:
        """Enable `attends_to_padding`. `save` stores the setting."""
        self.model.config.attends_to_padding = True

    def is_empty(self, text: str) -> bool:
        """Return whether the text has no token, or unknown tokens only."""
        return _is_empty(self.tokenizer, text)

    def save(self, folder: Path) -> None:
        """Write the configuration and the tokenizer; the weights are part of the model's."""
        self.model.config.save_pretrained(folder / LANGUAGE_MODEL_FOLDER)
        self.tokenizer.save_pretrained(folder / LANGUAGE_MODEL_FOLDER)

    @classmethod
    def load(cls, folder: Path, max_tokens: int) -> TransformerAverage:
        """Create an encoder from a saved configuration and tokenizer, with random weights."""
        return cls(str(folder / LANGUAGE_MODEL_FOLDER), max_tokens, weights=False)


class TextTower(nn.Module):
    """Text tower of a pretrained model such as CLIP: its embeddings (B, D) of B texts.

    Args:
        model: transformers model with ``get_text_features``.
        tokenizer: its tokenizer.
        features: D.
        padded: whether texts are padded to ``max_tokens`` rather than to the longest of them.
        masked: whether padding is hidden from the model.
        scale: factor of the cosines in the model's softmax or sigmoid; None: unknown.

    Raises:
        TextError: the tokenizer maps ordinary words to the unknown token.
    """

    def __init__(
        self, model: Any, tokenizer: Any, features: int, *, padded: bool, masked: bool, scale: float | None = None
    ) -> None:
        super().__init__()
        self.scale = scale
        self.model, self.tokenizer, self.features, self.masked = model, tokenizer, features, masked
        self.max_tokens: int = model.config.text_config.max_position_embeddings
        self.padding: bool | str = "max_length" if padded else True
        if self.is_empty(_ORDINARY_TEXT):
            raise TextError(f"text tower: {_UNKNOWN_WORDS}.")

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        return self.embed(*(to_device(each, self.model.device) for each in self.tokenize(texts)))

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, ...]:
        """Return the token ids (B, L) int64 of B texts and, if ``masked``, a mask (B, L) int64, 0 at padding."""
        settings = {"padding": self.padding, "truncation": True, "max_length": self.max_tokens, "return_tensors": "pt"}
        tokens = self.tokenizer(list(texts), **settings)
        return (tokens["input_ids"], tokens["attention_mask"]) if self.masked else (tokens["input_ids"],)

    def embed(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the embeddings (B, D) of the output of `tokenize`."""
        features: torch.Tensor = self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        return features.float()

    @property
    def description(self) -> str:
        """See `WordAverage.description`."""
        return f"TextTower {self.max_tokens} {self.padding} {self.masked} {_describe(self.model, self.tokenizer)}"

    def is_empty(self, text: str) -> bool:
        """Return whether the text has no token, or unknown tokens only."""
        return _is_empty(self.tokenizer, text)

    def save(self, folder: Path) -> None:
        """Write the tokenizer; `crosspair.models.pretrained.PretrainedEncoder` writes the configuration."""
        self.tokenizer.save_pretrained(folder / PRETRAINED_FOLDER)


TextEncoder = WordAverage | TransformerAverage | TextTower


def build_text_encoder(config: TextConfig, titles: Sequence[str], seed: int) -> TextEncoder:
    """Build the text encoder of a recipe; ``titles``, of the training split, and ``seed`` are to learn word vectors."""
    if config.encoder == "transformer":
        return TransformerAverage(config.source, config.max_tokens)
    if config.source == "titles":
        return learn_word_vectors(titles, config.dimensions, seed)
    return read_word_vectors(config.source, config.max_words)


def read_word_vectors(path: str, max_words: int) -> WordAverage:
    """Read word vectors from a word2vec (binary or text), GloVe or fastText file; words are lower-cased.

    Args:
        path: ``.bin`` is word2vec binary, other suffixes text, with or without a header line; ``.gz`` is decompressed.
        max_words: number of words to read. Files are sorted by decreasing frequency.

    Raises:
        TextError: the file does not exist or has another format.
    """
    gensim = import_extra("gensim").models
    if not Path(path).is_file():
        raise TextError(f"word vectors {path}: no such file.")
    binary = ".bin" in Path(path).suffixes
    try:
        no_header = not binary and not _has_header(path)
        vectors = gensim.KeyedVectors.load_word2vec_format(
            path, binary=binary, no_header=no_header, limit=max_words, unicode_errors="replace"
        )
        if not vectors.vectors.size or not np.isfinite(vectors.vectors).all():
            raise ValueError("no words, or values that are not finite")
    except (OSError, ValueError, EOFError, MemoryError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise TextError(f"word vectors {path}: not a word2vec, GloVe or fastText file ({reason}).") from error
    rows: dict[str, int] = {}
    for row, word in enumerate(vectors.index_to_key):
        rows.setdefault(word.lower(), row)  # keep the most frequent spelling
    return WordAverage(list(rows), torch.from_numpy(vectors.vectors[list(rows.values())].copy()))


def learn_word_vectors(titles: Iterable[str], dimensions: int, seed: int) -> WordAverage:
    """Learn word vectors from titles with word2vec (skip-gram, gensim), deterministically.

    Args:
        titles: the texts; words that occur once get no vector.
        dimensions: length of the vectors (300 in the paper; 64 is enough for small corpora).
        seed: seed of the training.

    Raises:
        TextError: no word occurs twice.
    """
    gensim = import_extra("gensim").models
    sentences = [tokenize(title) for title in titles]
    try:
        # Several workers would make the order of updates, and so the vectors, non-deterministic.
        settings = {"window": 8, "min_count": 2, "sg": 1, "negative": 8, "sample": 1e-3, "epochs": 40, "workers": 1}
        model = gensim.Word2Vec(sentences, vector_size=dimensions, seed=seed, **settings)
    except RuntimeError as error:
        raise TextError(
            f"word vectors: no word occurs twice in the {len(sentences)} titles. Set text.source to a word-vector file."
        ) from error
    return WordAverage(list(model.wv.index_to_key), torch.from_numpy(model.wv.vectors.copy()))


def tokenize(title: str) -> list[str]:
    """Split a title into lower-case words. Hashtags in camel case are split into words.

    >>> tokenize("Baby CRAWLING, #MyFirstSteps 😍 don't_blink")
    ['baby', 'crawling', 'my', 'first', 'steps', "don't", 'blink']
    """
    nfc = unicodedata.normalize("NFC", title)  # a combining accent would end its word
    return [word.lower().replace("’", "'") for word in _WORD.findall(_CAMEL_CASE.sub(" ", nfc))]


def _masked_mean(vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Average vectors (B, L, H) where the mask (B, L) is 1; zeros where it is 0 everywhere."""
    weight = mask.unsqueeze(-1).to(vectors.dtype)  # (B, L, 1)
    return (vectors * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def load_transformers_config(source: str) -> Any:
    """Read the configuration of a transformers model; OSError or ValueError if it is invalid or requires other code."""
    if Path(source).is_dir():
        _check_language_model(Path(source))
    config = import_extra("transformers").AutoConfig.from_pretrained(source, trust_remote_code=False)
    if config._attn_implementation not in ATTENTION:  # others are downloaded, and run
        raise ValueError(f"attention {config._attn_implementation} is not supported")
    return config


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Suppress progress bars, and reports of missing or unexpected weights, which callers check."""
    log = import_extra("transformers").utils.logging
    level, has_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if has_bars:
            log.enable_progress_bar()


def _is_empty(tokenizer: Any, text: str) -> bool:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return all(token == tokenizer.unk_token_id for token in ids)


def _describe(model: Any, tokenizer: Any) -> str:
    """Return the configuration of a model and all of its tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend else str(sorted(tokenizer.get_vocab().items()))
    return f"{model.config.to_json_string()} {tokenizer} {vocabulary}"


def _check_language_model(folder: Path) -> None:
    """Raise OSError or ValueError if files of a local language model may block, or its sizes are absurd."""
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        if not path.is_dir():
            check_regular_file(path, math.inf if path.suffix in _WEIGHTS else MAX_LANGUAGE_FILE)
    largest = max(_iter_integers(read_json(folder / "config.json")), default=0)
    if largest > MAX_SETTING:
        raise ValueError(f"config.json has a number above {MAX_SETTING:,}")


def _iter_integers(content: Any) -> Iterator[int]:
    """Yield all integers among the values of nested JSON."""
    if isinstance(content, int):
        yield content
    elif isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _iter_integers(value)


def import_extra(package: str) -> Any:
    """Import a package of an extra; TextError with the command to install it if it is missing."""
    try:
        return import_module(package)
    except ImportError as error:
        raise TextError(f'text encoders require {package}. Install it with: pip install "crosspair[text]"') from error


def _has_header(path: str) -> bool:
    """Return whether the first line has two fields (counts); ValueError if it has fewer."""
    from smart_open import open as smart_open

    with smart_open(path, encoding="utf-8", errors="replace") as lines:
        first = lines.readline(100_000).split()
    if len(first) < 2:
        raise ValueError("the first line is neither a header nor a word with its vector")
    return len(first) == 2
