"""Numbers, figures and pages: what a run found, for people to read."""

from crosspair.reporting.curves import Curve, learning_curves
from crosspair.reporting.history import History, read_history
from crosspair.reporting.origin import Machine, Provenance, provenance
from crosspair.reporting.overview import overview_figure
from crosspair.reporting.page import write_report
from crosspair.reporting.results import Result, read_results, write_results
from crosspair.reporting.sheets import Found, Sheet, Tile, contact_sheet, load_sheet
from crosspair.reporting.table import Row, comparison

__all__ = [
    "Curve",
    "Found",
    "History",
    "Machine",
    "Provenance",
    "Result",
    "Row",
    "Sheet",
    "Tile",
    "comparison",
    "contact_sheet",
    "learning_curves",
    "load_sheet",
    "overview_figure",
    "provenance",
    "read_history",
    "read_results",
    "write_report",
    "write_results",
]
