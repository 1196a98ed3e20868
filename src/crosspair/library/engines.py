"""A model on the device where it computes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from crosspair.errors import ModelError, RecipeError, TextError
from crosspair.isolation import cores
from crosspair.models import CPD

PRECISIONS = ("auto", "bf16", "fp32")
EMBEDDING = ("video_head", "text_encoder", "text_head")  # without these a text means nothing


@dataclass(frozen=True)
class Engine:
    """A model where it computes.

    Attributes:
        model: in eval mode, on ``device``.
        device: of the network.
        precision: see `crosspair.config.TrainingConfig`.
        batch_size: clips that go through the network at a time, at most.
        workers: decoding processes.
    """

    model: CPD
    device: torch.device
    precision: str = "auto"
    batch_size: int = 32
    workers: int = 2


def engine(
    source: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 32,
    workers: int | None = None,
) -> Engine:
    """Load a model to where it computes fastest.

    Args:
        source: a model folder, or a name on the hub.
        device: as PyTorch calls it; "auto": the first GPU, or else the processor.
        precision: "auto", "bf16" or "fp32", see `crosspair.config.TrainingConfig`.
        batch_size: clips that go through the network at a time, at most.
        workers: decoding processes; None: one a core, 8 at most.

    Raises:
        ModelError: there is no such model, or no such device.
        RecipeError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise RecipeError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
    name = device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(name)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {device!r} cannot be used here: {reason}") from error
    model = CPD.from_pretrained(source).to(where).eval()
    return Engine(
        model, where, precision, batch_size, min(8, cores()) if workers is None else workers
    )


def reads_text(model: CPD) -> bool:
    """Whether cosines of texts and videos mean anything; by imported video encoders they do not."""
    return not set(EMBEDDING) & set(model.untrained)


def check_reads_text(model: CPD, texts: Iterable[str] = ()) -> None:
    """See that texts can be compared with videos.

    Raises:
        ModelError: none can.
        TextError: the model knows no word of one of these.
    """
    if not reads_text(model):
        raise ModelError(
            "this model reads no text, as its text tower is not trained; search by a video, or let "
            '"crosspair pretrain --init" make a model of it that reads'
        )
    for text in texts:
        if model.text_encoder.is_empty(text):
            raise TextError(f"the model knows no word of {text!r}")
