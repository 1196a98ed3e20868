"""Clean titles and extract their verbs and nouns (Section 4.1)."""

from crosspair.corpora.titles.clean import CleanedTitle, Piece, Reason, clean_title
from crosspair.corpora.titles.stage import TitleReport, prepare_titles

__all__ = ["CleanedTitle", "Piece", "Reason", "TitleReport", "clean_title", "prepare_titles"]
