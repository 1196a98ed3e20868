"""Ablations: plans of many trainings, run as far as they are not done, and reported."""

from crosspair.ablation.cells import Cell
from crosspair.ablation.plan import Plan, Row, row_name
from crosspair.ablation.reading import plan_names, read_plan
from crosspair.ablation.run import Outcome, ablate, planned

__all__ = [
    "Cell",
    "Outcome",
    "Plan",
    "Row",
    "ablate",
    "plan_names",
    "planned",
    "read_plan",
    "row_name",
]
