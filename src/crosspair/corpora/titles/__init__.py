"""Raw titles become clean ones, and those their verbs and nouns."""

from crosspair.corpora.titles.cleaning import Cleaned, clean_title
from crosspair.corpora.titles.scanning import Piece, Reason
from crosspair.corpora.titles.stage import TitleReport, prepare_titles

__all__ = [
    "Cleaned",
    "Piece",
    "Reason",
    "TitleReport",
    "clean_title",
    "prepare_titles",
]
