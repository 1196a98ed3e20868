"""Pairs that a corpus' lists promise and a training cannot use, by reason."""

from __future__ import annotations

import csv
import io
import logging
from collections import defaultdict

from crosspair.corpora.table import some

logger = logging.getLogger(__name__)

NO_FILE, NO_TITLE, BROKEN = "no file", "no title", "broken file"


class LeftOut:
    """Gathers them, tells how many there are, and lists all."""

    HEADER = ("video_id", "reason", "detail")

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str, str]] = []

    def add(self, video_id: str, reason: str, detail: str) -> None:
        """One pair; ``detail`` is for people."""
        self.pairs.append((video_id, reason, detail))

    def ids(self, reason: str) -> list[str]:
        """Of the pairs with that reason."""
        return [video_id for video_id, of, _ in self.pairs if of == reason]

    def tell(self, of: str) -> None:
        """Log one line a reason, with the first few names.

        Args:
            of: where they are left out, for the lines' beginnings.
        """
        names = defaultdict(list)
        for video_id, reason, _ in self.pairs:
            names[reason].append(video_id)
        for reason, ids in names.items():
            count = "1 pair" if len(ids) == 1 else f"{len(ids)} pairs"
            logger.warning("%s: %s: %s (%s)", of, reason, count, some(ids))

    def csv(self) -> str:
        """A csv of all, with a header."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.HEADER)
        writer.writerows(self.pairs)
        return text.getvalue()
