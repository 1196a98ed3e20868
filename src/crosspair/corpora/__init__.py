"""Corpora: manifests, readers of video folders and official lists, and the rendered corpus."""

from crosspair.config import Clip
from crosspair.corpora.manifest import SCHEMA, SPLITS, Manifest, manifest_from_rows

__all__ = ["SCHEMA", "SPLITS", "Clip", "Manifest", "manifest_from_rows"]
