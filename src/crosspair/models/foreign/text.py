"""The text tower of the authors' checkpoints: DistilBERT, and the head on the mean of its tokens.

Their tokenizer is not in the file, nor how many heads attention has: a folder tells.
"""

from __future__ import annotations

from pathlib import Path

from crosspair.errors import ModelError, TextError
from crosspair.models.foreign.encoder import fitted
from crosspair.models.tensorfile import Weights
from crosspair.models.transformer import TransformerAverage

MAX_TOKENS = 64  # to which the authors cut and fill up titles
_ENCODER = "textual_encoder."
_POSITIONS = "embeddings.position_ids"  # a counter that some versions of transformers kept


def read_text_encoder(weights: Weights, tokenizer: str, path: Path) -> TransformerAverage:
    """Take the language model out of a file of the authors.

    The authors' network attends to the padding that fills each title up to 64 tokens, and their
    weights were trained so; this one then does, too.

    Args:
        weights: of the whole file.
        tokenizer: a folder with the configuration and tokenizer of its DistilBERT.
        path: of the file, for messages.

    Raises:
        ModelError: folder and weights do not go together.
    """
    try:
        encoder = TransformerAverage(tokenizer, MAX_TOKENS, weights=False)
    except TextError as error:
        raise ModelError(f"--tokenizer: {error}") from error
    encoder.attend_to_padding()
    expected = encoder.state_dict()
    names = {ours: _ENCODER + ours.removeprefix("model.") for ours in expected}
    found = {
        name: value
        for name, value in weights.items()
        if name.startswith(_ENCODER) and name != _ENCODER + _POSITIONS
    }
    what = f"as the language model that {tokenizer} describes"
    encoder.load_state_dict(fitted(expected, names, found, what, path))
    return encoder
