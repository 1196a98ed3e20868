"""Learn video representations from videos and their text by cross-modal pair discrimination (CPD).

The public names are imported on first use: ``import crosspair`` does not import PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspair.api import evaluate, finetune, pretrain
    from crosspair.corpora.manifest import Manifest
    from crosspair.evaluation.windows import Windows
    from crosspair.inference import Classified, Embedded, Model, load
    from crosspair.models.cpd import CPD

_MODULES = {
    "CPD": "models.cpd",
    "Classified": "inference",
    "Embedded": "inference",
    "Manifest": "corpora.manifest",
    "Model": "inference",
    "Windows": "evaluation.windows",
    "evaluate": "api",
    "finetune": "api",
    "load": "inference",
    "pretrain": "api",
}
__all__ = [
    "CPD", "Classified", "Embedded", "Manifest", "Model", "Windows", "evaluate", "finetune", "load", "pretrain",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"crosspair.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
