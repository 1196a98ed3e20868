"""Files of tensors that other projects wrote, read without running what may be in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from crosspair.errors import ModelError

Weights = dict[str, torch.Tensor]

_STATES = ("state_dict", "model_state", "model")  # where a checkpoint keeps its network
_WRAPPERS = ("module.", "model.")  # before every name
_CODE = re.compile(r"GLOBAL (\S+)")  # how PyTorch names what it refuses


@dataclass(frozen=True)
class TensorFile:
    """What a file holds.

    Attributes:
        weights: tensors by name, without the names of wrappers around the network.
        settings: the texts beside them, which may tell by what configuration it was trained.
    """

    weights: Weights
    settings: str = ""


def read_tensors(file: str | Path) -> TensorFile:
    """Read ``.safetensors``, or a state dict of PyTorch, bare or within a checkpoint.

    Raises:
        ModelError: the file cannot be read, or holds what may run code when it is read.
    """
    path = Path(file)
    if not path.is_file():
        raise ModelError(f"weights {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return TensorFile(_unwrapped(load_file(path)))
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a file that is none PyTorch raises whatever it stumbles over
        if code := _CODE.search(str(error)):
            raise ModelError(
                f"{path} holds more than tensors ({code[1]}), which may run code when it is read, "
                "so it is refused; save its state dict alone, best as .safetensors"
            ) from error
        # Of what it did not write, PyTorch tells how to read it with whatever code it holds.
        told = isinstance(error, (OSError, EOFError, SafetensorError, RuntimeError))
        reason = " ".join(str(error).split())[:100] if told else "PyTorch did not write it"
        reason = reason or "it is empty or cut"
        raise ModelError(f"{path}: not a readable file of weights ({reason})") from error
    settings = "\n".join(_texts(found))
    for key in _STATES:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping):
        raise ModelError(f"{path}: holds {type(found).__name__}, not a state dict")
    return TensorFile(_unwrapped(found), settings)


def _unwrapped(found: Mapping[Any, Any]) -> Weights:
    weights = {str(n): value for n, value in found.items() if isinstance(value, torch.Tensor)}
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in weights):
            weights = {name.removeprefix(wrapper): value for name, value in weights.items()}
    return weights


def _texts(found: Any) -> Iterator[str]:
    if isinstance(found, str):
        yield found
    elif isinstance(found, Mapping):
        for value in found.values():
            yield from _texts(value)
