"""Weights of other projects as models of this one.

The authors' released checkpoints, both towers; and as video encoders the slow-only 3D ResNets of
PySlowFast, pytorchvideo and mmaction2, and 2D ResNets that get an extent in time.
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
from crosspair.models.cpd import CPD, PARTS, TextEncoder
from crosspair.models.foreign_resnets import (
    AUTHORS,
    LAYOUTS,
    TensorFile,
    Weights,
    clip_form,
    detect_layout,
    match_state_dict,
    read_encoder,
    read_tensors,
)
from crosspair.models.text import TransformerAverage, WordAverage
from crosspair.recipes import recipe_of

_HEADS = {"video_head": "vis_emb", "text_head": "text_emb"}  # ours, and the authors'
_BANK = "vis_memory"
_ENCODER = "textual_encoder."
_POSITIONS = "embeddings.position_ids"  # a counter that some versions of transformers kept
MAX_TOKENS = 64  # to which the authors cut and fill up titles
_TEXT_TOWER: tuple[str, ...] = ("text_encoder", "text_head")


@dataclass(frozen=True)
class ImportedModel:
    """A model out of another project's file.

    Attributes:
        model: parts that the file has not are as random weights are; `CPD.untrained` names them.
        project: whose file it is.
        left_out: what the file holds besides, and why it is not taken, a line each.
    """

    model: CPD
    project: str
    left_out: list[str]


def import_weights(
    file: str | Path, *, tokenizer: str | None = None, clip: Mapping[str, Any] | None = None
) -> ImportedModel:
    """Read another project's file; whose it is, its depth and its sizes are seen from it.

    Args:
        file: a checkpoint or state dict of PyTorch, or ``.safetensors``.
        tokenizer: of the authors' checkpoints, a folder with configuration and tokenizer of their
            language model; without it the text tower is left out.
        clip: fields of `ClipConfig`, as ``{"frames": 4}``: the form of clips that the network was
            trained on, where the file does not tell.

    Raises:
        ModelError: the file cannot be read, holds code, or is nothing known.
        RecipeError: a key or a value of ``clip`` does not do.
    """
    path = Path(file)
    found = read_tensors(path)
    layout = detect_layout(found)
    if layout is None:
        raise ModelError(_unknown(found, path))
    video, encoder = read_encoder(found, layout, path)
    form = _changed(clip_form(found, layout), clip or {})
    if layout is AUTHORS:
        return _authors_model(found.weights, video, encoder, form, tokenizer, path)
    if tokenizer is not None:
        raise ModelError(
            f"{path}: of {layout.project}, which has no text tower; leave out --tokenizer"
        )
    model = _model(_no_text_encoder(), form, video, TextConfig(), HeadConfig())
    model.video_encoder.load_state_dict(encoder)
    model.untrained = PARTS[1:]
    left = [name for name in found.weights if name.startswith(layout.beside)]
    left_out = [f"the classifier ({', '.join(left)})"] if left else []
    return ImportedModel(model, layout.project, left_out)


def _authors_model(
    weights: Weights,
    video: VideoConfig,
    encoder: Weights,
    clip: ClipConfig,
    tokenizer: str | None,
    path: Path,
) -> ImportedModel:
    """Both towers, or the video tower alone where there is no tokenizer."""
    for name in ("vis_emb.weight", "text_emb.0.weight"):
        if name not in weights or weights[name].dim() != 2:
            raise ModelError(f"{path}: of {AUTHORS.project}, but there is no matrix {name}")
    head = HeadConfig(len(weights["vis_emb.weight"]), len(weights["text_emb.0.weight"]))
    left_out = []
    if _BANK in weights:
        pairs = f"{len(weights[_BANK]):,} pairs"
        left_out.append(f"the memory banks ({pairs}): they belong to the authors' corpus")
    text, text_encoder, untrained = TextConfig(), _no_text_encoder(), _TEXT_TOWER
    if tokenizer is None:
        left_out.append(
            "the text tower: its tokenizer is not in the file; give a folder with DistilBERT's "
            "config.json and tokenizer files by --tokenizer DIR"
        )
    else:
        text = TextConfig(encoder="transformer", source=tokenizer, max_tokens=MAX_TOKENS)
        text_encoder, untrained = _text_encoder(weights, tokenizer, path), ()
    model = _model(text_encoder, clip, video, text, head)
    model.video_encoder.load_state_dict(encoder)
    model.untrained = untrained
    for ours, theirs in _HEADS.items():
        if ours in untrained:
            continue
        part = getattr(model, ours)
        names = {name: f"{theirs}.{name}" for name in part.state_dict()}
        found = {n: value for n, value in weights.items() if n.startswith(theirs + ".")}
        part.load_state_dict(match_state_dict(part.state_dict(), names, found, "as a head", path))
    return ImportedModel(model, AUTHORS.project, left_out)


def _text_encoder(weights: Weights, tokenizer: str, path: Path) -> TransformerAverage:
    """Take DistilBERT out of a file of the authors; ``tokenizer`` says how many heads it has.

    The authors' network attends to the padding that fills each title up to 64 tokens, and their
    weights were trained so; this one then does, too.
    """
    try:
        encoder = TransformerAverage(tokenizer, MAX_TOKENS, weights=False)
    except TextError as error:
        raise ModelError(f"--tokenizer: {error}") from error
    encoder.attend_to_padding()
    expected = encoder.state_dict()
    names = {ours: _ENCODER + ours.removeprefix("model.") for ours in expected}
    found = {
        name: value
        for name, value in weights.items()
        if name.startswith(_ENCODER) and name != _ENCODER + _POSITIONS
    }
    what = f"as the language model that {tokenizer} describes"
    encoder.load_state_dict(match_state_dict(expected, names, found, what, path))
    return encoder


def _no_text_encoder() -> TextEncoder:
    """What stands where a model needs one and there is none."""
    return WordAverage(["video"], torch.zeros(1, 1))


def _model(
    encoder: TextEncoder,
    clip: ClipConfig,
    video: VideoConfig,
    text: TextConfig,
    head: HeadConfig,
) -> CPD:
    with torch.random.fork_rng():
        torch.manual_seed(0)  # so that what is not in the file is always the same
        return CPD(encoder, clip, video, text, head).eval()


def _changed(clip: ClipConfig, settings: Mapping[str, Any]) -> ClipConfig:
    fields = {**dataclasses.asdict(clip), **settings}
    return recipe_of({f"clip.{key}": value for key, value in fields.items()}, "import-weights").clip


def _unknown(file: TensorFile, path: Path) -> str:
    two = [n for n in file.weights if "pathway1" in n or "multipathway" in n or "fast_path" in n]
    if two:
        return f"{path}: a network of two pathways ({two[0]}); only slow-only ones fit"
    known = ", ".join(dict.fromkeys(layout.theirs("stem.0.weight") for layout in LAYOUTS))
    some = ", ".join(sorted(file.weights)[:3]) or "nothing"
    return (
        f"{path}: nobody's names that are known here; a first convolution would be {known}, "
        f"but the file has {some}, …"
    )
