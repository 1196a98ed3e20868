"""Towers as files that other programs run: ONNX, or PyTorch's exported programs.

Nothing is written before it was run beside the model and gave the same.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from crosspair.device import full_precision
from crosspair.errors import ModelError
from crosspair.files import write_atomically
from crosspair.models.classifier import Classifier
from crosspair.models.cpd import CPD, TextEncoder
from crosspair.models.hub import first_line, preprocessing
from crosspair.models.text import TransformerAverage, WordAverage
from crosspair.video.pixels import normalize

Format = Literal["onnx", "torch"]
Tensors = tuple[torch.Tensor, ...]

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of differences to the model, in units of its largest value
SMALLEST = 33  # pixels from which res5 sees more than one, in each direction
_OTHER_FORM = (2, 3, 3, 64, 80)  # of clips: what a model is not meant for, but must do
_TEXT = "a person is playing with a ball"


@dataclass(frozen=True)
class ExportedFile:
    """A file that was written.

    Attributes:
        path: the file.
        inputs: names, types and shapes; letters stand for what may differ from call to call.
        outputs: likewise.
        differences: for each form of input tried and each output, the largest difference to the
            model, in units of the model's largest value.
    """

    path: Path
    inputs: list[str]
    outputs: list[str]
    differences: dict[str, float]


def export(model: CPD | Classifier, out: str | Path, form: Format = "onnx") -> list[ExportedFile]:
    """Write a model's towers: ``out`` is the video tower, or the classifier; ``out`` with ".text"
    before its suffix is the text tower, where the model has one.

    Videos come as uint8 (B, 3, T, H, W), RGB, of any B, T, H and W; they are normalised inside.
    Texts come as token ids and their mask, see `TextEncoder`'s ``tokens``.

    Args:
        model: in float32.
        out: the file.
        form: "onnx", or "torch" for ``torch.export``.

    Raises:
        ModelError: what it needs is not installed, or the file would not give what the model gives.
        RunError: a file cannot be written.
    """
    path = Path(out)
    model = model.to("cpu").eval()
    about = {"crosspair": json.dumps(_about(model))}
    make, load = (_onnx, _load_onnx) if form == "onnx" else (_program, _load_program)
    files: list[tuple[ExportedFile, bytes]] = []
    for name, tower in _towers(model).items():
        file = path if name == "video" else path.with_suffix(f".{name}{path.suffix}")
        try:
            with _quiet():
                content = make(tower, about)
                run = load(content)
        except ImportError as error:
            raise ModelError(
                f'export needs the extra: pip install "crosspair[export]" ({error})'
            ) from error
        except Exception as error:  # exporters raise many kinds
            reason = f"the {name} tower cannot be exported ({first_line(error)})"
            if name == "video":
                raise ModelError(f"{file} is not written: {reason}") from error
            logger.warning("%s is not written: %s", file, reason)
            continue
        differences = _differences(tower, run, file)
        files.append((ExportedFile(file, tower.inputs, tower.outputs, differences), content))
    for exported, content in files:  # all of them, or none
        write_atomically(exported.path, content)
    return [exported for exported, _ in files]


@dataclass(frozen=True)
class _Tower:
    """A network, what goes in and comes out, and what it is tried with: the first is traced."""

    module: nn.Module
    inputs: list[str]
    outputs: list[str]
    axes: dict[str, dict[int, Any]]
    trials: Sequence[Tensors]

    @property
    def names(self) -> list[str]:
        """Of the outputs."""
        return [output.split()[0] for output in self.outputs]


class _VideoTower(nn.Module):
    def __init__(self, model: CPD) -> None:
        super().__init__()
        self.model = model
        self.embeds = "video_head" not in model.untrained

    def forward(self, clips: torch.Tensor) -> Tensors:
        if self.embeds:
            return self.model.encode_video(clips)
        # An embedding that is left unused would leave a program that torch.export refuses.
        return (self.model.video_encoder(normalize(clips)),)


class _TextTower(nn.Module):
    def __init__(self, model: CPD) -> None:
        super().__init__()
        self.encoder, self.head = model.text_encoder, model.text_head

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> Tensors:
        features = self.encoder.average(ids, mask)
        with full_precision(features.device):
            return (F.normalize(self.head(features), dim=1),)


class _ClassTower(nn.Module):
    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: torch.Tensor) -> Tensors:
        return (self.model(clips),)


def _towers(model: CPD | Classifier) -> dict[str, _Tower]:
    dim = torch.export.Dim
    generator = torch.Generator().manual_seed(0)
    size = max(model.clip.size, SMALLEST)
    own = (1, 3, model.clip.frames, size, size)
    trials = [
        (torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),)
        for shape in (_OTHER_FORM, own)
    ]
    small = {axis: dim(name, min=SMALLEST) for axis, name in ((3, "height"), (4, "width"))}
    axes = {"clips": {0: dim("batch"), 2: dim("frames"), **small}}
    inputs = ["clips uint8 (B, 3, T, H, W)"]
    if isinstance(model, Classifier):
        outputs = [f"logits float32 (B, {len(model.classes)})"]
        return {"video": _Tower(_ClassTower(model), inputs, outputs, axes, trials)}
    video, embedding = _VideoTower(model), f"_embedding float32 (B, {model.head.embedding})"
    outputs = [f"visual_feature float32 (B, {model.video_encoder.features})"]
    outputs += [f"video{embedding}"] if video.embeds else []
    towers = {"video": _Tower(video, inputs, outputs, axes, trials)}
    if "text_encoder" not in model.untrained:
        of_tokens = {0: dim("batch"), 1: _token_dim(model.text_encoder)}
        towers["text"] = _Tower(
            _TextTower(model),
            ["ids int64 (B, L)", "mask int64 (B, L)"],
            [f"text{embedding}"],
            {"ids": of_tokens, "mask": of_tokens},
            [_some_tokens(model.text_encoder), model.text_encoder.tokens([_TEXT])],
        )
    return towers


def _token_dim(encoder: TextEncoder) -> Any:
    if isinstance(encoder, TransformerAverage):
        return torch.export.Dim("tokens", max=encoder.max_tokens)
    return torch.export.Dim("tokens")


def _some_tokens(encoder: TextEncoder) -> Tensors:
    """Tokens of three texts, which need not make sense, of 5, 2 and 1."""
    if isinstance(encoder, WordAverage):
        known = len(encoder.words)
    else:
        known = encoder.model.config.vocab_size
    ids = torch.arange(15).reshape(3, 5) % known
    return ids, (torch.arange(5) < torch.tensor([[5], [2], [1]])).long()


def _about(model: CPD | Classifier) -> dict[str, Any]:
    classes = {"classes": model.classes} if isinstance(model, Classifier) else {}
    clip = dataclasses.asdict(model.clip)
    return {"model": model.hash, "preprocessing": preprocessing(clip), **classes}


def _program(tower: _Tower, about: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(_traced(tower), buffer, extra_files=dict(about))
    return buffer.getvalue()


def _traced(tower: _Tower) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(tower.module, tower.trials[0], dynamic_shapes=tower.axes)


def _load_program(content: bytes) -> Callable[[Tensors], Tensors]:
    module = torch.export.load(io.BytesIO(content)).module()
    return lambda given: module(*given)


def _onnx(tower: _Tower, about: Mapping[str, str]) -> bytes:
    import_module("onnxscript")  # what torch.onnx needs, and tells in several lines if it lacks
    program = torch.onnx.export(
        _traced(tower), tower.trials[0], dynamo=True, verbose=False, dynamic_shapes=tower.axes,
        input_names=list(tower.axes), output_names=tower.names,
    )  # fmt: skip
    assert program is not None
    program.model.metadata_props.update(about)
    content: bytes = program.model_proto.SerializeToString()
    return content


def _load_onnx(content: bytes) -> Callable[[Tensors], Tensors]:
    onnxruntime = import_module("onnxruntime")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(given: Tensors) -> Tensors:
        feeds = {name: each.numpy() for name, each in zip(names, given, strict=True)}
        return tuple(torch.from_numpy(each) for each in session.run(None, feeds))

    return run


@torch.no_grad()
def _differences(tower: _Tower, run: Callable[[Tensors], Tensors], file: Path) -> dict[str, float]:
    differences = {}
    for trial in tower.trials:
        form = " × ".join(map(str, trial[0].shape))
        for name, found, expected in zip(
            tower.names, run(trial), tower.module(*trial), strict=True
        ):
            difference = float((found - expected).abs().max() / expected.abs().max())
            if not difference <= TOLERANCE:  # not a number is none, either
                raise ModelError(
                    f"{file} is not written: for an input of {form} its {name} would differ from "
                    f"the model's by {difference:.1e}, more than {TOLERANCE:.0e}"
                )
            differences[f"{name} of {form}"] = difference
    return differences


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters tell their own developers."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
