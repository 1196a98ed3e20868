"""Ablations: train and evaluate every row of a plan with every seed, and compare the results."""

from crosspair.ablation.cells import Cell, plan_cells
from crosspair.ablation.plan import AblationPlan, AblationRow, plan_names, read_plan, row_name
from crosspair.ablation.run import AblationOutcome, ablate

__all__ = [
    "AblationOutcome", "AblationPlan", "AblationRow", "Cell", "ablate", "plan_cells", "plan_names",
    "read_plan", "row_name",
]  # fmt: skip
