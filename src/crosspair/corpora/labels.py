"""Names of classes as people would say them."""

from __future__ import annotations

import re

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def class_phrase(label: str) -> str:
    """A label in plain words, as zero-shot classification needs it.

    >>> class_phrase("ApplyEyeMakeup"), class_phrase("brush_hair"), class_phrase("playing cello")
    ('apply eye makeup', 'brush hair', 'playing cello')
    """
    return " ".join(_CAMEL.sub(" ", label).replace("_", " ").lower().split())
