"""Model folders, there whole or not at all, here or on the Hugging Face Hub.

``config.json`` with the form of the input, ``model.safetensors``, ``README.md``; and what the text
encoder needs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from crosspair.atomic import write_atomically
from crosspair.errors import ModelError, RecipeError
from crosspair.models.card import CARD_FILE, model_card
from crosspair.recipes import AnyRecipe, make_recipe
from crosspair.video.pixels import MEAN, STD

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
CPD_TYPE, CLASSIFIER_TYPE = "crosspair-cpd", "crosspair-classifier"
KINDS = {CPD_TYPE: "a pre-trained model (CPD)", CLASSIFIER_TYPE: "a fine-tuned classifier"}


def save_folder(
    folder: str | os.PathLike[str],
    model: nn.Module,
    config: Mapping[str, Any],
    also: Callable[[Path], None] | None = None,
) -> None:
    """Write a model folder in one step, in place of the one that may be there already.

    Args:
        folder: where to; a folder that holds no model is not replaced.
        model: whose weights and running statistics are kept.
        config: what ``config.json`` says; ``model_type`` is one of `KINDS`.
        also: writes further files into the folder that it is given.

    Raises:
        ModelError: it cannot be written; what was there stays.
    """
    folder = Path(folder).resolve()  # a link stays one, and leads to the new folder
    config = {**config, "preprocessing": preprocessing(config["clip"])}
    partial = folder.with_name(f".{folder.name}.partial")
    replaced = folder.with_name(f".{folder.name}.replaced")
    if folder.exists() and not _may_be_replaced(folder):
        raise ModelError(f"{folder} is there already and no model folder; give another name")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf-8")
        (partial / CARD_FILE).write_text(model_card(config, folder.parent), encoding="utf-8")
        if also:
            also(partial)
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(weights, partial / WEIGHTS_FILE, metadata={"format": "pt"})
        # safetensors lets nobody but the owner read it; those who may read the rest may read this.
        (partial / WEIGHTS_FILE).chmod((partial / CONFIG_FILE).stat().st_mode)
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        raise ModelError(f"model folder {folder} cannot be written: {error}") from error


def preprocessing(clip: Mapping[str, Any]) -> dict[str, Any]:
    """What becomes of a video before the network sees it: for programs other than this one.

    Args:
        clip: the fields of a `ClipConfig`.
    """
    return {
        "frames": clip["frames"],
        "seconds_between_frames": clip["stride"] / 30,
        "short_side": round(clip["test_scale"] * clip["size"]),
        "size": clip["size"],
        "channels": "RGB",
        "mean": MEAN,
        "std": STD,
    }


def write_card(folder: str | os.PathLike[str], **about: Any) -> Path:
    """Write a model folder's card anew.

    Args:
        folder: of the model.
        about: what the folder does not tell, see `crosspair.models.card.model_card`.

    Raises:
        ModelError: there is no model.
    """
    folder = Path(folder)
    config = read_config(folder, *KINDS)
    try:
        config.setdefault("preprocessing", preprocessing(config["clip"]))  # older folders lack it
        card = model_card(config, folder.absolute().parent, **about)
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder / CONFIG_FILE}: a section is missing ({error})") from error
    write_atomically(folder / CARD_FILE, card)
    return folder / CARD_FILE


def push(folder: str | os.PathLike[str], name: str, *, private: bool = False) -> str:
    """Upload a model folder to the hub, where `local_folder` finds it by its name.

    Args:
        folder: of the model.
        name: "user/model", made if need be.
        private: whether only its owner sees it, if it is made.

    Returns:
        Its address.

    Raises:
        ModelError: there is no model, or the hub refuses it.
    """
    folder = Path(folder)
    read_config(folder, *KINDS)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    try:
        hub = HfApi()
        url = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=url.repo_id, folder_path=folder, ignore_patterns=".*")
    except LocalTokenNotFoundError as error:
        raise ModelError(f"{name}: the hub knows no user here; log in by: hf auth login") from error
    except Exception as error:  # without a network, a kind that is the HTTP client's own
        raise ModelError(f"{name}: the hub did not take {folder} ({first_line(error)})") from error
    return str(url)


def local_folder(source: str | os.PathLike[str]) -> Path:
    """A folder as it is, or that of a model on the hub, fetched if need be.

    Raises:
        ModelError: there is no such folder, and no such model on the hub.
    """
    if Path(source).is_dir():
        return Path(source)
    name = os.fspath(source)
    looks_like_hub = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if not looks_like_hub:
        raise ModelError(f"model folder {name} does not exist")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except Exception as error:  # see `push`
        raise ModelError(
            f"{name}: neither a folder nor a model on the hub ({first_line(error)})"
        ) from error


def read_config(folder: Path, *types: str) -> dict[str, Any]:
    """What ``config.json`` says of a model of one of the given types (of `KINDS`).

    Raises:
        ModelError: there is none, or it is of another type.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} holds no model: no readable {CONFIG_FILE}") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found in types:
        return dict(config)
    if found in KINDS:
        raise ModelError(f"{folder} holds {KINDS[found]}; what is needed is {KINDS[types[0]]}")
    raise ModelError(f"{folder / CONFIG_FILE}: not a configuration of crosspair")


def read_sections(
    kind: type[AnyRecipe], config: Mapping[str, Any], folder: Path, *names: str
) -> AnyRecipe:
    """What a model was built from: sections of its ``config.json`` as those of a recipe.

    Raises:
        ModelError: a section is missing, or does not do.
    """
    where = folder / CONFIG_FILE
    try:
        return make_recipe(
            kind, {f"{name}.{key}": value for name in names for key, value in config[name].items()}
        )
    except (KeyError, AttributeError) as error:
        raise ModelError(f"{where}: a section is missing ({error})") from error
    except RecipeError as error:
        raise ModelError(f"{where}: {error}") from error


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model folder, on the CPU.

    Raises:
        ModelError: the file is missing or damaged.
    """
    try:
        return load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS_FILE}: cannot be read ({error})") from error


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put a folder's weights into the model that its ``config.json`` describes.

    Raises:
        ModelError: they cannot be read, or are of another architecture.
    """
    weights = read_weights(folder)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(
            f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE} beside it: {_fault(error)}"
        ) from error


def weights_hash(weights: Mapping[str, torch.Tensor]) -> str:
    """12 hex digits that tell weights apart, wherever and however they are stored."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def first_line(error: Exception) -> str:
    """What an exception tells, or its kind where it tells nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _may_be_replaced(folder: Path) -> bool:
    return folder.is_dir() and ((folder / CONFIG_FILE).is_file() or not any(folder.iterdir()))


def _fault(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else lines[0]
