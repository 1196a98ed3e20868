"""A raw title becomes a clean one: English words, numbers and the marks of a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from crosspair.corpora.titles.characters import is_mojibake
from crosspair.corpora.titles.languages import foreign
from crosspair.corpora.titles.scanning import Piece, Reason, scan


class Cleaned(NamedTuple):
    """What became of a title.

    Attributes:
        text: the clean title; empty where nothing of it is English.
        pieces: all of the raw title in its order, each with the reason why it went, if it did.
    """

    text: str
    pieces: list[Piece]

    @property
    def removed(self) -> list[Piece]:
        """The pieces that went."""
        return [piece for piece in self.pieces if piece.reason]


def clean_title(title: str) -> Cleaned:
    """Clean one title, as for Kinetics-title-clean (Section 4.1).

    What stays: English words, also names and the loan words that English uses, in their own case;
    numbers, with units, amounts and times; and the marks ``, . : ! ?``. "&" becomes "and".
    Cleaning what is clean already changes nothing.

    Args:
        title: any string.

    Raises:
        TextError: the extra ``text`` is not installed.

    >>> clean_title("★ How to juggle 3 balls | #LearnToJuggle — ¡muy fácil! 🤹 www.a.com").text
    'How to juggle 3 balls, Learn To Juggle'
    """
    pieces = _judged(scan(title))
    text = _joined(pieces)
    # Without the words that went, others may look different; each time there are fewer.
    while True:
        again = _judged(scan(text))
        then = _joined(again)
        if then == text:
            return Cleaned(text, pieces)
        pieces = _merged(pieces, again)
        text = then


def _judged(pieces: list[Piece]) -> list[Piece]:
    """Give a reason to the words that are not English, and to numbers that no word explains."""
    for place, piece in enumerate(pieces):
        if piece.word and is_mojibake(piece.text):
            pieces[place] = piece._replace(reason=Reason.UNREADABLE)
    places = [place for place, piece in enumerate(pieces) if piece.word and not piece.reason]
    words = [pieces[place].text for place in places]
    found = foreign(words, [_begins(pieces, place) for place in places])
    for place, is_foreign in zip(places, found, strict=True):
        if is_foreign:
            pieces[place] = pieces[place]._replace(reason=Reason.LANGUAGE)
    left = [place for place in places if not pieces[place].reason]
    if not any(char.isalpha() for place in left for char in pieces[place].text):
        for place in left:
            pieces[place] = pieces[place]._replace(reason=Reason.ALONE)
    return pieces


def _begins(pieces: Sequence[Piece], place: int) -> bool:
    """Whether a sentence begins here, so that a capital says nothing."""
    return place == 0 or pieces[place - 1].mark in {".", "!", "?"}


def _joined(pieces: Sequence[Piece]) -> str:
    """Put the words that stay together, with one mark at most between two."""
    text, gap = "", ""
    closed = False  # whether a removed piece stands since the last word
    for piece in pieces:
        if piece.word and not piece.reason:
            text += (_between(gap) if text else "") + piece.text
            gap, closed = "", False
        elif piece.word or piece.reason not in (None, Reason.SYMBOL):
            closed = True
            gap = gap.replace("&", "")
        elif not (closed and piece.mark in "&!?."):
            gap += piece.mark
    end = next((mark for mark in "?!." if mark in gap), "")
    return text + (end if text and not text.endswith(end or " ") else "")


def _between(gap: str) -> str:
    mark = next((mark for mark in "?!.:," if mark in gap), "")
    return f"{mark} " if mark else " and " if "&" in gap else " "


def _merged(before: list[Piece], after: list[Piece]) -> list[Piece]:
    """Give the pieces of the raw title the reasons that were found later."""
    kept = [piece.text for piece in after if piece.word and not piece.reason]
    late = {piece.text: piece.reason for piece in after if piece.reason}
    merged = []
    for piece in before:
        if piece.word and not piece.reason:
            if kept and kept[0] == "and" != piece.text:
                kept.pop(0)  # it was "&"
            if kept and kept[0].rstrip(".") == piece.text.rstrip("."):
                kept.pop(0)
            else:
                piece = piece._replace(reason=late.get(piece.text, Reason.UNREADABLE))
        merged.append(piece)
    return merged
