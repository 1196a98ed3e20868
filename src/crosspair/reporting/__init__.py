"""Reports: tables, figures and pages of results."""

from crosspair.reporting.figures import Curve
from crosspair.reporting.run_report import (
    ContactSheet,
    History,
    RetrievedClip,
    SheetTile,
    learning_curves,
    load_contact_sheet,
    overview_figure,
    read_history,
    write_report,
)
from crosspair.reporting.tables import compare_with_baselines

__all__ = [
    "ContactSheet", "Curve", "History", "RetrievedClip", "SheetTile", "compare_with_baselines",
    "learning_curves", "load_contact_sheet", "overview_figure", "read_history", "write_report",
]  # fmt: skip
