"""Zero-shot classification by the nearest class name (Appendix C)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from crosspair.corpora.build import class_phrase
from crosspair.corpora.tables import read_lines
from crosspair.errors import CrosspairError, RecipeError, TextError
from crosspair.evaluation.features import embed_texts
from crosspair.models.cpd import CPD

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ZeroshotConfig:
    """Settings of zero-shot classification."""

    class_counts: tuple[int, ...] = ()
    """Numbers of random classes for additional results, such as 20 (Appendix C)."""
    draws: int = 10
    """Number of draws of random classes (Appendix C)."""
    templates: tuple[str, ...] = ("{}",)
    """Texts with ``{}`` for the class name, whose embeddings are averaged; `read_templates` reads them from a file."""

    def __post_init__(self) -> None:
        for count in self.class_counts:
            if count < 2:
                raise RecipeError(f"zeroshot.class_counts has {count}; each must be at least 2")
        if self.draws < 1:
            raise RecipeError(f"zeroshot.draws is {self.draws}; it must be at least 1")
        for template in self.templates or ("",):
            if "{}" not in template:
                raise RecipeError(f"zeroshot.templates has {template!r}, without {{}} for the class name")


def zero_shot_predict(videos: torch.Tensor, class_names: torch.Tensor) -> torch.Tensor:
    """Classify embeddings f_v (V, D) by the nearest class name, f_t (C, D), all unit vectors; return (V,) int64."""
    return (videos @ class_names.T).argmax(dim=1)


def class_embeddings(model: CPD, classes: Sequence[str], templates: Sequence[str] = ("{}",)) -> torch.Tensor:
    """Embed class names: the normalized mean of the embeddings over templates.

    Args:
        model: model whose text encoder embeds the names.
        classes: C labels, converted to text by `class_phrase`.
        templates: see `ZeroshotConfig`.

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
        CrosspairError: ``count`` is above the number of classes.
    """
    if count > len(among):
        raise CrosspairError(f"zero-shot on {count} random classes: the test videos have {len(among)} classes")
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
