"""Learning curves: which quantities of a history are worth a figure, and what each one says."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from crosspair.reporting.figures import Series, draw_lines, svg_figure
from crosspair.reporting.history import History, Line, series

RANKS = (1, 5, 10)
_POINTS = 400  # of a line; more cannot be seen
_LOSS = "Mean over neighbouring log lines of the training loss."
_POSTERIOR = (
    "How surely a video and a title are taken for a pair, as the recipe's objective has it (nce: h "
    "of Equation 5; softmax: the probability). True pairs should rise, noise stay near zero."
)


@dataclass(frozen=True)
class Curve:
    """One figure of a report: an SVG element, its heading, and what it shows."""

    title: str
    svg: str
    caption: str


def learning_curves(history: History) -> list[Curve]:
    """The figures that a history has numbers for, the most telling first."""
    train, stage2 = history.train, history.stage2_epoch
    pairs = _pairs(history.validation)
    among = f" among {pairs:,} validation pairs. Dotted: what guessing finds." if pairs else "."
    found = f"How often the right one is within the first 1, 5 and 10{among}"
    to_video, to_text = (
        retrieval_series(history.validation, direction)
        for direction in ("text_to_video", "video_to_text")
    )
    loss = smoothed("", train, "loss")
    posteriors = [
        smoothed("true pairs", train, "posterior_positive"),
        smoothed("noise", train, "posterior_noise"),
    ]
    curves = [
        _curve("Retrieval, text → video", to_video, "found, %", found, stage2),
        _curve("Retrieval, video → text", to_text, "found, %", found, stage2),
        _curve("Loss", [loss], "loss, both directions", _LOSS, stage2),
        _curve("Posterior of being a pair", posteriors, "posterior, %", _POSTERIOR, stage2),
    ]
    return [curve for curve in curves if curve]


def retrieval_series(validation: Sequence[Line], direction: str) -> list[Series]:
    """R@1, R@5 and R@10 over epochs, each with what guessing would find.

    Args:
        validation: lines of a `History`.
        direction: "text_to_video" or "video_to_text".
    """
    pairs = _pairs(validation)
    lines = []
    for rank in RANKS:
        epochs, values = series(validation, f"{direction}_R@{rank}")
        if values:
            chance = min(1.0, rank / pairs) if pairs else None
            lines.append(Series(f"R@{rank}", epochs, values, chance))
    return lines


def smoothed(name: str, lines: Sequence[Line], key: str) -> Series:
    """Means over windows of 1/50 of the history, at no more points than can be seen."""
    epochs, values = series(lines, key)
    reach = len(values) // 100
    every = max(1, len(values) // _POINTS)
    places = sorted({*range(0, len(values), every), *([len(values) - 1] if values else [])})
    smooth = [statistics.fmean(values[max(0, i - reach) : i + reach + 1]) for i in places]
    return Series(name, [epochs[i] for i in places], smooth)


def _curve(
    title: str,
    lines: Sequence[Series],
    ylabel: str,
    caption: str,
    stage2: float | None,
) -> Curve | None:
    """A figure, in % where its values are; None where a line has no values."""
    if not lines or not all(line.y for line in lines):
        return None
    draw = partial(draw_lines, lines=lines, ylabel=ylabel, percent="%" in ylabel, stage2=stage2)
    return Curve(title, svg_figure(title, draw), caption)


def _pairs(validation: Sequence[Line]) -> int | None:
    return validation[-1].get("pairs") if validation else None
