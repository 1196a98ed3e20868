"""Names of classes as people would say them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from crosspair.corpora.table import by_key, read_table, some
from crosspair.errors import ManifestError

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def class_phrase(label: str) -> str:
    """A label in plain words, as zero-shot classification needs it.

    A label that is made of words already keeps them as they are.

    >>> class_phrase("ApplyEyeMakeup"), class_phrase("brush_hair"), class_phrase("making a BLT")
    ('apply eye makeup', 'brush hair', 'making a BLT')
    """
    words = label.split()
    if len(words) > 1:
        return " ".join(words)
    return " ".join(_CAMEL.sub(" ", label).replace("_", " ").lower().split())


def name_classes(
    rows: Iterable[dict[str, Any]], names: Path | None, otherwise: Callable[[str], str]
) -> None:
    """Replace the official labels of a manifest's rows by names for people.

    Args:
        rows: of a manifest; those without a label stay so.
        names: a csv or tsv without a header, a class a line: official name, name for people.
        otherwise: from a label that the file lacks to its name.

    Raises:
        ManifestError: the file does not do, or names none of the labels.
    """
    labelled = [row for row in rows if row.get("label")]
    given = _read_names(names) if names else {}
    labels = {row["label"] for row in labelled}
    if names and not labels & set(given):
        raise ManifestError(
            f"class names {names}: none of its {len(given)} classes ({some(sorted(given))}) is one "
            f"of the corpus' {len(labels)} ({some(sorted(labels))}); "
            "the official name comes first, then the name for people"
        )
    for row in labelled:
        row["label"] = given.get(row["label"]) or otherwise(row["label"])


def _read_names(path: Path) -> dict[str, str]:
    rows = read_table(path, "class names").without_header(("official", "name"))
    for row in rows:
        if not row["official"] or not row["name"]:
            raise ManifestError(f"{row.where}: an official name and a name for people are needed")
    return {name: row["name"] for name, row in by_key((r["official"], r) for r in rows).items()}
