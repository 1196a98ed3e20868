"""The weights that a pre-training begins with."""

from __future__ import annotations

import logging

from crosspair.models.cpd import CPD, PARTS, TextEncoder
from crosspair.models.start import RANDOM, read_start
from crosspair.models.transformer import TransformerAverage
from crosspair.models.words import WordAverage

logger = logging.getLogger(__name__)


def begin_towers(model: CPD, source: str) -> str:
    """Let a fresh model begin with the weights of another, part by part, as far as they fit.

    The video encoder has to fit. A text encoder fits if it is of the same kind and reads texts by
    the same vocabulary, its head and the video head if their sizes are the same, too, and (the text
    head) the text encoder fits.

    Args:
        model: that begins.
        source: see `crosspair.models.read_start`.

    Returns:
        What was begun with, as `crosspair.models.Start.name`.

    Raises:
        ModelError: there are no such weights, or they are of another video encoder.
    """
    start = read_start(source)
    start.begin(model)
    if start.name != RANDOM:
        taken = ["video_encoder"]
        if start.name.startswith("CPD"):
            taken += _take_rest(model, CPD.from_pretrained(source))
        new = ", ".join(part for part in PARTS if part not in taken) or "nothing"
        logger.info("begins with %s: %s; new: %s", start.name, ", ".join(taken), new)
    return start.name


def _take_rest(model: CPD, other: CPD) -> list[str]:
    """What fits and was trained of the other's heads and text encoder; its names."""
    taken = []
    if _fits("video_head", model, other):
        taken.append("video_head")
        model.video_head = other.video_head
    ours, theirs = model.text_encoder, other.text_encoder
    if _fits("text_encoder", model, other) and _vocabulary(ours) == _vocabulary(theirs):
        taken.append("text_encoder")
        if isinstance(ours, TransformerAverage) and isinstance(theirs, TransformerAverage):
            theirs.max_tokens = ours.max_tokens
        model.text_encoder = theirs
        if _fits("text_head", model, other):
            taken.append("text_head")
            model.text_head = other.text_head
    return taken


def _fits(part: str, model: CPD, other: CPD) -> bool:
    ours, theirs = (
        {name: value.shape for name, value in getattr(each, part).state_dict().items()}
        for each in (model, other)
    )
    return part not in other.untrained and ours == theirs


def _vocabulary(encoder: TextEncoder) -> dict[str, int]:
    if isinstance(encoder, WordAverage):
        return {word: row for row, word in enumerate(encoder.words)}
    vocabulary: dict[str, int] = encoder.tokenizer.get_vocab()
    return vocabulary
