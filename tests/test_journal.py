"""JSON Lines journals: entries survive an incomplete last line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.errors import RunError
from crosspair.files import JsonlWriter, read_jsonl

ENTRIES = st.lists(
    st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=2)
    | st.lists(st.floats(allow_nan=False) | st.none(), max_size=2)
)


@given(ENTRIES, ENTRIES, st.integers(0, 60))
def test_a_torn_journal_loses_at_most_its_last_line(
    tmp_path_factory: pytest.TempPathFactory, before: list[Any], after: list[Any], torn: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "deep" / "journal.jsonl"
    with JsonlWriter(path) as journal:
        journal.add(*before)
    content = path.read_bytes()
    last = len(content.splitlines()[-1]) if content else 0
    path.write_bytes(content[: len(content) - min(torn, last)])
    with JsonlWriter(path) as journal:
        for entry in after:
            journal.add(entry)
    kept = before if torn < 2 else before[:-1]
    assert list(read_jsonl(path)) == [*kept, *after]


def test_a_missing_journal_is_empty(tmp_path: Path) -> None:
    assert list(read_jsonl(tmp_path / "none" / "journal.jsonl")) == []


def test_a_line_is_flushed_when_added(tmp_path: Path) -> None:
    with JsonlWriter(tmp_path / "j") as journal:
        journal.add(["a", None])
        assert list(read_jsonl(tmp_path / "j")) == [["a", None]]


def test_opening_a_complete_journal_changes_nothing(tmp_path: Path) -> None:
    for content in (b"", b"[1]\n"):
        (tmp_path / "j").write_bytes(content)
        with JsonlWriter(tmp_path / "j"):
            pass
        assert (tmp_path / "j").read_bytes() == content


def test_a_journal_that_is_not_writable_or_readable(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    with pytest.raises(RunError, match=r"deep.*Is a directory"):
        JsonlWriter(tmp_path / "deep")
    with pytest.raises(RunError, match=r"deep.*Is a directory"):
        list(read_jsonl(tmp_path / "deep"))
    full = Path("/dev/full")
    if full.exists():
        with JsonlWriter(full) as journal, pytest.raises(RunError, match=r"/dev/full.*No space left"):
            journal.add("a")
