"""Where pairs come from: manifests, folders of videos, the rendered corpus."""

from crosspair.clip import Clip
from crosspair.corpora.manifest import SCHEMA, SPLITS, Manifest, manifest_of

__all__ = ["SCHEMA", "SPLITS", "Clip", "Manifest", "manifest_of"]
