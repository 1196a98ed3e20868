"""Zero-shot classification: the class whose name's embedding is nearest (Appendix C)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from crosspair.corpora.labels import class_phrase
from crosspair.errors import CrosspairError, TextError
from crosspair.evaluation.features import embed_texts
from crosspair.models import CPD

logger = logging.getLogger(__name__)

DRAWS = 10  # of random classes (Appendix C)


def zero_shot_predict(videos: torch.Tensor, class_names: torch.Tensor) -> torch.Tensor:
    """Classify videos by the nearest class name.

    Args:
        videos: (V, D) embeddings f_v, unit vectors.
        class_names: (C, D) embeddings f_t of the class names, unit vectors.

    Returns:
        (V,) int64, the predicted classes.
    """
    return (videos @ class_names.T).argmax(dim=1)


def class_embeddings(
    model: CPD, classes: Sequence[str], templates: Sequence[str] = ("{}",)
) -> torch.Tensor:
    """Embeddings of class names: the mean over templates, of unit norm again.

    Args:
        model: whose text encoder reads the names, as `crosspair.corpora.labels.class_phrase` says
            them.
        classes: C labels.
        templates: texts with ``{}`` where the name goes, as ``"a video of {}"``.

    Returns:
        (C, D) float32, on the CPU.
    """
    names = [class_phrase(label) for label in classes]
    unknown = [name for name in names if model.text_encoder.is_empty(name)]
    if unknown:
        logger.warning(
            "zero-shot: no known word in %d class names, as %r", len(unknown), unknown[0]
        )
    texts = [template.replace("{}", name) for template in templates for name in names]
    embedded = embed_texts(model, texts).view(len(templates), len(names), -1)
    return F.normalize(embedded.mean(dim=0), dim=1)


def draw_classes(among: Sequence[int], count: int, draws: int, seed: int) -> list[list[int]]:
    """Draw ``count`` of some classes at random, ``draws`` times; each draw in ascending order.

    Raises:
        CrosspairError: there are not as many classes, or fewer than two or no draw are asked for.
    """
    if not 2 <= count <= len(among):
        raise CrosspairError(
            f"zero-shot on {count} random classes: from 2 to the {len(among)} classes that the "
            "tested videos have can be drawn"
        )
    if draws < 1:
        raise CrosspairError(f"zero-shot on random classes needs 1 draw or more, not {draws}")
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(among), generator=generator)[:count] for _ in range(draws)]
    return [sorted(among[i] for i in order.tolist()) for order in orders]


def read_templates(path: Path) -> tuple[str, ...]:
    """Read templates for class names, one a line.

    Raises:
        TextError: there is no such file, or a line lacks ``{}``, where the name goes.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise TextError(f"template file {path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"template file {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip() and "{}" not in line:
            raise TextError(
                f"template file {path}, line {number}: {line.strip()!r} lacks {{}}, which stands "
                'for the class name, as in "a video of {}"'
            )
    templates = tuple(line.strip() for line in lines if line.strip())
    if not templates:
        raise TextError(f'template file {path} is empty; a line is as "a video of {{}}"')
    return templates
