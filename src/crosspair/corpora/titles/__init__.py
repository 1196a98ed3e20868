"""Raw titles become clean ones, and those their verbs and nouns."""

from crosspair.corpora.titles.clean import CleanedTitle, Piece, Reason, clean_title
from crosspair.corpora.titles.stage import TitleReport, prepare_titles

__all__ = ["CleanedTitle", "Piece", "Reason", "TitleReport", "clean_title", "prepare_titles"]
