"""What pairs are trained to: the memory bank and the objectives over it."""

from crosspair.objectives.bank import MemoryBank
from crosspair.objectives.nce import CrossPairNCE, nce_loss

__all__ = ["CrossPairNCE", "MemoryBank", "nce_loss"]
