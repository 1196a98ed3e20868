"""Compute the memory of the memory bank and its traffic in a step. Traffic does not depend on N.

The all-reduce of the gradients and the traffic of the exact softmax are not included.
"""

from __future__ import annotations

from dataclasses import dataclass

from crosspair.config import ObjectiveConfig

_COUNT, _INDEX, _FLOAT = 8, 8, 4  # bytes
_TABLES = 2  # video and text entries


@dataclass(frozen=True)
class Traffic:
    """Bytes that each process passes to collectives.

    Attributes:
        reduced: to all-reduce.
        gathered: to all-gather.
    """

    reduced: int = 0
    gathered: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.reduced + other.reduced, self.gathered + other.gathered)

    def sent(self, processes: int) -> int:
        """Return the bytes that each process sends with ring algorithms."""
        others = processes - 1
        return 2 * others * self.reduced // processes + others * self.gathered


def bank_memory(pairs: int, dimensions: int, processes: int, precision: str = "fp32") -> int:
    """Compute the bytes of the largest shard.

    Args:
        pairs: N.
        dimensions: D.
        processes: number of processes that share the bank.
        precision: of the entries, "fp32" or "bf16".
    """
    return _TABLES * -(-pairs // processes) * dimensions * _bytes(precision)


def bank_traffic(config: ObjectiveConfig, batch: int, dimensions: int, processes: int) -> dict[str, Traffic]:
    """Compute the traffic of an NCE step by purpose.

    Args:
        config: settings of the objective.
        batch: B, over all processes.
        dimensions: D.
        processes: number of processes, two or more.

    Returns:
        Traffic of ``positives``, ``noise`` (requested entries, or queries and their similarities),
        ``normaliser`` and ``update``.
    """
    local, m = batch // processes, config.noise_samples
    counts = Traffic(reduced=_COUNT * processes)  # exchange of the number of rows per process
    entry = _TABLES * dimensions * _bytes(config.bank_precision)
    distributions = 2 if config.name == "cross_pair" else 1
    noise = Traffic(m * entry)
    if config.noise == "pair":
        # Similarities and values of each query, or their gradients, in each direction.
        values = _FLOAT * (m * distributions + _TABLES * dimensions)
        noise = _repeat(2 + 4 * distributions, counts)
        noise += Traffic(batch * values, local * (m * _INDEX + values))
    return {
        "positives": counts + counts + Traffic(batch * entry, local * _INDEX),
        "noise": noise,
        "normaliser": counts + counts + Traffic(gathered=distributions * _FLOAT),
        "update": counts + counts + Traffic(gathered=local * (_INDEX + _TABLES * dimensions * _FLOAT)),
    }


def _repeat(number: int, each: Traffic) -> Traffic:
    return sum([each] * number, Traffic())


def _bytes(precision: str) -> int:
    return 2 if precision == "bf16" else 4
