"""docs/videos.md lists every recipe."""

import re
from pathlib import Path

from crosspair.recipes import recipe_names

PAGE = (Path(__file__).parents[2] / "docs/videos.md").read_text(encoding="utf-8")


def test_every_recipe_is_listed() -> None:
    (table,) = re.findall(r"^\| recipe \|.*?\n\n", PAGE, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == set(recipe_names())
