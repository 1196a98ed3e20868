"""The table of a report: what training gained over random weights and over guessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crosspair.errors import RunError
from crosspair.evaluation.results import Result, Subject
from crosspair.reporting.tabular import markdown_rows, print_rows


@dataclass(frozen=True)
class Row:
    """One measurement, and what it is to be compared with; ``None`` where it was not made."""

    protocol: str
    metric: str
    feature: str
    split: str
    settings: str
    """As "k 25, clips 10"."""
    count: int
    smaller_is_better: bool
    chance: float | None = None
    random: float | None = None
    trained: float | None = None
    interval: tuple[float, float] | None = None
    """95 % interval of ``trained``."""

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
    measured = [result for result in results if result.of != "chance"]
    guessed = [result for result in results if result.of == "chance"]
    rows = []
    for key in dict.fromkeys(_key(result) for result in measured):
        same = [result for result in measured if _key(result) == key]
        first = same[0]
        guesses = [result for result in guessed if _guesses(result, first)]
        rows.append(
            Row(
                protocol=first.protocol,
                metric=first.metric,
                feature=first.feature,
                split=first.split,
                settings=_settings(first),
                count=first.count,
                smaller_is_better=first.smaller_is_better,
                chance=_only(guesses, "chance"),
                random=_only(same, "random weights"),
                trained=_only(same, "trained"),
                interval=next((r.interval for r in same if r.of == "trained"), None),
            )
        )
    return rows


def print_table(results: Sequence[Result]) -> None:
    """Print results side by side to standard output."""
    print_rows([*_NAMES, *_NUMBERS], _cells(results), names=len(_NAMES), piped=120)


def markdown_table(results: Sequence[Result]) -> str:
    """Results side by side, as a table in Markdown."""
    return markdown_rows([*_NAMES, *_NUMBERS], _cells(results), names=len(_NAMES))


_NAMES = ("protocol", "metric", "feature")
_NUMBERS = ("chance", "random weights", "trained", "over chance", "over random")


def _cells(results: Sequence[Result]) -> list[list[str]]:
    return [
        [
            row.protocol,
            row.metric,
            row.feature,
            *(shown(v, row.smaller_is_better) for v in (row.chance, row.random)),
            shown(row.trained, row.smaller_is_better) + _beside(row.interval),
            *(shown_ratio(ratio) for ratio in (row.over_chance, row.over_random)),
        ]
        for row in comparison(results)
    ]


def shown(value: float | None, smaller_is_better: bool) -> str:
    """A value as people read it: a percentage with one decimal, or a rank as it is.

    >>> shown(0.2564, False), shown(12.0, True), shown(None, False)
    ('25.6 %', '12', '–')
    """
    if value is None:
        return "–"
    return f"{value:g}" if smaller_is_better else f"{100 * value:.1f} %"


def shown_ratio(ratio: float | None) -> str:
    """A ratio with the digits that mean something.

    >>> shown_ratio(6.04), shown_ratio(1234.5), shown_ratio(None)
    ('6.0', '1,234', '–')
    """
    if ratio is None:
        return "–"
    return f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"


def shown_interval(interval: tuple[float, float] | None) -> str:
    """The ends of an interval of fractions, in %; nothing where there is none.

    >>> shown_interval((0.705, 0.79))
    '70.5–79.0'
    """
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}" if interval else ""


def _beside(interval: tuple[float, float] | None) -> str:
    return f" ({shown_interval(interval)})" if interval else ""


def _key(result: Result) -> tuple[str, ...]:
    return result.protocol, result.metric, result.split, result.feature, _settings(result)


def _settings(result: Result) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(result.settings.items()))


def _guesses(guess: Result, measured: Result) -> bool:
    same = _key(guess)[:3] == _key(measured)[:3]
    return same and guess.feature in {"", measured.feature}


def _only(results: Sequence[Result], of: Subject) -> float | None:
    found = [result for result in results if result.of == of]
    if len(found) > 1:
        one = found[0]
        raise RunError(
            f"two results of {of} for {one.protocol}, {one.metric}, {one.feature or 'no'} feature, "
            f"split {one.split}: {found[0].value:g} and {found[1].value:g}; a table holds one"
        )
    return found[0].value if found else None
