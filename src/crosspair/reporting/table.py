"""The table of a report: what training gained over random weights and over guessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crosspair.errors import RunError
from crosspair.evaluation.results import Result, Subject
from crosspair.markdown import markdown_rows
from crosspair.reporting.tabular import print_rows, shown, shown_interval, shown_ratio


@dataclass(frozen=True)
class Row:
    """One measurement, and what it is to be compared with; ``None`` where it was not made.

    Attributes:
        protocol, metric, feature, split, count, smaller_is_better: as in
            `crosspair.evaluation.Result`.
        settings: as "k 25, clips 10".
        chance, random, trained: the values.
        interval: of 95 %, of ``trained``.
    """

    protocol: str
    metric: str
    feature: str
    split: str
    settings: str
    count: int
    smaller_is_better: bool
    chance: float | None = None
    random: float | None = None
    trained: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def over_chance(self) -> float | None:
        """How many times better than chance; for ranks the inverse ratio, so that 2 is good."""
        return self._times(self.chance)

    @property
    def over_random(self) -> float | None:
        """How many times better than the same network with random weights."""
        return self._times(self.random)

    def _times(self, reference: float | None) -> float | None:
        if self.trained is None or reference is None:
            return None
        better, worse = self.trained, reference
        if self.smaller_is_better:
            better, worse = worse, better
        return better / worse if worse else None


def comparison(results: Sequence[Result]) -> list[Row]:
    """Bring results of the same protocol, metric and feature side by side.

    Chance is the same for every feature: a result of chance with no feature serves all.

    Raises:
        RunError: a number stands twice, as when results of two seeds were put together.

    >>> rows = comparison([
    ...     Result("kNN", "top-1", 0.6, "trained", feature="visual"),
    ...     Result("kNN", "top-1", 0.1, "chance"),
    ... ])
    >>> rows[0].feature, round(rows[0].over_chance, 3), rows[0].over_random
    ('visual', 6.0, None)
    """
    measured: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        if result.of != "chance":
            measured.setdefault((*_protocol(result), _settings(result)), []).append(result)
    rows = []
    for (protocol, metric, split, feature, settings), same in measured.items():
        guesses = [
            result
            for result in results
            if result.of == "chance"
            and _protocol(result) in {(protocol, metric, split, own) for own in ("", feature)}
        ]
        chance = _only(guesses, "chance")
        random, trained = (_only(same, of) for of in ("random weights", "trained"))
        rows.append(Row(
            protocol, metric, feature, split, settings, same[0].count, same[0].smaller_is_better,
            chance.value if chance else None,
            random.value if random else None,
            trained.value if trained else None,
            trained.interval if trained else None,
        ))  # fmt: skip
    return rows


def print_table(results: Sequence[Result]) -> None:
    """Print results side by side to standard output."""
    print_rows(_HEAD, _cells(results), names=3)


def markdown_table(results: Sequence[Result]) -> str:
    """Results side by side, as a table in Markdown."""
    return markdown_rows(_HEAD, _cells(results), names=3)


_HEAD = (
    "protocol", "metric", "feature",
    "chance", "random weights", "trained", "over chance", "over random",
)  # fmt: skip


def _cells(results: Sequence[Result]) -> list[list[str]]:
    return [
        [
            row.protocol, row.metric, row.feature,
            shown(row.chance, row.smaller_is_better),
            shown(row.random, row.smaller_is_better),
            shown(row.trained, row.smaller_is_better)
            + (f" ({shown_interval(row.interval)})" if row.interval else ""),
            shown_ratio(row.over_chance), shown_ratio(row.over_random),
        ]
        for row in comparison(results)
    ]  # fmt: skip


def _protocol(result: Result) -> tuple[str, str, str, str]:
    return result.protocol, result.metric, result.split, result.feature


def _settings(result: Result) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(result.settings.items()))


def _only(results: Sequence[Result], of: Subject) -> Result | None:
    found = [result for result in results if result.of == of]
    if len(found) > 1:
        one = found[0]
        raise RunError(
            f"two results of {of} for {one.protocol}, {one.metric}, {one.feature or 'no'} feature, "
            f"split {one.split}: {found[0].value:g} and {found[1].value:g}; a table holds one"
        )
    return found[0] if found else None
