"""Import models of other projects: the authors' checkpoints (both towers) and other ResNets.

See `crosspair.models.foreign_resnets` for the supported video encoders.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from crosspair.config import ClipConfig, HeadConfig, TextConfig, VideoConfig
from crosspair.errors import ModelError, TextError
from crosspair.models.cpd import CPD, PARTS
from crosspair.models.foreign_resnets import (
    AUTHORS,
    LAYOUTS,
    TensorFile,
    Weights,
    detect_layout,
    match_state_dict,
    read_clip_config,
    read_encoder,
    read_tensors,
)
from crosspair.models.text import TextEncoder, TransformerAverage, WordAverage
from crosspair.recipes import recipe_of

MAX_TOKENS = 64  # length to which the authors truncate and pad titles
_HEADS = {"video_head": "vis_emb", "text_head": "text_emb"}  # to the authors' names
_BANK = "vis_memory"
_TEXT_ENCODER = "textual_encoder."
_POSITION_IDS = "embeddings.position_ids"  # stored by old versions of transformers


@dataclass(frozen=True)
class ImportedModel:
    """A model imported from another project.

    Attributes:
        model: the model; `CPD.untrained` lists the parts that the file does not contain.
        project: name of the project.
        skipped: one line for each part of the file that was not imported.
    """

    model: CPD
    project: str
    skipped: list[str]


def import_weights(
    file: str | Path, *, tokenizer: str | None = None, clip: Mapping[str, Any] | None = None
) -> ImportedModel:
    """Import a model of another project. The project and the architecture are detected.

    Args:
        file: PyTorch checkpoint or state dict, or ``.safetensors``.
        tokenizer: folder with configuration and tokenizer of the language model, for the authors'
            checkpoints; without it the text tower is skipped.
        clip: fields of `ClipConfig` that the network was trained with, as ``{"frames": 4}``; they
            override those in the file.

    Raises:
        ModelError: the file is unreadable, contains code, or has an unknown format.
        RecipeError: ``clip`` is invalid.
    """
    path = Path(file)
    tensors = read_tensors(path)
    layout = detect_layout(tensors)
    if layout is None:
        raise _unknown_layout_error(tensors, path)
    video, encoder = read_encoder(tensors, layout, path)
    fields = {**dataclasses.asdict(read_clip_config(tensors, layout)), **(clip or {})}
    settings = {f"clip.{key}": value for key, value in fields.items()}
    clip_config = recipe_of(settings, "import-weights").clip
    if layout is AUTHORS:
        return _import_authors(tensors.weights, video, encoder, clip_config, tokenizer, path)
    if tokenizer is not None:
        raise ModelError(f"{path}: {layout.project} has no text tower. Omit --tokenizer.")
    model = _build(_placeholder_text_encoder(), clip_config, video, TextConfig(), HeadConfig())
    model.video_encoder.load_state_dict(encoder)
    model.untrained = PARTS[1:]
    classifier = [name for name in tensors.weights if name.startswith(layout.ignored_prefixes)]
    skipped = [f"the classifier ({', '.join(classifier)})"] if classifier else []
    return ImportedModel(model, layout.project, skipped)


def _import_authors(
    weights: Weights,
    video: VideoConfig,
    encoder: Weights,
    clip: ClipConfig,
    tokenizer: str | None,
    path: Path,
) -> ImportedModel:
    """Import both towers of the authors' checkpoints, or the video tower without a tokenizer."""
    for name in ("vis_emb.weight", "text_emb.0.weight"):
        if name not in weights or weights[name].dim() != 2:
            raise ModelError(f"{path}: {AUTHORS.project}: the matrix {name} is missing.")
    head = HeadConfig(len(weights["vis_emb.weight"]), len(weights["text_emb.0.weight"]))
    skipped = []
    if _BANK in weights:
        skipped.append(f"the memory banks ({len(weights[_BANK]):,} pairs of the authors' corpus)")
    text, text_encoder = TextConfig(), _placeholder_text_encoder()
    untrained: tuple[str, ...] = ("text_encoder", "text_head")
    if tokenizer is None:
        skipped.append(
            "the text tower: the file does not contain its tokenizer. Pass a folder with "
            "DistilBERT's config.json and tokenizer files to --tokenizer."
        )
    else:
        text = TextConfig(encoder="transformer", source=tokenizer, max_tokens=MAX_TOKENS)
        text_encoder, untrained = _read_text_encoder(weights, tokenizer, path), ()
    model = _build(text_encoder, clip, video, text, head)
    model.video_encoder.load_state_dict(encoder)
    model.untrained = untrained
    for name, foreign in _HEADS.items():
        if name in untrained:
            continue
        expected = getattr(model, name).state_dict()
        names = {key: f"{foreign}.{key}" for key in expected}
        found = {n: value for n, value in weights.items() if n.startswith(foreign + ".")}
        state = match_state_dict(expected, names, found, name, path)
        getattr(model, name).load_state_dict(state)
    return ImportedModel(model, AUTHORS.project, skipped)


def _read_text_encoder(weights: Weights, tokenizer: str, path: Path) -> TransformerAverage:
    """Read DistilBERT from an authors' checkpoint, configured by the folder ``tokenizer``.

    The authors' network attends to the padding of each title to 64 tokens, so this is enabled.
    """
    try:
        encoder = TransformerAverage(tokenizer, MAX_TOKENS, weights=False)
    except TextError as error:
        raise ModelError(f"--tokenizer: {error}") from error
    encoder.attend_to_padding()
    expected = encoder.state_dict()
    names = {name: _TEXT_ENCODER + name.removeprefix("model.") for name in expected}
    found = {
        name: value
        for name, value in weights.items()
        if name.startswith(_TEXT_ENCODER) and name != _TEXT_ENCODER + _POSITION_IDS
    }
    what = f"language model of {tokenizer}"
    encoder.load_state_dict(match_state_dict(expected, names, found, what, path))
    return encoder


def _placeholder_text_encoder() -> TextEncoder:
    return WordAverage(["video"], torch.zeros(1, 1))


def _build(
    encoder: TextEncoder, clip: ClipConfig, video: VideoConfig, text: TextConfig, head: HeadConfig
) -> CPD:
    with torch.random.fork_rng():
        torch.manual_seed(0)  # makes untrained parts reproducible
        return CPD(encoder, clip, video, text, head).eval()


def _unknown_layout_error(file: TensorFile, path: Path) -> ModelError:
    two = [n for n in file.weights if "pathway1" in n or "multipathway" in n or "fast_path" in n]
    if two:
        return ModelError(
            f"{path}: a two-pathway network ({two[0]}); only slow-only networks are supported."
        )
    known = ", ".join(dict.fromkeys(layout.foreign_name("stem.0.weight") for layout in LAYOUTS))
    some = ", ".join(sorted(file.weights)[:3]) or "no weights"
    return ModelError(
        f"{path}: unknown weight names ({some}, …). The first convolution must be one of {known}."
    )
