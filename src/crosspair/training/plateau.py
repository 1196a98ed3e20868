"""What saturated validation does: it divides the learning rate by 10, twice (Section 4.2)."""

from __future__ import annotations

from typing import Any

from crosspair.config import PlateauConfig


class Plateau:
    """Watches the validation loss.

    Args:
        config: how long to wait, and how often to divide.

    Attributes:
        best: lowest loss so far.
        dropped: how often the rate was divided.
        ended: whether the loss saturated once more after that.
    """

    def __init__(self, config: PlateauConfig) -> None:
        self.config = config
        self.best = float("inf")
        self.dropped, self.ended = 0, False
        self._without_gain = 0

    @property
    def factor(self) -> float:
        """Share of the learning rate that is left."""
        return float(0.1**self.dropped)

    def observe(self, loss: float) -> bool:
        """Take in a validation loss; tell whether it is the lowest so far."""
        is_best = loss < self.best
        self.best = min(self.best, loss)
        self._without_gain = 0 if is_best else self._without_gain + 1
        return is_best

    def advance(self) -> bool:
        """Divide the rate, or end, if the loss is saturated; tell whether it is."""
        if not self.config.drops or self._without_gain < self.config.patience:
            return False
        self._without_gain = 0
        if self.dropped < self.config.drops:
            self.dropped += 1
        else:
            self.ended = True
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "best": self.best,
            "dropped": self.dropped,
            "ended": self.ended,
            "without_gain": self._without_gain,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.best, self.dropped, self.ended = state["best"], state["dropped"], state["ended"]
        self._without_gain = state["without_gain"]
