"""Export towers to ONNX or to PyTorch's exported programs, checked against the model."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from crosspair.device import full_precision
from crosspair.errors import ModelError, format_error
from crosspair.files import check_output, write_atomically
from crosspair.models.classifier import Classifier
from crosspair.models.cpd import CPD
from crosspair.models.hub import preprocessing
from crosspair.models.text import TextTower, WordAverage
from crosspair.video.pixels import normalize

Format = Literal["onnx", "torch"]
Tensors = tuple[torch.Tensor, ...]

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # maximum difference to the model, relative to the model's largest value
MIN_SIZE = 33  # pixels; from this size on, the feature map of res5 is larger than 1×1
_TEST_SHAPE = (2, 3, 3, 64, 80)  # clips that differ from the model's format in every dimension
_TEST_TEXT = "a person is playing with a ball"


@dataclass(frozen=True)
class ExportedFile:
    """An exported file, with names, types and shapes of its inputs and outputs; letters are variable dimensions.

    ``differences`` are the largest ones to the model for each output and input shape, relative to the largest value.
    """

    path: Path
    inputs: list[str]
    outputs: list[str]
    differences: dict[str, float]


def export(model: CPD | Classifier, out: str | Path, form: Format = "onnx") -> list[ExportedFile]:
    """Export the video tower or the classifier to ``out``, and a trained text tower with ".text" before the suffix.

    Videos are uint8 (B, 3, T, H, W) RGB of variable B, T, H and W and are normalised inside. Those of a pretrained
    encoder have the size of the model's clips and, unless it is an image encoder, their number of frames. Texts are
    token ids and their mask, see the text encoder's ``tokenize``.

    Args:
        model: model in float32; moved to the CPU.
        out: file to write.
        form: "onnx", or "torch" for ``torch.export``.

    Raises:
        ModelError: the video tower cannot be exported, a package is missing, or the exported tower differs.
        RunError: a file cannot be written.
    """
    path = Path(out)
    model = model.to("cpu").eval()
    about: dict[str, Any] = {"model": model.hash, "preprocessing": preprocessing(model.clip)}
    towers: dict[Path, _Tower] = {path: _VideoTower(model)}
    if isinstance(model, Classifier):
        about["classes"] = model.classes
    elif "text_encoder" not in model.untrained:
        towers[path.with_suffix(f".text{path.suffix}")] = _TextTower(model)
    for file in towers:
        check_output(file, "an exported ONNX model" if form == "onnx" else "an exported PyTorch program")
    serialize, load = (_to_onnx, _load_onnx) if form == "onnx" else (_to_program, _load_program)
    contents: dict[Path, bytes] = {}
    files = []
    for file, tower in towers.items():
        try:
            with _silence():
                contents[file] = serialize(tower, {"crosspair": json.dumps(about)})
                run = load(contents[file])
        except ImportError as error:
            raise ModelError(f'missing packages ({error}). Run: pip install "crosspair[export]"') from error
        except Exception as error:  # exporters raise many types
            message = f"{file} is not written: exporting the tower failed ({format_error(error)})."
            if file == path:
                raise ModelError(message) from error
            logger.warning(message)
            continue
        files.append(ExportedFile(file, tower.inputs, tower.outputs, _compare(tower, run, file)))
    for exported in files:  # only after all comparisons
        write_atomically(exported.path, contents[exported.path])
    return files


class _Tower(nn.Module):
    """A module to export, with its inputs and outputs, dynamic axes and example inputs; the first is traced."""

    inputs: list[str]
    outputs: list[str]
    axes: dict[str, dict[int, Any]]
    examples: list[Tensors]


class _VideoTower(_Tower):
    def __init__(self, model: CPD | Classifier) -> None:
        super().__init__()
        self.model = model
        if isinstance(model, Classifier):
            self.outputs = [f"logits float32 (B, {len(model.classes)})"]
        else:
            self.outputs = [f"visual_feature float32 (B, {model.video_encoder.features})"]
            if "video_head" not in model.untrained:
                self.outputs.append(f"video_embedding float32 (B, {model.head.embedding})")
        axes = {0: Dim("batch"), 2: Dim("frames"), 3: Dim("height", min=MIN_SIZE), 4: Dim("width", min=MIN_SIZE)}
        size = max(model.clip.size, MIN_SIZE)
        fixed: dict[int, int] = {}
        if model.video.encoder == "pretrained":
            fixed = {3: model.clip.size, 4: model.clip.size}
            if not model.video_encoder.image:
                fixed[2] = model.clip.frames
        shapes = [
            [fixed.get(axis, side) for axis, side in enumerate(shape)]
            for shape in (_TEST_SHAPE, (1, 3, model.clip.frames, size, size))
        ]
        self.inputs = [f"clips uint8 ({', '.join(str(fixed.get(axis, name)) for axis, name in enumerate('B3THW'))})"]
        self.axes = {"clips": {axis: dim for axis, dim in axes.items() if axis not in fixed}}
        generator = torch.Generator().manual_seed(0)
        self.examples = [(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),) for shape in shapes]

    def forward(self, clips: torch.Tensor) -> Tensors:
        if isinstance(self.model, Classifier):
            return (self.model(clips),)
        if "video_head" in self.model.untrained:  # torch.export refuses an unused embedding
            encoder = self.model.video_encoder
            return (encoder(normalize(clips, encoder.mean, encoder.std)),)
        return self.model.encode_video(clips)


class _TextTower(_Tower):
    def __init__(self, model: CPD) -> None:
        super().__init__()
        encoder = model.text_encoder
        self.encoder, self.head = encoder, model.text_head
        self.inputs = ["ids int64 (B, L)", "mask int64 (B, L)"]
        self.outputs = [f"text_embedding float32 (B, {model.head.embedding})"]
        if isinstance(encoder, TextTower):
            self.examples = [encoder.tokenize([_TEST_TEXT, "a ball"]), encoder.tokenize(["a ball"])]
            axes: dict[int, Any] = {0: Dim("batch")}
            if encoder.padding is True:  # to the longest text
                axes[1] = Dim("tokens", max=encoder.max_tokens)
            self.axes = dict.fromkeys(("ids", "mask")[: len(self.examples[0])], axes)
            self.inputs = [f"{name} int64 (B, {'L' if 1 in axes else encoder.max_tokens})" for name in self.axes]
            return
        if isinstance(encoder, WordAverage):
            longest, vocabulary = None, len(encoder.words)
        else:
            longest, vocabulary = encoder.max_tokens, encoder.model.config.vocab_size
        axes = {0: Dim("batch"), 1: Dim("tokens", max=longest)}
        self.axes = {"ids": axes, "mask": axes}
        ids = torch.arange(15).reshape(3, 5) % vocabulary
        mask = (torch.arange(5) < torch.tensor([[5], [2], [1]])).long()
        self.examples = [(ids, mask), encoder.tokenize([_TEST_TEXT])]

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> Tensors:
        if isinstance(self.encoder, TextTower):
            features = self.encoder.embed(ids, mask)
        else:
            assert mask is not None
            features = self.encoder.average(ids, mask)
        with full_precision(features.device):
            return (F.normalize(self.head(features), dim=1),)


def _to_program(tower: _Tower, metadata: dict[str, str]) -> bytes:
    """Return the content of a ``torch.export`` file (.pt2)."""
    buffer = io.BytesIO()
    torch.export.save(_trace(tower), buffer, extra_files=metadata)
    return buffer.getvalue()


def _load_program(content: bytes) -> Callable[[Tensors], Tensors]:
    module = torch.export.load(io.BytesIO(content)).module()
    return lambda inputs: module(*inputs)


def _to_onnx(tower: _Tower, metadata: dict[str, str]) -> bytes:
    """Return the content of an ONNX file; ImportError without onnxscript."""
    import_module("onnxscript")  # torch.onnx requires it, with a longer error message
    program = torch.onnx.export(
        _trace(tower), tower.examples[0], dynamo=True, verbose=False, dynamic_shapes=tower.axes,
        input_names=list(tower.axes), output_names=_names(tower.outputs),
    )  # fmt: skip
    assert program is not None
    program.model.metadata_props.update(metadata)
    content: bytes = program.model_proto.SerializeToString()
    return content


def _load_onnx(content: bytes) -> Callable[[Tensors], Tensors]:
    session = import_module("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def run(inputs: Tensors) -> Tensors:
        feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(output) for output in session.run(None, feeds))

    return run


@torch.no_grad()
def _trace(tower: _Tower) -> torch.export.ExportedProgram:
    return torch.export.export(tower, tower.examples[0], dynamic_shapes=tower.axes)


@torch.no_grad()
def _compare(tower: _Tower, run: Callable[[Tensors], Tensors], file: Path) -> dict[str, float]:
    """Return the relative differences to the module on all examples; ModelError above `TOLERANCE`."""
    differences = {}
    for inputs in tower.examples:
        shape = " × ".join(map(str, inputs[0].shape))
        for name, found, expected in zip(_names(tower.outputs), run(inputs), tower(*inputs), strict=True):
            difference = float((found - expected).abs().max() / expected.abs().max())
            if not difference <= TOLERANCE:  # also true for NaN
                raise ModelError(
                    f"{file} is not written: {name} for an input of {shape} differs from the model "
                    f"by {difference:.1e}, more than {TOLERANCE:.0e}."
                )
            differences[f"{name} of {shape}"] = difference
    return differences


def _names(outputs: list[str]) -> list[str]:
    return [output.split()[0] for output in outputs]


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the logs and warnings of exporters."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
