"""Numbers, figures and pages: what a run found, for people to read."""

from crosspair.reporting.run_report import (
    ContactSheet,
    Curve,
    History,
    RetrievedClip,
    SheetTile,
    learning_curves,
    load_contact_sheet,
    overview_figure,
    read_history,
    write_report,
)
from crosspair.reporting.tables import ComparisonRow, comparison

__all__ = [
    "ComparisonRow",
    "ContactSheet",
    "Curve",
    "History",
    "RetrievedClip",
    "SheetTile",
    "comparison",
    "learning_curves",
    "load_contact_sheet",
    "overview_figure",
    "read_history",
    "write_report",
]
