"""Training objectives for video-text pairs, and the memory bank.

All objectives have the same signature: ``loss, metrics = objective(video, text, index, bank)``.
"""

from __future__ import annotations

from torch import nn

from crosspair.config import ObjectiveConfig
from crosspair.distributed import World
from crosspair.objectives.bank import MemoryBank
from crosspair.objectives.discrimination import (
    CrossPair,
    Discrimination,
    LearnedInstance,
    LearnedTemperature,
    SelfInstance,
)
from crosspair.objectives.in_batch import InBatch, Ranking, SigLIP, ranking_loss
from crosspair.objectives.nce import NoiseContrastive, nce_loss
from crosspair.objectives.softmax import ExactSoftmax, log_normalizer

__all__ = [
    "CrossPair", "Discrimination", "ExactSoftmax", "InBatch", "LearnedInstance", "LearnedTemperature", "MemoryBank",
    "NoiseContrastive", "Ranking", "SelfInstance", "SigLIP", "build_objective", "log_normalizer", "nce_loss",
    "ranking_loss",
]  # fmt: skip


def build_objective(config: ObjectiveConfig, pairs: int, dimensions: int, seed: int, world: World) -> nn.Module:
    """Build the objective of a recipe.

    Args:
        config: name and hyperparameters of the objective.
        pairs: number of pairs N in the memory bank.
        dimensions: embedding dimension D.
        seed: seed of the noise samples and of the initial class weights.
        world: processes that train together.
    """
    if config.name == "ranking":
        return Ranking(config.margin, world)
    if config.name == "in_batch":
        return InBatch(config.temperature, world, config.soft_targets, learnable=config.learnable_temperature)
    if config.name == "siglip":
        return SigLIP(world)
    discrimination: Discrimination
    if config.name == "cross_pair":
        discrimination = CrossPair(config.temperature, world)
    elif config.instances == "bank":
        discrimination = SelfInstance(config.temperature, world)
    else:
        discrimination = LearnedInstance(pairs, dimensions, seed, world.device)
    if config.estimate == "softmax":
        return ExactSoftmax(discrimination, config.learnable_temperature)
    return NoiseContrastive(discrimination, config, seed, world)
