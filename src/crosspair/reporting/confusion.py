"""Which classes are taken for which: tables for other programs, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from crosspair.atomic import write_atomically
from crosspair.evaluation.results import Result
from crosspair.reporting.figures import INK, png_figure
from crosspair.reporting.tabular import csv_text

_NAMED = 60  # classes whose names can be read in a picture
_DPI = 150


def write_details(folder: Path, results: Sequence[Result]) -> list[Path]:
    """Write what a trained model's accuracies are made of.

    For each, three files named after protocol and feature: ``….classes.csv``, with the columns
    class, accuracy and videos, as ``crosspair words --accuracy`` reads it; ``….confusion.csv``,
    with the columns class, predicted and videos; and ``….confusion.png``.

    Args:
        folder: to write to.
        results: those without details by class are passed over.

    Raises:
        RunError: the files cannot be written.
    """
    files = []
    for result in results:
        if "confusion" not in result.details:
            continue
        name = "-".join(f"{result.protocol} {result.feature}".replace("%", "percent").split())
        confusion: dict[str, dict[str, int]] = result.details["confusion"]
        per_class = [
            (label, f"{accuracy:.6f}", sum(confusion[label].values()))
            for label, accuracy in result.details["per_class"].items()
        ]
        pairs = [(of, given, n) for of, row in confusion.items() for given, n in row.items()]
        for suffix, content in (
            ("classes.csv", csv_text(("class", "accuracy", "videos"), per_class)),
            ("confusion.csv", csv_text(("class", "predicted", "videos"), pairs)),
            ("confusion.png", confusion_figure(confusion, f"{result.protocol}, {result.feature}")),
        ):
            files.append(folder / f"{name}.{suffix}")
            write_atomically(files[-1], content)
    return files


def confusion_figure(confusion: dict[str, dict[str, int]], title: str) -> bytes:
    """Draw each class's share of predictions, from white (none) to blue (all).

    Args:
        confusion: class to predicted classes, each with how many videos were given it.
        title: above the picture, a PNG on white.
    """
    classes = sorted({*confusion, *(given for row in confusion.values() for given in row)})
    shares = [
        [row.get(given, 0) / max(1, sum(row.values())) for given in classes]
        for row in (confusion.get(of, {}) for of in classes)
    ]
    names = classes if len(classes) <= _NAMED else []
    side = max(4.0, 0.22 * len(classes)) + 1.5 if names else 9.0  # in

    def draw(axes: Axes) -> None:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.grid(visible=False)
        axes.set(xlabel="predicted", ylabel="true")
        axes.set_title(f"{title}: share of each class's videos", loc="left", color=INK)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize="small", parse_math=False)
        axes.set_yticks(range(len(names)), names, fontsize="small", parse_math=False)

    return png_figure(draw, (side, side), _DPI)
