"""Names of prepared files: from the pairs' ids, safe on any file system."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

LONGEST = 80  # characters of an id that are kept; file systems take 255 bytes for the whole name


def file_names(pair_ids: Sequence[str]) -> list[str]:
    """A name without suffix for each id, in order; no two are alike, even in another case.

    An id that is a good name stays as it is; one that had to be changed, or that another repeats
    in another case, ends with a hash of itself.

    Args:
        pair_ids: each different from all others.

    >>> file_names(["v_Rowing_g01_c01", "../Été 2019?"])
    ['v_Rowing_g01_c01', 'Ete_2019-c48bf3989875cf88']
    """
    names = [_safe(each) for each in pair_ids]
    counts = Counter(name.casefold() for name in names)
    return [
        name
        if name == each and counts[name.casefold()] == 1 and not _HASHED.search(name)
        else f"{name}-{hashlib.sha256(each.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
        for each, name in zip(pair_ids, names, strict=True)
    ]


_HASHED = re.compile(r"-[0-9a-f]{16}$", re.IGNORECASE)


def _safe(pair_id: str) -> str:
    plain = unicodedata.normalize("NFKD", pair_id).encode("ascii", "ignore").decode()
    # No dot or hyphen in front: hidden files, and options of commands.
    return re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._-")[:LONGEST] or "clip"
