"""Model folders, on disk and on the Hugging Face Hub, and their model cards.

A model folder contains ``config.json``, ``model.safetensors``, ``README.md`` (the card) and the text encoder's files.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from crosspair.config import ClipConfig, Recipe
from crosspair.errors import ModelError, RecipeError, RunError, format_error
from crosspair.files import check_output, check_regular_file, read_json, write_atomically
from crosspair.recipes import AnyRecipe, make_recipe
from crosspair.video.pixels import MEAN, STD

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
CPD_TYPE, CLASSIFIER_TYPE = "crosspair-cpd", "crosspair-classifier"
MODEL_TYPES = {CPD_TYPE: "CPD", CLASSIFIER_TYPE: "classifier"}  # to names in messages and runs
MAX_HEADER = 2**22  # bytes of the header of a weights file: about 30,000 tensors
UNKNOWN_LICENSE = "unknown"  # the Hub's identifier
# Class and Hub pipeline of each model type.
_CARDS = {CPD_TYPE: ("CPD", "feature-extraction"), CLASSIFIER_TYPE: ("Classifier", "video-classification")}
_FILES = ["*.json", "*.txt", "*.model", "model*.safetensors"]  # to download; others repeat the weights
_is_limited = ContextVar("_is_limited", default=True)
_CARD_TEMPLATE = Path(__file__).with_name("model_card.md.j2")


class HubModel(nn.Module):
    """Model with the methods of ``huggingface_hub.PyTorchModelHubMixin``, but validated, and saved atomically.

    Attributes:
        model_type: one of `MODEL_TYPES`.
        sections: recipe sections that are attributes of the model and stored in ``config.json``.
    """

    model_type: ClassVar[str]
    sections: ClassVar[tuple[str, ...]]
    clip: ClipConfig

    @property
    def hash(self) -> str:
        """12 hex digits that identify the weights; see `weights_hash`."""
        return weights_hash(self.state_dict())

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a model folder atomically, replacing an existing model folder.

        Raises:
            ModelError: the folder contains other files, or writing fails; existing files are kept.
        """
        folder = Path(folder).resolve()  # keeps a symbolic link, and replaces its target
        partial, replaced = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "replaced"))
        is_model_folder = folder.is_dir() and ((folder / CONFIG_FILE).is_file() or not any(folder.iterdir()))
        if folder.exists() and not is_model_folder:
            raise ModelError(f"{folder} exists and is not a model folder. Choose another folder.")
        sections = {name: asdict(getattr(self, name)) for name in self.sections}
        config = {"model_type": self.model_type, **sections, **self._extra_config()}
        config["preprocessing"] = preprocessing(self.clip)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf-8")
            write_card(partial)
            self._save_extra_files(partial)
            weights = {name: value.contiguous() for name, value in self.state_dict().items()}
            save_file(weights, partial / WEIGHTS_FILE, metadata={"format": "pt"})
            # safetensors creates files that only their owner can read; copy the permissions.
            (partial / WEIGHTS_FILE).chmod((partial / CONFIG_FILE).stat().st_mode)
            if folder.exists():
                folder.rename(replaced)
            partial.rename(folder)
            shutil.rmtree(replaced, ignore_errors=True)
        except (OSError, SafetensorError, RunError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            if replaced.exists() and not folder.exists():
                replaced.rename(folder)
            raise ModelError(f"{folder}: failed to write the model folder ({error}).") from error

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str]) -> Self:
        """Load a model from a folder or from the Hugging Face Hub, in eval mode.

        Raises:
            ModelError: the folder does not exist or is not a complete model of this type.
            TextError: the language model cannot be loaded.
        """
        folder = resolve_model_folder(source)
        config = read_config(folder, cls.model_type)
        mismatch = f"{folder / WEIGHTS_FILE} does not match {CONFIG_FILE}"
        with limit_parameters(_read_sizes(folder / WEIGHTS_FILE), mismatch):
            model = cls._from_config(config, folder)
        load_weights(model, read_weights(folder), mismatch)
        return model.eval()

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Upload the model to the repository `name` and return its URL; see `push`."""
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder)
            return push(folder, name, private=private)

    @classmethod
    @abstractmethod
    def _from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        """Build the architecture from a model folder; weights are not loaded."""

    def _extra_config(self) -> dict[str, Any]:
        """Return further entries of ``config.json``; none by default."""
        return {}

    def _save_extra_files(self, folder: Path) -> None:
        """Write further files to a model folder; none by default."""


def read_config(folder: Path, *types: str) -> dict[str, Any]:
    """Read ``config.json``; ModelError if it is invalid or missing, or of a model of another type."""
    try:
        config = read_json(folder / CONFIG_FILE)
    except (OSError, ValueError) as error:
        reason = format_error(error)
        raise ModelError(f"{folder} is not a model folder: {CONFIG_FILE} is missing or invalid ({reason}).") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found not in types:
        raise ModelError(f"{folder / CONFIG_FILE}: model_type is {found}; it must be one of {', '.join(types)}.")
    return dict(config)


def read_sections(kind: type[AnyRecipe], config: Mapping[str, Any], folder: Path, *names: str) -> AnyRecipe:
    """Return a recipe with the given sections of ``config`` and defaults elsewhere; ModelError for an invalid one."""
    try:
        settings = {f"{name}.{key}": value for name in names for key, value in config[name].items()}
        return make_recipe(kind, settings, str(folder / CONFIG_FILE))
    except (KeyError, AttributeError) as error:
        raise ModelError(f"{folder / CONFIG_FILE}: a section is missing ({error}).") from error
    except RecipeError as error:
        raise ModelError(str(error)) from error


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a model folder to the CPU; ModelError if the file is missing, damaged, or not finite."""
    path = folder / WEIGHTS_FILE
    with _weights_errors(path):
        weights = load_file(path)
    check_finite(weights, path)
    return weights


def _read_sizes(path: Path) -> list[int]:
    """Return the number of values of each tensor, from the header alone; ModelError if it is missing or damaged."""
    with _weights_errors(path), safe_open(path, "pt") as file:
        return [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118


@contextmanager
def _weights_errors(path: Path) -> Iterator[None]:
    """Check type and header size of a weights file, and raise errors while it is read as ModelError."""
    try:
        check_regular_file(path)
        with path.open("rb") as file:
            if (size := int.from_bytes(file.read(8), "little")) > MAX_HEADER:
                raise ValueError(f"the header has {size:,} bytes, more than {MAX_HEADER:,}")
        yield
    except (OSError, ValueError, KeyError, RuntimeError, MemoryError, SafetensorError) as error:
        raise ModelError(f"{path}: missing or damaged ({format_error(error)}).") from error


@contextmanager
def limit_parameters(sizes: Sequence[int], message: str) -> Iterator[None]:
    """Raise ModelError when a network that is built in the context exceeds its weights, before memory is written.

    Twice the weights are allowed, because shared parameters may be registered more than once.

    Args:
        sizes: number of values of each weight.
        message: beginning of the error message.
    """
    tensors, values = 2 * len(sizes), 2 * sum(sizes)

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors, values
        if parameter is not None and _is_limited.get():
            tensors, values = tensors - 1, values - parameter.numel()
        if min(tensors, values) < 0:
            raise ModelError(f"{message}: the configuration is of a larger network.")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def allow_any_size() -> Iterator[None]:
    """Suspend `limit_parameters`, for networks whose size is not read from a model folder."""
    token = _is_limited.set(False)
    try:
        yield
    finally:
        _is_limited.reset(token)


def check_finite(weights: Mapping[str, torch.Tensor], source: object) -> None:
    """Raise ModelError if floating-point weights are not finite in float32, or a variance is negative."""
    for name, value in weights.items():
        if value.is_floating_point() and value.numel():
            low, high = torch.aminmax(value.float())
            if not math.isfinite(high - low) or (name.endswith("running_var") and low < 0):
                raise ModelError(f"{source}: {name} has invalid values, from {low:g} to {high:g}.")


def load_weights(module: nn.Module, weights: Mapping[str, torch.Tensor], message: str) -> None:
    """Copy weights into a module; ModelError, which begins with ``message``, if names, shapes or types differ."""
    for name, expected in module.state_dict().items():
        if name in weights and weights[name].is_floating_point() != expected.is_floating_point():
            raise ModelError(f"{message}: {name} is {weights[name].dtype}, not {expected.dtype}.")
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        fault = str(error).splitlines()[1].strip()  # the first line only names the class
        raise ModelError(f"{message}: {fault[:200]}") from error


def weights_hash(weights: Mapping[str, torch.Tensor]) -> str:
    """Hash the names and values of weights to 12 hex digits, independent of device, file and order."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def preprocessing(clip: ClipConfig) -> dict[str, Any]:
    """Return the preprocessing of test clips as plain values."""
    return {
        "frames": clip.frames,
        "seconds_between_frames": clip.stride / 30,
        "short_side": round(clip.test_scale * clip.size),
        "size": clip.size,
        "channels": "RGB",
        "mean": MEAN,
        "std": STD,
    }


def resolve_model_folder(source: str | os.PathLike[str]) -> Path:
    """Return a local model folder; download it if ``source`` is a name on the Hugging Face Hub (``user/model``).

    Raises:
        ModelError: there is no such folder, or the download fails.
    """
    if Path(source).is_dir():
        return Path(source)
    name = os.fspath(source)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"model folder {name} does not exist. Pass a folder, or a Hub name such as user/model.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=_FILES))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(name, allow_patterns="pytorch_model*")
        return folder
    except GatedRepoError as error:
        address = f"https://huggingface.co/{name}"
        raise ModelError(f"{name} requires permission. Request it at {address}, then run: hf auth login") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{name} is not in the cache, and the Hub cannot be reached. With a network, run: hf download {name}"
        ) from error
    except Exception as error:  # without a network, an exception of the HTTP client
        raise ModelError(f"{name} is neither a folder nor a model on the Hub ({format_error(error)}).") from error


def push(folder: str | os.PathLike[str], name: str, *, private: bool = False) -> str:
    """Upload a model folder to the Hugging Face Hub, and return the URL of the repository.

    Args:
        folder: model folder.
        name: repository, ``user/model``; created if it does not exist, private on request.
        private: see ``name``.

    Raises:
        ModelError: the folder is not a model folder, or the upload fails.
    """
    folder = Path(folder)
    read_config(folder, *MODEL_TYPES)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    try:
        hub = HfApi()
        url = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=url.repo_id, folder_path=folder, ignore_patterns=".*")
    except LocalTokenNotFoundError as error:
        raise ModelError(f"{name}: not logged in to the Hugging Face Hub. Run: hf auth login") from error
    except Exception as error:  # without a network, an exception of the HTTP client
        raise ModelError(f"{name}: uploading {folder} to the Hub failed ({format_error(error)}).") from error
    return str(url)


def write_card(
    folder: str | os.PathLike[str], *, results: Sequence[Any] = (), license: str = UNKNOWN_LICENSE, data: str = ""
) -> Path:
    """Write the card of a model folder, with the recipe of the run folder around it, if any; return its path.

    Args:
        folder: model folder.
        results: `crosspair.evaluation.Result` of this model; those of "trained" also enter the metadata.
        license: Hub identifier of the licence, e.g. "apache-2.0".
        data: description of the training data.

    Raises:
        ModelError: the folder is not a model folder.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    folder = Path(folder)
    config = read_config(folder, *MODEL_TYPES)
    check_output(folder / CARD_FILE, "a model card", error_type=ModelError)
    clip = read_sections(Recipe, config, folder, "clip", "video").clip
    name, pipeline = _CARDS[config["model_type"]]
    table: dict[tuple[str, ...], dict[str, str]] = {}
    for result in results:
        row = (result.protocol, result.feature, result.split, result.metric)
        value = f"{result.value:g}" if result.smaller_is_better else f"{100 * result.value:.1f} %"
        table.setdefault(row, {})[result.of] = value
    evaluations = [
        EvalResult(
            task_type=pipeline, dataset_type="crosspair-manifest", dataset_name=result.split,
            dataset_split=result.split, metric_type=result.metric, metric_value=result.value,
            metric_name=f"{result.protocol} {result.feature}".strip(),
        )
        for result in results if result.of == "trained"
    ]  # fmt: skip
    metadata = ModelCardData(
        license=license,
        library_name="crosspair",
        pipeline_tag=pipeline,
        tags=["video", "crosspair", "cross-modal-pair-discrimination"],
        model_name=name if evaluations else None,
        eval_results=evaluations or None,
    )
    recipe = folder.absolute().parent / "recipe.yaml"
    origin = {"data": data, **_read_origin(recipe.parent)}
    origin["untrained"] = ", ".join(part.replace("_", " ") for part in config.get("untrained", ()))
    card = ModelCard.from_template(
        metadata,
        template_path=str(_CARD_TEMPLATE),
        **{**config, "preprocessing": preprocessing(clip), "name": name},
        origin={key: value for key, value in origin.items() if value != ""},
        recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
        results={row: values for row, values in table.items() if "trained" in values},
        subjects=[of for of in ("trained", "random weights", "chance") if any(of in row for row in table.values())],
    )
    write_atomically(folder / CARD_FILE, str(card) + "\n")
    return folder / CARD_FILE


def _read_origin(run: Path) -> dict[str, Any]:
    """Return the entries of a run's ``manifest.json`` and its number of training pairs, as far as readable."""
    origin: dict[str, Any] = {}
    try:
        origin |= json.loads((run / "manifest.json").read_text(encoding="utf-8"))
        with (run / "metrics.jsonl").open(encoding="utf-8") as lines:
            origin["training pairs"] = f"{json.loads(lines.readline())['train']:,}"
    except (OSError, ValueError, TypeError, KeyError):
        pass  # not a run folder, or a run that has just started
    origin.pop("file", None)  # a path of this machine: cards are published
    return origin
