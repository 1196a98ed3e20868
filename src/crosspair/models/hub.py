"""Model folders, there whole or not at all, here or on the Hugging Face Hub.

``config.json`` with the form of the input, ``model.safetensors``, ``README.md``; and what the text
encoder needs.
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
        about: what the folder does not tell, see `crosspair.models.hub.model_card`.

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


CARD_FILE = "README.md"
UNKNOWN = "unknown"  # the hub's word for a licence that nobody told
_KINDS = {
    "crosspair-cpd": (
        "CPD", "feature-extraction",
        "A video network and a text network that end in one space, pre-trained on videos and the "
        "text that came with them by cross-modal pair discrimination "
        "([arXiv:2001.05691](https://arxiv.org/abs/2001.05691)).",
    ),
    "crosspair-classifier": (
        "Classifier", "video-classification", "A video network fine-tuned to tell classes apart.",
    ),
}  # fmt: skip


def model_card(
    config: Mapping[str, Any],
    run: Path,
    *,
    results: Sequence[Any] = (),
    license: str = UNKNOWN,
    data: str = "",
) -> str:
    """The card of a model.

    Args:
        config: its ``config.json``.
        run: the folder that the model's lies in: what a run wrote there about itself is told.
        results: of `crosspair.evaluation.Result`, of this model.
        license: as the hub names it, as "apache-2.0".
        data: what it learnt from, for people, in a sentence.
    """
    kind, task, what = _KINDS[config["model_type"]]
    video = config["video"]
    front = {
        "license": license,
        "library_name": "crosspair",
        "pipeline_tag": task,
        "tags": ["video", "crosspair", "cross-modal-pair-discrimination"],
    }
    network = f"slow-only 3D ResNet-{video['depth']}"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {kind}: {network}\n\n{what}\n",
        f"## Use\n\n```python\n{_usage(kind)}```\n",
        f"## Input\n\n{_table(('', ''), _input(config))}",
        f"## Training\n\n{_training(config, run, data)}",
    ]
    if results:
        parts.append(f"## Results\n\n{_results(results)}")
    if license == UNKNOWN:
        told = "Nobody has told it; ask those who trained the model before you use it."
    else:
        told = license
    return "\n".join([*parts, f"## Licence\n\n{told}\n"])


def _usage(kind: str) -> str:
    if kind == "CPD":
        calls = (
            "features, embeddings = model.encode_video(clips)  # uint8 (B, 3, T, H, W), RGB\n"
            'similarity = embeddings @ model.encode_text(["a dog is playing"]).T\n'
        )
    else:
        kind = "Classifier"
        calls = "probabilities = model(clips).softmax(1)  # uint8 (B, 3, T, H, W), RGB\n"
    return (
        f"from crosspair.models import {kind}\n\n"
        f'model = {kind}.from_pretrained("…")  # this folder, or its name on the hub\n{calls}'
    )


def _input(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    told, clip = config["preprocessing"], config["clip"]
    yield "frames", f"{told['frames']}, {clip['stride']}/30 s apart"
    yield "size", f"short side {told['short_side']}, then {told['size']} × {told['size']} pixels"
    yield "colours", f"RGB; 0 to 1, less {told['mean']}, by {told['std']} (inside for uint8)"
    if "text" in config and "text_encoder" not in config.get("untrained", ()):
        text = config["text"]
        words = "mean of word vectors" if text["encoder"] == "words" else text["source"]
        yield "text", f"{words}; column `{text['column']}`"
    if "classes" in config:
        yield "classes", f"{len(config['classes'])}, see config.json"


def _training(config: Mapping[str, Any], run: Path, data: str) -> str:
    rows = [("data", data)] if data else []
    rows += [(name, str(value)) for name, value in _origin(run).items()]
    untrained = config.get("untrained", ())
    if untrained:
        rows.append(("untrained", ", ".join("the " + part.replace("_", " ") for part in untrained)))
    recipe = run / "recipe.yaml"
    text = _table(("", ""), rows) if rows else "Nothing is known of it.\n"
    if recipe.is_file():
        content = recipe.read_text(encoding="utf-8", errors="replace")
        text += f"\n<details><summary>Recipe</summary>\n\n```yaml\n{content}```\n\n</details>\n"
    return text


def _origin(run: Path) -> dict[str, Any]:
    """What a run's folder tells: hashes of what it was begun with, and how many pairs it used."""
    origin: dict[str, Any] = {}
    try:
        origin |= json.loads((run / "manifest.json").read_text(encoding="utf-8"))
        with (run / "metrics.jsonl").open(encoding="utf-8") as lines:
            origin["pairs to learn from"] = f"{json.loads(lines.readline())['train']:,}"
    except (OSError, ValueError, TypeError, KeyError):
        pass  # a model by itself, beside files of others, or of a run that has just begun
    return origin


def _results(results: Sequence[Any]) -> str:
    """A row for each protocol and metric, with random weights and chance beside it."""
    measured = {result.of for result in results}
    subjects = [each for each in ("trained", "random weights", "chance") if each in measured]
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for result in results:
        where = (result.protocol, result.feature, result.split, result.metric)
        value = f"{result.value:g}" if result.smaller_is_better else f"{100 * result.value:.1f} %"
        rows.setdefault(where, {})[result.of] = value
    head = ["protocol", "feature", "split", "metric", *subjects]
    lines = ([*where, *(of.get(s, "") for s in subjects)] for where, of in rows.items())
    return _table(head, lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    escaped = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    return markdown_rows(head, escaped, names=len(head)) + "\n"
