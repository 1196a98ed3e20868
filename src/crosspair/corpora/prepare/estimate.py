"""What a preparation will cost, from a sample of its videos."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from crosspair.corpora.prepare.engines import Engine
from crosspair.corpora.prepare.plan import Plan
from crosspair.errors import ManifestError, RunError


@dataclass(frozen=True)
class Estimate:
    """What is missing, and what the sample says about it.

    Attributes:
        missing: files to be made.
        sampled: how many of them were made to see.
        broken: how many of these could not be.
        work: of one core for all that is missing, in s.
        size: of all that is missing, in bytes.
    """

    missing: int
    sampled: int
    broken: int
    work: float
    size: float


def estimate(
    plan: Plan,
    engine: Engine,
    sample: int,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Estimate:
    """Make a random sample of the missing files, and remove each at once.

    Args:
        plan: see `plan_preparation`.
        engine: where to do it; as many processes as the real run has, since they slow each other.
        sample: how many, at most.
        seed: of the choice.
        progress: called with the files done and the sources found broken, after every file.

    Raises:
        ManifestError: ``sample`` is not positive.
        RunError: the temporary folder cannot be written to.
    """
    if sample < 1:
        raise ManifestError(f"the sample is {sample} videos; it must be 1 or more")
    missing = plan.missing
    chosen = np.random.default_rng(seed).permutation(len(missing))[:sample]
    requests = [replace(plan.requests[missing[place]], target=None) for place in chosen]
    seconds = size = 0.0
    broken = done = 0
    with closing(engine(requests)) as outcomes:
        for done, (_, outcome) in enumerate(outcomes, 1):
            if outcome.fatal:
                raise RunError(outcome.fatal)
            seconds, size = seconds + outcome.seconds, size + outcome.size
            broken += bool(outcome.error)
            progress(done, broken)
    scale = len(missing) / max(1, done)
    return Estimate(len(missing), done, broken, seconds * scale, size * scale)
