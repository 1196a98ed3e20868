"""Model folders, on disk and on the Hugging Face Hub, and their model cards.

A model folder contains ``config.json``, ``model.safetensors``, ``README.md`` (the model card) and
the files of the text encoder. It is written atomically.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from crosspair.config import ClipConfig, Recipe
from crosspair.errors import ModelError, RecipeError, RunError, format_error
from crosspair.files import write_atomically
from crosspair.recipes import AnyRecipe, make_recipe
from crosspair.video.pixels import MEAN, STD

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
CPD_TYPE, CLASSIFIER_TYPE = "crosspair-cpd", "crosspair-classifier"
MODEL_TYPES = {CPD_TYPE: "CPD", CLASSIFIER_TYPE: "classifier"}  # to names in messages and runs
UNKNOWN_LICENSE = "unknown"  # the Hub's identifier
# Class and Hub pipeline of each model type.
_CARDS = {CPD_TYPE: ("CPD", "feature-extraction"), CLASSIFIER_TYPE: ("Classifier", "video-classification")}
_CARD_TEMPLATE = Path(__file__).with_name("model_card.md.j2")


class HubModel(nn.Module):
    """Model that is saved to model folders and to the Hugging Face Hub.

    The methods are those of ``huggingface_hub.ModelHubMixin``. The mixin itself is not used: it
    does not replace folders atomically, and does not validate the configuration.

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
        partial = folder.with_name(f".{folder.name}.partial")
        replaced = folder.with_name(f".{folder.name}.replaced")
        is_model_folder = folder.is_dir() and ((folder / CONFIG_FILE).is_file() or not any(folder.iterdir()))
        if folder.exists() and not is_model_folder:
            raise ModelError(f"{folder} exists and is not a model folder. Choose another folder.")
        config = {
            "model_type": self.model_type,
            **{name: asdict(getattr(self, name)) for name in self.sections},
            **self._extra_config(),
            "preprocessing": preprocessing(self.clip),
        }
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
        model = cls._from_config(read_config(folder, cls.model_type), folder)
        weights = read_weights(folder)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            fault = lines[min(1, len(lines) - 1)]  # the first line only names the class
            raise ModelError(
                f"{folder / WEIGHTS_FILE} does not match {CONFIG_FILE} in the same folder: {fault}"
            ) from error
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
        """Build the architecture from ``config.json`` and the text encoder's files; weights are not loaded."""

    def _extra_config(self) -> dict[str, Any]:
        """Return entries of ``config.json`` besides type, sections and preprocessing; none by default."""
        return {}

    def _save_extra_files(self, folder: Path) -> None:
        """Write the text encoder's files to a model folder; does nothing by default."""


def read_config(folder: Path, *types: str) -> dict[str, Any]:
    """Read ``config.json`` and check that the model has one of the given `MODEL_TYPES`.

    Raises:
        ModelError: the file is missing or invalid, or the model has another type.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} is not a model folder: {CONFIG_FILE} is missing or unreadable.") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found not in types:
        raise ModelError(f"{folder / CONFIG_FILE}: model_type is {found}; it must be one of {', '.join(types)}.")
    return dict(config)


def read_sections(kind: type[AnyRecipe], config: Mapping[str, Any], folder: Path, *names: str) -> AnyRecipe:
    """Return a recipe of type ``kind`` with the sections ``names`` of ``config``, and defaults elsewhere.

    Raises:
        ModelError: a section is missing or invalid.
    """
    file = folder / CONFIG_FILE
    try:
        return make_recipe(kind, {f"{name}.{key}": value for name in names for key, value in config[name].items()})
    except (KeyError, AttributeError) as error:
        raise ModelError(f"{file}: a section is missing ({error}).") from error
    except RecipeError as error:
        raise ModelError(f"{file}: {error}") from error


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a model folder to the CPU.

    Raises:
        ModelError: the file is missing or damaged.
    """
    try:
        return load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS_FILE}: missing or damaged ({error}).") from error


def weights_hash(weights: Mapping[str, torch.Tensor]) -> str:
    """Hash the names and values of weights to 12 hex digits, independent of device, file and order."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def preprocessing(clip: ClipConfig) -> dict[str, Any]:
    """Return the preprocessing of test clips as plain values: sampling, sizes in pixels, mean and deviation."""
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
    """Return a local model folder, downloading a model from the Hugging Face Hub if necessary.

    Args:
        source: a folder, or a name on the Hub (``user/model``).

    Raises:
        ModelError: there is no such folder, or the download fails.
    """
    if Path(source).is_dir():
        return Path(source)
    name = os.fspath(source)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"model folder {name} does not exist. Pass a folder, or a Hub name such as user/model.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except Exception as error:  # without a network, an exception of the HTTP client
        raise ModelError(
            f"{name} is neither a folder nor a model on the Hugging Face Hub ({format_error(error)})."
        ) from error


def push(folder: str | os.PathLike[str], name: str, *, private: bool = False) -> str:
    """Upload a model folder to the Hugging Face Hub.

    Args:
        folder: model folder.
        name: repository, ``user/model``; created if it does not exist.
        private: whether a newly created repository is private.

    Returns:
        The URL of the repository.

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
        raise ModelError(
            f"{name}: uploading {folder} to the Hugging Face Hub failed ({format_error(error)})."
        ) from error
    return str(url)


def write_card(
    folder: str | os.PathLike[str], *, results: Sequence[Any] = (), license: str = UNKNOWN_LICENSE, data: str = ""
) -> Path:
    """Write the card of a model folder. It includes the recipe of the run folder around it, if any.

    Args:
        folder: model folder.
        results: `crosspair.evaluation.Result` of this model; those of "trained" also enter the metadata.
        license: Hub identifier of the licence, e.g. "apache-2.0".
        data: description of the training data.

    Returns:
        The path of the card.

    Raises:
        ModelError: the folder is not a model folder.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    folder = Path(folder)
    config = read_config(folder, *MODEL_TYPES)
    clip = read_sections(Recipe, config, folder, "clip", "video").clip
    name, pipeline = _CARDS[config["model_type"]]
    table: dict[tuple[str, ...], dict[str, str]] = {}
    evaluations = []
    for result in results:
        value = f"{result.value:g}" if result.smaller_is_better else f"{100 * result.value:.1f} %"
        row = (result.protocol, result.feature, result.split, result.metric)
        table.setdefault(row, {})[result.of] = value
        if result.of == "trained":
            evaluations.append(EvalResult(
                task_type=pipeline, dataset_type="crosspair-manifest", dataset_name=result.split,
                dataset_split=result.split, metric_type=result.metric, metric_value=result.value,
                metric_name=" ".join(filter(None, (result.protocol, result.feature))),
            ))  # fmt: skip
    metadata = ModelCardData(
        license=license,
        library_name="crosspair",
        pipeline_tag=pipeline,
        tags=["video", "crosspair", "cross-modal-pair-discrimination"],
        model_name=name if evaluations else None,
        eval_results=evaluations or None,
    )
    measured = {result.of for result in results}
    run = folder.absolute().parent
    recipe = run / "recipe.yaml"
    origin = {**({"data": data} if data else {}), **_read_origin(run)}
    if untrained := config.get("untrained"):
        origin["untrained"] = ", ".join(part.replace("_", " ") for part in untrained)
    card = ModelCard.from_template(
        metadata,
        template_path=str(_CARD_TEMPLATE),
        **{**config, "preprocessing": preprocessing(clip), "name": name},
        origin=origin,
        recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
        results=table,
        subjects=[name for name in ("trained", "random weights", "chance") if name in measured],
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
    return origin
