"""Structure of the package: import order, file length, lazy imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "crosspair"
# A folder may import from those before it, and from top-level modules.
ORDER = [
    "video", "corpora", "models", "objectives", "evaluation", "training", "reporting", "ablation",
    "library", "serve",
]  # fmt: skip
FILES = sorted(SOURCE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("crosspair"):
            parts = node.module.split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("crosspair.")}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path) -> None:
    folder = path.relative_to(SOURCE).parts[0]
    if folder not in ORDER:
        return
    later = ORDER[ORDER.index(folder) + 1 :]
    assert not imported(path) & {*later, "cli", "planning", "quickstart"}


def test_no_file_is_too_long() -> None:
    long = [path.name for path in FILES if len(path.read_text().splitlines()) > 500]
    assert not long


@pytest.mark.parametrize(
    "module", ["crosspair", "crosspair.cli", "crosspair.recipes", "crosspair.corpora"]
)
def test_import_without_torch(module) -> None:
    check = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
