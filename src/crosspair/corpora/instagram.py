"""Instagram-300k: web videos with their users' captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from crosspair.corpora.manifest import Manifest
from crosspair.corpora.official import Choices, Listed, official_corpus
from crosspair.corpora.output import Output
from crosspair.corpora.splits import split_named
from crosspair.corpora.table import read_object
from crosspair.errors import ManifestError

TEMPLATE = "trimmed_resize_{id}.mp4"


def instagram_corpus(
    folder: Path,
    captions: Path,
    out: Path,
    *,
    template: str = TEMPLATE,
    **choices: Unpack[Choices],
) -> Manifest:
    """Write the manifest of Instagram-300k; pairs without a caption are left out.

    Args:
        folder: of videos.
        captions: a json file, ``{id: {"subset": …, "caption": …}}``.
        out: the manifest; in a folder, ``manifest.parquet``.
        template: of a file's name, or of its path in the folder; ``{id}`` stands for the id.
        **choices: see `official.Choices`.

    Raises:
        ManifestError: an input does not do; nothing is written then.
    """
    if "{id}" not in template:
        raise ManifestError(
            f"template {template!r} holds no {{id}}: all videos would have one name; "
            f"the usual one is {TEMPLATE!r}"
        )
    output = Output(out)
    listed = list(_listed(captions, template))
    (manifest,) = official_corpus(
        folder, [(output, listed)], {"titles": None, **choices}, what="captions", needs_title=True
    )
    return manifest


def _listed(file: Path, template: str) -> Iterator[Listed]:
    for name, entry in read_object(file, "captions").items():
        where = f"captions {file}, {name!r}"
        if not isinstance(entry, dict) or not {"subset", "caption"} <= set(entry):
            raise ManifestError(f"{where}: not an object with 'subset' and 'caption'")
        caption = entry["caption"] or ""
        if not isinstance(caption, str):
            raise ManifestError(f"{where}: the caption is {caption!r}, not a text")
        # A caption that was cut within an emoji holds half of one.
        caption = caption.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        row = {
            "title": caption.strip() or None,
            "split": split_named(str(entry["subset"] or "").strip(), where),
        }
        yield Listed(name, where, {template.replace("{id}", name): {}}, row)
