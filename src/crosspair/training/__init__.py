"""Training: the loop, pre-training, the curriculum, checkpoints."""

from crosspair.training.pretrain import pretrain

__all__ = ["pretrain"]
