"""What the memory bank takes in memory, and what it sends in a step: N is only in the first.

The gradients' all-reduce, and what an exact softmax adds, do not belong to the bank.
"""

from __future__ import annotations

from dataclasses import dataclass

from crosspair.config import ObjectiveConfig

_COUNT, _INDEX, _FLOAT = 8, 8, 4  # bytes
_TABLES = 2  # video and text entries


@dataclass(frozen=True)
class Traffic:
    """Bytes that each process hands over to collectives.

    Attributes:
        reduced: to all-reduce.
        gathered: to all-gather.
    """

    reduced: int = 0
    gathered: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.reduced + other.reduced, self.gathered + other.gathered)

    def sent(self, processes: int) -> int:
        """Bytes that leave each process where collectives go round in rings, as they mostly do."""
        others = processes - 1
        return 2 * others * self.reduced // processes + others * self.gathered


def bank_memory(pairs: int, dimensions: int, processes: int, precision: str = "fp32") -> int:
    """Bytes of the largest process's entries.

    Args:
        pairs: N.
        dimensions: D.
        processes: that share the bank.
        precision: of its entries, "fp32" or "bf16".
    """
    return _TABLES * -(-pairs // processes) * dimensions * _bytes(precision)


def bank_traffic(
    config: ObjectiveConfig, batch: int, dimensions: int, processes: int
) -> dict[str, Traffic]:
    """A step's traffic of NCE, by what it is for.

    Args:
        config: of `NoiseContrastive`.
        batch: B over all processes, of which each has as many.
        dimensions: D.
        processes: that share batch and bank, two or more.

    Returns:
        ``positives``, ``noise`` (entries that are asked for, or queries and their similarities),
        ``normaliser``, and ``update``.
    """
    own, m = batch // processes, config.noise_samples
    counts = Traffic(reduced=_COUNT * processes)  # one exchange of how many each process has
    entry = _TABLES * dimensions * _bytes(config.bank_precision)
    distributions = 2 if config.name == "cross_pair" else 1
    noise = Traffic(m * entry)
    if config.noise == "pair":
        # Of each query the similarities and its own values, or their gradients, on each way.
        values = _FLOAT * (m * distributions + _TABLES * dimensions)
        noise = _times(2 + 4 * distributions, counts)
        noise += Traffic(batch * values, own * (m * _INDEX + values))
    return {
        "positives": counts + counts + Traffic(batch * entry, own * _INDEX),
        "noise": noise,
        "normaliser": counts + counts + Traffic(gathered=distributions * _FLOAT),
        "update": counts
        + counts
        + Traffic(gathered=own * (_INDEX + _TABLES * dimensions * _FLOAT)),
    }


def _times(number: int, each: Traffic) -> Traffic:
    return sum([each] * number, Traffic())


def _bytes(precision: str) -> int:
    return 2 if precision == "bf16" else 4
