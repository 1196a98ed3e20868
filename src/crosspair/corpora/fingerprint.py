"""Which videos a manifest names, and which files these are."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from crosspair.corpora.manifest import Manifest
from crosspair.corpora.videofiles import size_of


@lru_cache(maxsize=16)  # a plan's cells share these; many files take long to ask on a network
def fingerprint(manifest: Manifest) -> str:
    """Hash of the columns pair_id, path, start and end, and of each local file's size.

    Names alone do not tell: corpora prepared at two sizes have the same ones. Titles, labels and
    splits play no part, nor does the folder that the manifest lies in.
    """
    digest = hashlib.sha256()
    rows = manifest.table.select(["pair_id", "path", "start", "end"]).to_pylist()
    for row, clip in zip(rows, manifest.clips(), strict=True):
        digest.update(repr((*row.values(), size_of(clip.path))).encode())
    return digest.hexdigest()[:12]
