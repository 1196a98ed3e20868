"""Options that several verbs have, and checks of them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from crosspair.errors import CrosspairError, RunError

if TYPE_CHECKING:
    from jsonargparse.typing import NonNegativeInt, PositiveInt

    from crosspair.evaluation.windows import Windows

SHARED_HELP = {
    "address": "address of the Ray cluster, for example auto (default: start Ray here)",
    "batch_size": "maximum number of clips per forward pass (default: 32)",
    "class_names": "csv or tsv without header: official class name, readable class name",
    "clips": "clips per video (default: 10)",
    "device": "for example cuda:1 (default: auto)",
    "dir": "folder that is searched recursively for videos",
    "engine": "run on this machine, or on a Ray cluster with a shared file system",
    "init": "initial weights: random, a model folder or Hub name, of which matching parts are loaded, or "
    "imagenet:FILE, the state dict of a 2D ResNet, which is inflated",
    "json": "print JSON",
    "library": "library folder",
    "manifest": "the manifest, or its folder",
    "model": "model folder or Hub name",
    "out": "output folder",
    "precision": "auto (default): bf16 if the hardware supports it",
    "profile": "time the parts of 20 training steps and write a page and a Perfetto trace to profile/ in the run "
    "folder; results do not change",
    "resume": "resume the run in the folder",
    "seed": "random seed (default: 0)",
    "splits": "official splits, such as 1,2,3",
    "stride": "seconds between the starts of windows (default: half a window)",
    "templates": "prompts for class names, one per line, with {} for the name; averaged",
    "title_columns": "column names of the title file: COLUMN=NAME,..., for example video_id=id,title=caption",
    "titles": "csv or tsv: video_id, title; or the authors' tsv without header: id, processed title, original title",
    "val": "fraction of train to hold out as val: whole groups of UCF101, films of HMDB51, else single videos",
    "videos": "files, folders, URLs or manifests (.parquet)",
    "workers": "worker processes (default: number of cores)",
}


class RunOptions(TypedDict, total=False):
    """Options of a training."""

    resume: bool
    profile: bool


class InferenceOptions(TypedDict, total=False):
    """Options of `crosspair.load`."""

    device: str
    precision: Literal["auto", "bf16", "fp32"]
    workers: NonNegativeInt
    batch_size: PositiveInt


class CorpusOptions(TypedDict, total=False):
    """Options of corpora on disk."""

    title_columns: str
    class_names: Path
    val: float


class TitledOptions(CorpusOptions, total=False):
    """Options of corpora whose own lists have no titles."""

    titles: Path


def check_output_path(out: Path, option: str = "--out", example: str = "results.json") -> None:
    """Check that an output file can be written, before its content is computed.

    Raises:
        RunError: ``out`` is a folder, a parent is a file, or the folder is not writable.
    """
    if out.is_dir():
        raise RunError(f"{option} {out} is a folder; give a file, for example {out / example}")
    for folder in out.parents:
        if folder.is_file():
            raise RunError(f"{option} {out}: {folder} is a file, not a folder")
    existing = next(folder for folder in out.absolute().parents if folder.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()  # os.access is always true for root
    except OSError as error:
        raise RunError(f"{option} {out}: {existing} is not writable: {error.strerror}") from error


def parse_splits(text: str) -> list[int]:
    """Parse the value of ``--splits``: numbers of official splits, such as "1,2,3"; "" for none."""
    numbers = text.split(",") if text else []
    if not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise CrosspairError(f"--splits {text!r} is not a list of split numbers such as 1,2,3")
    if len(set(numbers)) < len(numbers):
        raise CrosspairError(f"--splits {text!r} contains a split more than once")
    return [int(number) for number in numbers]


def parse_pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """Parse the values KEY=VALUE of an option."""
    pairs: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or key.strip() in pairs:
            raise CrosspairError(f"{option} {text!r} must have the form KEY=VALUE, with each key once")
        pairs[key.strip()] = value.strip()
    return pairs


def parse_windows(window: float | None, stride: float | None) -> Windows | None:
    """Return the windows of ``--window`` and ``--stride`` (default: half a window); None without ``--window``."""
    from crosspair.evaluation.windows import Windows

    if window is None:
        if stride is not None:
            raise CrosspairError("--stride requires --window")
        return None
    return Windows(window, window / 2 if stride is None else stride)


def check_engine(engine: str, address: str | None) -> None:
    """Check that ``--address`` and ``torchrun`` do not conflict with ``--engine``."""
    if address is not None and engine != "ray":
        raise CrosspairError("--address requires --engine ray")
    if engine == "ray" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CrosspairError("--engine ray starts its own processes; run it without torchrun")


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, ensure_ascii=False, indent=2))
