"""Training: pre-training, fine-tuning, and the loop and run folder that they share."""

from crosspair.training.finetune import finetune
from crosspair.training.pretrain import pretrain

__all__ = ["finetune", "pretrain"]
