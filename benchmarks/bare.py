"""Import crosspair on a machine that has only PyTorch and NumPy.

The benchmarks of networks and objectives decode no video and read no table, but import modules that
do. Missing packages are replaced by stubs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

UNUSED = ("av", "pandas", "pyarrow", "jsonargparse", "yaml", "safetensors", "rich", "fsspec")


def allow_absent_packages() -> list[str]:
    """Replace the missing packages of `UNUSED` by stub modules, and return their names."""
    absent = [name for name in UNUSED if find_spec(name) is None]
    if absent:
        sys.meta_path.append(_StubFinder(absent))
    return absent


class _StubFinder(MetaPathFinder, Loader):
    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        del path, target
        absent = name.partition(".")[0] in self.names
        return ModuleSpec(name, self, is_package=True) if absent else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StubModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _StubModule(ModuleType):
    """Has any attribute: a class that can be inherited from, raised, or called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {"__init__": lambda *_, **__: None})
