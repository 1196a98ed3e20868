"""What a training takes on more of the same than was measured."""

from __future__ import annotations

from dataclasses import dataclass

from crosspair.planning.measuring import Measured


@dataclass(frozen=True)
class Projection:
    """A training on some GPUs of a machine, or on some machines where there is no GPU.

    Attributes:
        processes: how many train, each on a GPU, or a machine, of its own.
        measured: whether this is what was measured; else it is computed from that.
        clips_per_second: of all of them.
        hours: to the last epoch, with validations.
        memory: bytes, the peak of each process.
        all_reduce: bytes of gradients that each process sends a step, and as many it receives.
    """

    processes: int
    measured: bool
    clips_per_second: float
    hours: float
    memory: int
    all_reduce: int


@dataclass(frozen=True)
class Whole:
    """A whole training.

    Attributes:
        clips: that it sees.
        validated: clips that all its validations look at.
        batch: clips a step, over all processes.
        parts: that a process's share of a batch goes through the network in.
        bank: bytes of the whole memory bank.
        gradients: bytes of all gradients.
        cores: of the machine, which its GPUs share; 0 where each process has a machine of its own.
    """

    clips: int
    validated: int
    batch: int
    parts: int
    bank: int
    gradients: int
    cores: int


def project(whole: Whole, measured: Measured, processes: int) -> Projection:
    """Compute what a number of processes take.

    Nothing is lost on the way between them, and a smaller part of the batch costs as much a clip:
    where the network between machines is slow it will be less. Workers have no more cores than
    there are.
    """
    loading = _loading(whole, measured, processes)
    faster = _limit(whole, measured, processes) / _limit(whole, measured, 1)
    rate = measured.together * faster
    validation = whole.validated / min(processes * measured.forward, loading)
    part = whole.batch // processes // whole.parts
    # What a process keeps of the bank is its share.
    memory = measured.memory_of(part) - whole.bank * (1 - 1 / processes)
    return Projection(
        processes=processes,
        measured=processes == 1,
        clips_per_second=rate,
        hours=(whole.clips / rate + validation) / 3600,
        memory=int(memory),
        all_reduce=int(2 * (processes - 1) / processes * whole.gradients),  # in a ring
    )


def _limit(whole: Whole, measured: Measured, processes: int) -> float:
    """Clips/s that steps and loading allow, could they be done at the same time."""
    return min(processes * measured.step, _loading(whole, measured, processes))


def _loading(whole: Whole, measured: Measured, processes: int) -> float:
    rate = processes * measured.loading
    return (
        min(rate, max(measured.loading, whole.cores * measured.by_worker)) if whole.cores else rate
    )
