"""When the language model joins in (Section 3.2): at a fixed epoch, or at saturation."""

from __future__ import annotations

from typing import Any

from crosspair.config import CurriculumConfig


class Curriculum:
    """Stage I with the language model frozen, then stage II with everything trained.

    Args:
        config: strategy, and when to change.

    Attributes:
        stage: 1 or 2.
        best: highest validation score so far.
    """

    def __init__(self, config: CurriculumConfig) -> None:
        self.config = config
        self.stage = 2 if config.strategy == "joint" else 1
        self.best = float("-inf")
        self._without_gain = 0
        self.advance(0)

    def observe(self, score: float) -> bool:
        """Take in a validation score, higher is better; tell whether it is the best so far."""
        is_best = score > self.best
        self.best = max(self.best, score)
        self._without_gain = 0 if is_best else self._without_gain + 1
        return is_best

    def advance(self, epochs_done: int) -> bool:
        """Go on to stage II if it is time; tell whether it just was."""
        if self.stage == 2 or self.config.strategy != "curriculum":
            return False
        fixed = self.config.stage2_epoch
        due = self._without_gain >= self.config.patience if fixed is None else epochs_done >= fixed
        if due:
            self.stage = 2
        return due

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"stage": self.stage, "best": self.best, "without_gain": self._without_gain}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.stage, self.best = state["stage"], state["best"]
        self._without_gain = state["without_gain"]
