"""Zero-shot classification: the class whose name's embedding is nearest (Appendix C)."""

from __future__ import annotations

import torch


def zero_shot_predict(videos: torch.Tensor, class_names: torch.Tensor) -> torch.Tensor:
    """Classify videos by the nearest class name.

    Args:
        videos: (V, D) embeddings f_v, unit vectors.
        class_names: (C, D) embeddings f_t of the class names, unit vectors.

    Returns:
        (V,) int64, the predicted classes.
    """
    return (videos @ class_names.T).argmax(dim=1)
