"""Reports: tables, figures and pages of results."""

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
from crosspair.reporting.tables import ComparisonRow, compare_with_baselines

__all__ = [
    "ComparisonRow",
    "ContactSheet",
    "Curve",
    "History",
    "RetrievedClip",
    "SheetTile",
    "compare_with_baselines",
    "learning_curves",
    "load_contact_sheet",
    "overview_figure",
    "read_history",
    "write_report",
]
