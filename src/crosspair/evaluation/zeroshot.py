"""Zero-shot classification by the nearest class name (Appendix C)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from crosspair.corpora.build import class_phrase
from crosspair.corpora.tables import read_lines
from crosspair.errors import CrosspairError, TextError
from crosspair.evaluation.features import embed_texts
from crosspair.models.cpd import CPD

logger = logging.getLogger(__name__)

DRAWS = 10  # draws of random classes (Appendix C)


def zero_shot_predict(videos: torch.Tensor, class_names: torch.Tensor) -> torch.Tensor:
    """Classify videos by the nearest class name.

    Args:
        videos: (V, D) embeddings f_v, unit vectors.
        class_names: (C, D) embeddings f_t of the class names, unit vectors.

    Returns:
        (V,) int64, the predicted classes.
    """
    return (videos @ class_names.T).argmax(dim=1)


def class_embeddings(model: CPD, classes: Sequence[str], templates: Sequence[str] = ("{}",)) -> torch.Tensor:
    """Embed class names: the normalized mean of the embeddings over templates.

    Args:
        model: model whose text encoder embeds the names.
        classes: C labels, converted to text by `crosspair.corpora.build.class_phrase`.
        templates: texts with ``{}`` for the class name, such as ``"a video of {}"``.

    Returns:
        (C, D) float32 unit vectors, on the CPU.
    """
    names = [class_phrase(label) for label in classes]
    unknown = [name for name in names if model.text_encoder.is_empty(name)]
    if unknown:
        logger.warning("zero-shot: %d class names have no known word, e.g. %r", len(unknown), unknown[0])
    texts = [template.replace("{}", name) for template in templates for name in names]
    embedded = embed_texts(model, texts).view(len(templates), len(names), -1)
    return F.normalize(embedded.mean(dim=0), dim=1)


def draw_classes(among: Sequence[int], count: int, draws: int, seed: int) -> list[list[int]]:
    """Draw ``count`` random classes out of ``among``, ``draws`` times; each draw is sorted.

    Raises:
        CrosspairError: ``count`` is below 2 or above the number of classes, or ``draws`` is 0.
    """
    if not 2 <= count <= len(among):
        raise CrosspairError(
            f"zero-shot on {count} random classes: the number must be from 2 to {len(among)}, the "
            "number of classes of the test videos"
        )
    if draws < 1:
        raise CrosspairError(f"zero-shot on random classes: draws must be at least 1, not {draws}")
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(among), generator=generator)[:count] for _ in range(draws)]
    return [sorted(among[i] for i in order.tolist()) for order in orders]


def read_templates(path: Path) -> tuple[str, ...]:
    """Read templates for class names, one per line.

    Raises:
        ManifestError: the file is missing or not UTF-8.
        TextError: the file is empty, or a line has no ``{}``.
    """
    lines = read_lines(path, "template file")
    if not lines:
        raise TextError(f'template file {path} is empty; write lines such as "a video of {{}}"')
    for where, line in lines.items():
        if "{}" not in line:
            raise TextError(f'{where}: {line!r} has no {{}} for the class name, as in "a video of {{}}"')
    return tuple(lines.values())
