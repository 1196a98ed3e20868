"""Training: the loop, pre-training with its curriculum, fine-tuning, checkpoints."""

from crosspair.training.finetune import finetune
from crosspair.training.pretrain import pretrain

__all__ = ["finetune", "pretrain"]
