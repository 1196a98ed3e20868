"""Import crosspair where only PyTorch and NumPy are: on a GPU machine that nothing is installed on.

What measures networks and objectives decodes no video and reads no table, but its modules import
what does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

UNUSED = ("av", "pyarrow", "jsonargparse", "yaml", "safetensors", "rich", "fsspec")


def allow_absent_packages() -> list[str]:
    """Let what is missing of `UNUSED` be imported, as modules of nothing; name it."""
    absent = [name for name in UNUSED if find_spec(name) is None]
    if absent:
        sys.meta_path.append(_Absent(absent))
    return absent


class _Absent(MetaPathFinder, Loader):
    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        del path, target
        absent = name.partition(".")[0] in self.names
        return ModuleSpec(name, self, is_package=True) if absent else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Nothing(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Nothing(ModuleType):
    """Has whatever is asked of it: a class that others can inherit from, raise, or call."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {"__init__": lambda *_, **__: None})
