"""The README's numbers are those of the committed results; its links lead somewhere."""

import re
from pathlib import Path

from crosspair.evaluation import read_results
from crosspair.recipes import recipe_names
from crosspair.reporting.table import markdown_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_those_of_the_results() -> None:
    tables = re.findall(r"<!-- results: (\S+) -->\n(.*?)<!-- end -->", README, re.DOTALL)
    assert len(tables) == 2
    for file, table in tables:
        results, _ = read_results(ROOT / file)
        assert table.strip() == markdown_table(results)


def test_every_recipe_is_told() -> None:
    assert set(re.findall(r"^\| `([\w-]+)` \|", README, re.MULTILINE)) == set(recipe_names())


def test_links_and_files_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    named = re.findall(r"`((?:src|docs|tests)/[\w/.-]+)`", README)
    assert links
    assert all((ROOT / path).exists() for path in [*links, *named])
