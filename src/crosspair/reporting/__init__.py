"""Numbers, figures and pages: what a run found, for people to read."""

from crosspair.reporting.curves import Curve, learning_curves
from crosspair.reporting.history import History, read_history
from crosspair.reporting.overview import overview_figure
from crosspair.reporting.run_report import write_report
from crosspair.reporting.sheets import Found, Sheet, Tile, load_sheet
from crosspair.reporting.table import Row, comparison

__all__ = [
    "Curve",
    "Found",
    "History",
    "Row",
    "Sheet",
    "Tile",
    "comparison",
    "learning_curves",
    "load_sheet",
    "overview_figure",
    "read_history",
    "write_report",
]
