"""Model folders, on disk and on the Hugging Face Hub, and their model cards.

A model folder contains ``config.json``, ``model.safetensors``, ``README.md`` (the model card) and
the files of the text encoder. It is written atomically.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from crosspair.errors import ModelError, RecipeError
from crosspair.files import write_atomically
from crosspair.markdown import markdown_rows
from crosspair.recipes import AnyRecipe, make_recipe
from crosspair.video.pixels import MEAN, STD

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
CPD_TYPE, CLASSIFIER_TYPE = "crosspair-cpd", "crosspair-classifier"
MODEL_TYPES = {CPD_TYPE: "a pre-trained model (CPD)", CLASSIFIER_TYPE: "a fine-tuned classifier"}
UNKNOWN_LICENSE = "unknown"  # the Hub's identifier

# Class name, Hub pipeline, description and example of each model type.
_CARDS = {
    CPD_TYPE: (
        "CPD", "feature-extraction",
        "A video encoder and a text encoder with a common embedding space, pre-trained on videos "
        "and their text by cross-modal pair discrimination "
        "([arXiv:2001.05691](https://arxiv.org/abs/2001.05691)).",
        "features, embeddings = model.encode_video(clips)  # uint8 (B, 3, T, H, W), RGB\n"
        'similarity = embeddings @ model.encode_text(["a dog is playing"]).T',
    ),
    CLASSIFIER_TYPE: (
        "Classifier", "video-classification", "A video encoder fine-tuned for classification.",
        "probabilities = model(clips).softmax(1)  # uint8 (B, 3, T, H, W), RGB",
    ),
}  # fmt: skip


def save_folder(
    folder: str | os.PathLike[str],
    model: nn.Module,
    config: Mapping[str, Any],
    save_extra: Callable[[Path], None] | None = None,
) -> None:
    """Write a model folder atomically, replacing an existing model folder.

    Args:
        folder: destination.
        model: weights and running statistics to save.
        config: content of ``config.json``; ``model_type`` is one of `MODEL_TYPES`.
        save_extra: called with a folder to write further files into.

    Raises:
        ModelError: the folder contains other files, or writing fails; existing files are kept.
    """
    folder = Path(folder).resolve()  # keeps a symbolic link, and replaces its target
    config = {**config, "preprocessing": preprocessing(config["clip"])}
    partial = folder.with_name(f".{folder.name}.partial")
    replaced = folder.with_name(f".{folder.name}.replaced")
    is_model_folder = folder.is_dir() and (
        (folder / CONFIG_FILE).is_file() or not any(folder.iterdir())
    )
    if folder.exists() and not is_model_folder:
        raise ModelError(f"{folder} exists and is not a model folder. Choose another folder.")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf-8")
        (partial / CARD_FILE).write_text(model_card(config, folder.parent), encoding="utf-8")
        if save_extra:
            save_extra(partial)
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(weights, partial / WEIGHTS_FILE, metadata={"format": "pt"})
        # safetensors creates files that only their owner can read; use the permissions of the rest.
        (partial / WEIGHTS_FILE).chmod((partial / CONFIG_FILE).stat().st_mode)
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        raise ModelError(f"{folder}: failed to write the model folder ({error}).") from error


def read_config(folder: Path, *types: str) -> dict[str, Any]:
    """Read ``config.json`` and check that the model has one of the given `MODEL_TYPES`.

    Raises:
        ModelError: the file is missing or invalid, or the model has another type.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} is not a model folder: {CONFIG_FILE} is missing or unreadable."
        ) from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type in types:
        return dict(config)
    if model_type in MODEL_TYPES:
        raise ModelError(
            f"{folder} contains {MODEL_TYPES[model_type]}; {MODEL_TYPES[types[0]]} is required."
        )
    raise ModelError(f"{folder / CONFIG_FILE}: model_type must be one of {', '.join(MODEL_TYPES)}.")


def read_sections(
    kind: type[AnyRecipe], config: Mapping[str, Any], folder: Path, *names: str
) -> AnyRecipe:
    """Return a recipe of type ``kind`` with the sections ``names`` of ``config.json``.

    Raises:
        ModelError: a section is missing or invalid.
    """
    file = folder / CONFIG_FILE
    try:
        return make_recipe(
            kind, {f"{name}.{key}": value for name in names for key, value in config[name].items()}
        )
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


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load the weights of a folder into the model that its ``config.json`` describes.

    Raises:
        ModelError: the file is missing or damaged, or has another architecture.
    """
    weights = read_weights(folder)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        fault = lines[min(1, len(lines) - 1)]  # the first line only names the class
        raise ModelError(
            f"{folder / WEIGHTS_FILE} does not match {CONFIG_FILE} in the same folder: {fault}"
        ) from error


def weights_hash(weights: Mapping[str, torch.Tensor]) -> str:
    """Hash weights to 12 hex digits, independent of their device, file and order."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def preprocessing(clip: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the preprocessing of videos for other programs; ``clip`` is a `ClipConfig`."""
    return {
        "frames": clip["frames"],
        "seconds_between_frames": clip["stride"] / 30,
        "short_side": round(clip["test_scale"] * clip["size"]),
        "size": clip["size"],
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
        raise ModelError(
            f"model folder {name} does not exist. Pass a folder, or a Hub name such as user/model."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except Exception as error:  # without a network, an exception of the HTTP client
        raise ModelError(
            f"{name} is neither a folder nor a model on the Hugging Face Hub "
            f"({format_error(error)})."
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
        raise ModelError(
            f"{name}: not logged in to the Hugging Face Hub. Run: hf auth login"
        ) from error
    except Exception as error:  # without a network, an exception of the HTTP client
        raise ModelError(
            f"{name}: uploading {folder} to the Hugging Face Hub failed ({format_error(error)})."
        ) from error
    return str(url)


def format_error(error: Exception) -> str:
    """Return the first line of an exception's message, or its class name if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def write_card(folder: str | os.PathLike[str], **fields: Any) -> Path:
    """Write the card of a model folder.

    Args:
        folder: model folder.
        fields: ``results``, ``license`` and ``data``; see `model_card`.

    Returns:
        The path of the card.

    Raises:
        ModelError: the folder is not a model folder.
    """
    folder = Path(folder)
    config = read_config(folder, *MODEL_TYPES)
    try:
        config.setdefault("preprocessing", preprocessing(config["clip"]))  # not in old folders
        card = model_card(config, folder.absolute().parent, **fields)
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder / CONFIG_FILE}: a section is missing ({error}).") from error
    write_atomically(folder / CARD_FILE, card)
    return folder / CARD_FILE


def model_card(
    config: Mapping[str, Any],
    run: Path,
    *,
    results: Sequence[Any] = (),
    license: str = UNKNOWN_LICENSE,
    data: str = "",
) -> str:
    """Format the card of a model.

    Args:
        config: content of ``config.json``.
        run: run folder that contains the model folder; its recipe and its origin are included.
        results: `crosspair.evaluation.Result` of this model.
        license: Hub identifier of the licence, e.g. "apache-2.0".
        data: description of the training data.
    """
    name, pipeline, description, example = _CARDS[config["model_type"]]
    example = (
        f"from crosspair.models import {name}\n\n"
        f'model = {name}.from_pretrained("…")  # this folder, or its name on the Hub\n{example}'
    )
    metadata = {
        "license": license,
        "library_name": "crosspair",
        "pipeline_tag": pipeline,
        "tags": ["video", "crosspair", "cross-modal-pair-discrimination"],
    }
    sections = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n",
        f"# {name}: slow-only 3D ResNet-{config['video']['depth']}\n\n{description}\n",
        f"## Use\n\n```python\n{example}\n```\n",
        f"## Input\n\n{_table(('', ''), _input_rows(config))}",
        f"## Training\n\n{_training(config, run, data)}",
    ]
    if results:
        sections.append(f"## Results\n\n{_results(results)}")
    if license == UNKNOWN_LICENSE:
        license = "Unknown. Ask the authors of the model before you use it."
    return "\n".join([*sections, f"## Licence\n\n{license}\n"])


def _input_rows(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    form, clip = config["preprocessing"], config["clip"]
    yield "frames", f"{form['frames']}, {clip['stride']}/30 s apart"
    yield "size", f"short side {form['short_side']}, crop {form['size']} × {form['size']} pixels"
    yield (
        "colours",
        f"RGB in 0 to 1, minus {form['mean']}, divided by {form['std']} (uint8: inside)",
    )
    if "text" in config and "text_encoder" not in config.get("untrained", ()):
        text = config["text"]
        encoder = "mean of word vectors" if text["encoder"] == "words" else text["source"]
        yield "text", f"{encoder}; column `{text['column']}`"
    if "classes" in config:
        yield "classes", f"{len(config['classes'])}, see config.json"


def _training(config: Mapping[str, Any], run: Path, data: str) -> str:
    rows = [("data", data)] if data else []
    rows += [(name, str(value)) for name, value in _origin(run).items()]
    untrained = config.get("untrained", ())
    if untrained:
        rows.append(("untrained", ", ".join(part.replace("_", " ") for part in untrained)))
    recipe = run / "recipe.yaml"
    text = _table(("", ""), rows) if rows else "No information available.\n"
    if recipe.is_file():
        content = recipe.read_text(encoding="utf-8", errors="replace")
        text += f"\n<details><summary>Recipe</summary>\n\n```yaml\n{content}```\n\n</details>\n"
    return text


def _origin(run: Path) -> dict[str, Any]:
    """Read the hashes of a run's inputs and its number of training pairs, as far as available."""
    origin: dict[str, Any] = {}
    try:
        origin |= json.loads((run / "manifest.json").read_text(encoding="utf-8"))
        with (run / "metrics.jsonl").open(encoding="utf-8") as lines:
            origin["training pairs"] = f"{json.loads(lines.readline())['train']:,}"
    except (OSError, ValueError, TypeError, KeyError):
        pass  # not a run folder, or a run that has just started
    return origin


def _results(results: Sequence[Any]) -> str:
    """Format a row per protocol and metric, with a column per subject."""
    measured = {result.of for result in results}
    subjects = [name for name in ("trained", "random weights", "chance") if name in measured]
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for result in results:
        key = (result.protocol, result.feature, result.split, result.metric)
        value = f"{result.value:g}" if result.smaller_is_better else f"{100 * result.value:.1f} %"
        rows.setdefault(key, {})[result.of] = value
    head = ["protocol", "feature", "split", "metric", *subjects]
    return _table(
        head, ([*key, *(row.get(name, "") for name in subjects)] for key, row in rows.items())
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    escaped = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    return markdown_rows(head, escaped, names=len(head)) + "\n"
