"""Every message of the package has its cure, and no cure is for a message that is gone."""

import re
from pathlib import Path

import pytest

from tests.docs.messages import HOLE, messages

PAGE = (Path(__file__).parents[2] / "docs/troubleshooting.md").read_text(encoding="utf-8")
ENTRIES = [line.rsplit(" | ", 1)[1] for line in PAGE.splitlines() if line.startswith("| **")]
PATTERNS = [pattern for entry in ENTRIES for pattern in re.findall(r"`([^`]+)`", entry)]
MESSAGES = messages()


def fits(pattern: str, message: str) -> bool:
    """Whether the words of a pattern stand in a message, one after the other."""
    return bool(re.search(".*".join(map(re.escape, pattern.split(HOLE))), message))


def test_messages_are_found_in_the_source() -> None:
    assert len(MESSAGES) > 300
    assert "a library needs the extra" in " ".join(MESSAGES.values())


@pytest.mark.parametrize("place", MESSAGES)
def test_every_message_has_a_cure(place: str) -> None:
    assert any(fits(pattern, MESSAGES[place]) for pattern in PATTERNS), MESSAGES[place]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_cure_is_for_a_message_that_is_gone(pattern: str) -> None:
    assert pattern.replace(HOLE, "").strip(" ,:"), "words are needed to find a message by"
    assert any(fits(pattern, message) for message in MESSAGES.values())
