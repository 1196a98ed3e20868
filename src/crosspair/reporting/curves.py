"""Learning curves: which quantities of a history are worth a figure, and what each one says."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from crosspair.reporting.figures import Series, line_figure
from crosspair.reporting.history import History, Line, series

RANKS = ("R@1", "R@5", "R@10")
_POINTS = 400  # of a line; more cannot be seen
_DIRECTIONS = {"text_to_video": "text → video", "video_to_text": "video → text"}


@dataclass(frozen=True)
class Curve:
    """One figure of a report: an SVG element, its heading, and what it shows."""

    title: str
    svg: str
    caption: str


def learning_curves(history: History) -> list[Curve]:
    """The figures that a history has numbers for, the most telling first."""
    curves = []
    mark = stage_mark(history)
    for direction, words in _DIRECTIONS.items():
        lines = retrieval_series(history.validation, direction)
        if lines:
            title = f"Retrieval, {words}"
            figure = line_figure(title, lines, ylabel="found, %", percent=True, mark=mark)
            curves.append(Curve(title, figure, _retrieval_caption(history.validation)))
    loss = smoothed("", history.train, "loss")
    if loss.y:
        figure = line_figure("Loss", [loss], ylabel="loss, both directions", mark=mark)
        caption = "Mean over neighbouring log lines of the training loss."
        curves.append(Curve("Loss", figure, caption))
    posteriors = [
        smoothed("true pairs", history.train, "posterior_positive"),
        smoothed("noise", history.train, "posterior_noise"),
    ]
    if all(line.y for line in posteriors):
        title = "Posterior of being a pair"
        figure = line_figure(title, posteriors, ylabel="posterior, %", percent=True, mark=mark)
        caption = (
            "How surely a video and a title are taken for a pair (h of Equation 5): "
            "true pairs should rise, noise should stay near zero."
        )
        curves.append(Curve(title, figure, caption))
    return curves


def retrieval_series(validation: Sequence[Line], direction: str) -> list[Series]:
    """R@1, R@5 and R@10 over epochs, each with what guessing would find.

    Args:
        validation: lines of a `History`.
        direction: "text_to_video" or "video_to_text".
    """
    lines = []
    for rank in RANKS:
        epochs, values = series(validation, f"{direction}_{rank}")
        pairs = validation[-1].get("pairs") if validation else None
        chance = min(1.0, int(rank.removeprefix("R@")) / pairs) if pairs else None
        if values:
            lines.append(Series(rank, epochs, values, chance))
    return lines


def stage_mark(history: History) -> tuple[float, str] | None:
    """Where stage II begins, as a mark for a figure."""
    epoch = history.stage2_epoch
    return None if epoch is None else (epoch, "stage II")


def smoothed(name: str, lines: Sequence[Line], key: str) -> Series:
    """Means over windows of 1/50 of the history, at no more points than can be seen."""
    epochs, values = series(lines, key)
    reach = len(values) // 100
    every = max(1, len(values) // _POINTS)
    places = sorted({*range(0, len(values), every), *([len(values) - 1] if values else [])})
    smooth = [statistics.fmean(values[max(0, i - reach) : i + reach + 1]) for i in places]
    return Series(name, [epochs[i] for i in places], smooth)


def _retrieval_caption(validation: Sequence[Line]) -> str:
    pairs = validation[-1].get("pairs")
    among = f" among {pairs:,} validation pairs" if pairs else ""
    dotted = " Dotted: what guessing finds." if pairs else ""
    return f"How often the right one is within the first 1, 5 and 10{among}.{dotted}"
