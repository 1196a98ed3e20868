"""Which commit a result says that it comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from crosspair.provenance import git_describe


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with code, documents and measurements."""
    for name in ("src/code.py", "docs/speed.md", "benchmarks/results/speed.json"):
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.write_text("first\n")
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    return tmp_path


def test_measurements_and_documents_leave_a_commit_as_it_is_and_code_does_not(checkout: Path) -> None:
    code = checkout / "src" / "code.py"
    clean = git_describe(code)
    assert len(clean) >= 7
    (checkout / "benchmarks" / "results" / "speed.json").write_text("second\n")
    (checkout / "docs" / "speed.md").write_text("second\n")
    assert git_describe(code) == clean
    code.write_text("second\n")
    assert git_describe(code) == f"{clean}-dirty"


def test_code_that_no_checkout_tracks_has_no_commit(checkout: Path) -> None:
    installed = checkout / "src" / "installed.py"
    installed.write_text("")
    assert git_describe(installed) == ""
