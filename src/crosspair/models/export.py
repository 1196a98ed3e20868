"""Export towers to ONNX or to PyTorch's exported programs, checked against the model."""

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
from crosspair.models.cpd import CPD
from crosspair.models.hub import format_error, preprocessing
from crosspair.models.text import TextEncoder, TransformerAverage, WordAverage
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
    """An exported file.

    Attributes:
        path: the file.
        inputs: names, types and shapes of the inputs; letters are variable dimensions.
        outputs: names, types and shapes of the outputs.
        differences: largest difference to the model for each output and input shape, relative to
            the model's largest value.
    """

    path: Path
    inputs: list[str]
    outputs: list[str]
    differences: dict[str, float]


def export(model: CPD | Classifier, out: str | Path, form: Format = "onnx") -> list[ExportedFile]:
    """Export a model's towers.

    ``out`` is the video tower or the classifier. The text tower, if trained, is written to ``out``
    with ".text" before the suffix. Videos are uint8 (B, 3, T, H, W) RGB of variable B, T, H and W
    and are normalised inside. Texts are token ids and their mask, see `WordAverage.tokenize`.

    Args:
        model: model in float32; moved to the CPU.
        out: file to write.
        form: "onnx", or "torch" for ``torch.export``.

    Raises:
        ModelError: a package is missing, or the exported tower differs from the model.
        RunError: a file cannot be written.
    """
    path = Path(out)
    model = model.to("cpu").eval()
    metadata = {"crosspair": json.dumps(_metadata(model))}
    serialize, load = (_to_onnx, _load_onnx) if form == "onnx" else (_to_program, _load_program)
    files: list[tuple[ExportedFile, bytes]] = []
    for name, tower in _towers(model).items():
        file = path if name == "video" else path.with_suffix(f".{name}{path.suffix}")
        try:
            with _silence():
                content = serialize(tower, metadata)
                run = load(content)
        except ImportError as error:
            raise ModelError(
                f'export requires further packages ({error}). Run: pip install "crosspair[export]"'
            ) from error
        except Exception as error:  # exporters raise many types
            reason = f"{file} is not written: exporting the {name} tower failed"
            if name == "video":
                raise ModelError(f"{reason} ({format_error(error)}).") from error
            logger.warning("%s (%s)", reason, format_error(error))
            continue
        differences = _compare(tower, run, file)
        files.append((ExportedFile(file, tower.inputs, tower.outputs, differences), content))
    for exported, content in files:  # only after all comparisons
        write_atomically(exported.path, content)
    return [exported for exported, _ in files]


@dataclass(frozen=True)
class _Tower:
    """A module to export with its inputs and outputs, dynamic axes and test inputs.

    The first test input is used for tracing.
    """

    module: nn.Module
    inputs: list[str]
    outputs: list[str]
    axes: dict[str, dict[int, Any]]
    trials: Sequence[Tensors]

    @property
    def output_names(self) -> list[str]:
        return [output.split()[0] for output in self.outputs]


class _VideoTower(nn.Module):
    def __init__(self, model: CPD) -> None:
        super().__init__()
        self.model = model
        self.embeds = "video_head" not in model.untrained

    def forward(self, clips: torch.Tensor) -> Tensors:
        if self.embeds:
            return self.model.encode_video(clips)
        # torch.export refuses programs with an unused embedding.
        return (self.model.video_encoder(normalize(clips)),)


class _TextTower(nn.Module):
    def __init__(self, model: CPD) -> None:
        super().__init__()
        self.encoder, self.head = model.text_encoder, model.text_head

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> Tensors:
        features = self.encoder.average(ids, mask)
        with full_precision(features.device):
            return (F.normalize(self.head(features), dim=1),)


class _ClassifierTower(nn.Module):
    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: torch.Tensor) -> Tensors:
        return (self.model(clips),)


def _towers(model: CPD | Classifier) -> dict[str, _Tower]:
    dim = torch.export.Dim
    generator = torch.Generator().manual_seed(0)
    size = max(model.clip.size, MIN_SIZE)
    trials = [
        (torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),)
        for shape in (_TEST_SHAPE, (1, 3, model.clip.frames, size, size))
    ]
    sides = {axis: dim(name, min=MIN_SIZE) for axis, name in ((3, "height"), (4, "width"))}
    axes = {"clips": {0: dim("batch"), 2: dim("frames"), **sides}}
    inputs = ["clips uint8 (B, 3, T, H, W)"]
    if isinstance(model, Classifier):
        outputs = [f"logits float32 (B, {len(model.classes)})"]
        return {"video": _Tower(_ClassifierTower(model), inputs, outputs, axes, trials)}
    video, embedding = _VideoTower(model), f"_embedding float32 (B, {model.head.embedding})"
    outputs = [f"visual_feature float32 (B, {model.video_encoder.features})"]
    outputs += [f"video{embedding}"] if video.embeds else []
    towers = {"video": _Tower(video, inputs, outputs, axes, trials)}
    if "text_encoder" not in model.untrained:
        encoder = model.text_encoder
        longest = encoder.max_tokens if isinstance(encoder, TransformerAverage) else None
        token_axes = {0: dim("batch"), 1: dim("tokens", max=longest)}
        towers["text"] = _Tower(
            _TextTower(model),
            ["ids int64 (B, L)", "mask int64 (B, L)"],
            [f"text{embedding}"],
            {"ids": token_axes, "mask": token_axes},
            [_test_tokens(encoder), encoder.tokenize([_TEST_TEXT])],
        )
    return towers


def _test_tokens(encoder: TextEncoder) -> Tensors:
    """Return arbitrary tokens and the mask of three texts of 5, 2 and 1 tokens."""
    if isinstance(encoder, WordAverage):
        vocabulary = len(encoder.words)
    else:
        vocabulary = encoder.model.config.vocab_size
    ids = torch.arange(15).reshape(3, 5) % vocabulary
    return ids, (torch.arange(5) < torch.tensor([[5], [2], [1]])).long()


def _metadata(model: CPD | Classifier) -> dict[str, Any]:
    classes = {"classes": model.classes} if isinstance(model, Classifier) else {}
    clip = dataclasses.asdict(model.clip)
    return {"model": model.hash, "preprocessing": preprocessing(clip), **classes}


def _trace(tower: _Tower) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(tower.module, tower.trials[0], dynamic_shapes=tower.axes)


def _to_program(tower: _Tower, metadata: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(_trace(tower), buffer, extra_files=dict(metadata))
    return buffer.getvalue()


def _load_program(content: bytes) -> Callable[[Tensors], Tensors]:
    module = torch.export.load(io.BytesIO(content)).module()
    return lambda inputs: module(*inputs)


def _to_onnx(tower: _Tower, metadata: Mapping[str, str]) -> bytes:
    import_module("onnxscript")  # torch.onnx requires it, with a longer error message
    program = torch.onnx.export(
        _trace(tower), tower.trials[0], dynamo=True, verbose=False, dynamic_shapes=tower.axes,
        input_names=list(tower.axes), output_names=tower.output_names,
    )  # fmt: skip
    assert program is not None
    program.model.metadata_props.update(metadata)
    content: bytes = program.model_proto.SerializeToString()
    return content


def _load_onnx(content: bytes) -> Callable[[Tensors], Tensors]:
    onnxruntime = import_module("onnxruntime")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def run(inputs: Tensors) -> Tensors:
        feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(output) for output in session.run(None, feeds))

    return run


@torch.no_grad()
def _compare(tower: _Tower, run: Callable[[Tensors], Tensors], file: Path) -> dict[str, float]:
    """Compare the exported tower with the module on all test inputs."""
    differences = {}
    for inputs in tower.trials:
        shape = " × ".join(map(str, inputs[0].shape))
        outputs = zip(tower.output_names, run(inputs), tower.module(*inputs), strict=True)
        for name, found, expected in outputs:
            difference = float((found - expected).abs().max() / expected.abs().max())
            if not difference <= TOLERANCE:  # also true for NaN
                raise ModelError(
                    f"{file} is not written: {name} for an input of {shape} differs from the model "
                    f"by {difference:.1e}, more than {TOLERANCE:.0e}."
                )
            differences[f"{name} of {shape}"] = difference
    return differences


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the logs and warnings of exporters."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
