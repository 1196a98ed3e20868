"""Preparation: every clip of a corpus as a small file of its own, quick to read anywhere."""

from crosspair.corpora.prepare.corpus import Estimate, estimate, prepare_corpus
from crosspair.corpora.prepare.engines import Engine, on_processes, on_ray
from crosspair.corpora.prepare.plan import Plan, plan_preparation
from crosspair.corpora.prepare.settings import Settings

__all__ = [
    "Engine",
    "Estimate",
    "Plan",
    "Settings",
    "estimate",
    "on_processes",
    "on_ray",
    "plan_preparation",
    "prepare_corpus",
]
