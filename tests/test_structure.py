"""Structure of the package: import order, no cycles, file length, unique classes, lazy imports."""

import ast
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "crosspair"
# A module may import from its own line and from the lines before it.
LAYERS = [
    {"errors"},
    {"config", "device", "distributed", "files", "workers"},
    {"progress", "provenance", "markdown", "recipes"},
    {"video"},
    {"objectives"},
    {"corpora"},
    {"models"},
    {"evaluation"},
    {"training", "library", "inference"},
    {"api", "reporting", "benchmark", "doctor"},
    {"ablation", "quickstart", "serve"},
    {"cli"},
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
FILES = sorted(SOURCE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = ("crosspair", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imported_modules(path: Path, *, at_import: bool = False) -> set[str]:
    """Modules of the package that a file imports; `at_import`: only when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in tree.body if at_import else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name in MODULES and name != "crosspair"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(SOURCE).with_suffix("").parts[0]
    if own.startswith("__"):
        return
    used = {name.split(".")[1] for name in imported_modules(path)}
    assert not {name for name in used if LAYER[name] > LAYER[own]}


def test_no_import_cycles() -> None:
    graph = {
        name: imported_modules(path, at_import=True) - {name.rpartition(".")[0], name} for name, path in MODULES.items()
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_class_names_are_unique() -> None:
    names = Counter(
        node.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_no_file_is_too_long() -> None:
    limits = {"config.py": 600}  # a list of settings
    assert [path for path in FILES if len(path.read_text().splitlines()) > limits.get(path.name, 500)] == []


@pytest.mark.parametrize(
    "module", ["crosspair", "crosspair.cli", "crosspair.recipes", "crosspair.corpora", "crosspair.workers"]
)
def test_import_without_torch(module: str) -> None:
    check = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
