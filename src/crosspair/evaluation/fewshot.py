"""Few-shot classification of frozen features by logistic regression, as in MTEB and MVEB (arXiv 2606.14958)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from crosspair.config import POSITIVE, check_fields

MAX_ITERATIONS = 100
TOLERANCE = 1e-4  # of the gradient's largest component


@dataclass(frozen=True)
class FewshotConfig:
    """Settings of few-shot classification; the defaults are those of MTEB's classification tasks."""

    labels: int = 8
    """Labelled videos of each class; all of them if a class has fewer."""
    draws: int = 10
    """Number of random draws of these videos."""

    def __post_init__(self) -> None:
        check_fields("fewshot", self, POSITIVE, "labels", "draws")


def logistic_predict(train: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Classify queries by a logistic regression that is fitted to labelled features; see `fit_logistic`.

    Args:
        train: (N, F) features, which are not normalized.
        labels: (N,) int64, classes of ``train``.
        queries: (Q, F) features.

    Returns:
        (Q,) int64, the predicted classes.
    """
    classes, targets = torch.unique(labels, return_inverse=True)
    weight, bias = fit_logistic(train, targets)
    parts = [F.linear(part.double(), weight, bias).argmax(dim=1) for part in torch.split(queries, 4096)]
    predicted: torch.Tensor = classes[torch.cat(parts)]
    return predicted


def fit_logistic(features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a multinomial logistic regression.

    The model is that of scikit-learn's ``LogisticRegression(max_iter=100)``, which MTEB uses: L2 penalty with C = 1,
    not on the biases, minimised by L-BFGS in float64.

    Args:
        features: (N, F).
        labels: (N,) int64; each of the classes 0 to C - 1 occurs.

    Returns:
        Weights (C, F) and biases (C,), float64.
    """
    features, classes = features.double(), int(labels.max()) + 1
    weight = features.new_zeros(classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(classes, requires_grad=True)
    # With two classes, scikit-learn has one weight vector: the difference of the two here, w and -w.
    penalty = (1.0 if classes > 2 else 2.0) / len(features)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        max_eval=100 * MAX_ITERATIONS,
        tolerance_grad=TOLERANCE,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(features, weight, bias), labels) + penalty / 2 * weight.square().sum()
        torch.autograd.backward(loss)
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
