"""Model folders from strangers: refused in one line, without waiting, running code, or filling the memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from crosspair.errors import CrosspairError, ModelError
from crosspair.models import CPD, import_weights, load_init_weights
from tests.models.slowonly import resnet2d
from tests.models.test_models import cpd, with_language_model

pytestmark = pytest.mark.usefixtures("one_thread", "little_memory")

Change = Callable[[Path], object]
NESTED = "[" * 100_000 + "]" * 100_000
CODE = "import pathlib; pathlib.Path('ran').touch()"


@pytest.fixture
def little_memory() -> Iterator[None]:
    """At most 1.5 GB more than this process has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 2**29, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, language_model: Path) -> Path:
    """Models with words and with a language model."""
    folder = tmp_path_factory.mktemp("saved")
    cpd().save_pretrained(folder / "words")
    with_language_model(language_model, 0).save_pretrained(folder / "transformer")
    return folder


def setting(file: str, key: str, value: object) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        section, _, name = key.rpartition(".")
        (content[section] if section else content)[name] = value
        (folder / file).write_text(json.dumps(content))

    return change


def text(file: str, content: str) -> Change:
    return lambda folder: (folder / file).write_text(content)


def pipe(file: str) -> Change:
    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        os.mkfifo(folder / file)

    return change


def weight(name: str, convert: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        save_file({**weights, name: convert(weights[name])}, folder / "model.safetensors")

    return change


def long_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**23) + b"{}" + b" " * 2**23)


def foreign_code(folder: Path) -> None:
    """Put code next to the configuration of a model that needs it."""
    (folder / "language_model" / "code.py").write_text(CODE)
    for key, value in {"model_type": "foreign", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}.items():
        setting("language_model/config.json", key, value)(folder)


WORDS: dict[str, Change] = {
    "pipe": pipe("config.json"),
    "pipe of weights": pipe("model.safetensors"),
    "pipe of words": pipe("words.json"),
    "nested": text("config.json", NESTED),
    "nested words": text("words.json", NESTED),
    "width": setting("config.json", "video.width", 10**9),
    "integer": setting("config.json", "video.width", 10**400),
    "wider": setting("config.json", "video.width", 512),
    "embedding": setting("config.json", "head.embedding", 2**16),
    "frames": setting("config.json", "clip.frames", 10**4),
    "pixels": setting("config.json", "clip.size", 10**4),
    "scale": setting("config.json", "clip.test_scale", 1e6),
    "stride": setting("config.json", "clip.stride", 10**30),
    "dimensions": setting("words.json", "dimensions", 6 * 10**8),
    "negative": setting("words.json", "dimensions", -6),
    "no words": setting("words.json", "words", [1, None]),
    "duplicate words": setting("words.json", "words", ["a", "a"]),
    "more words": setting("words.json", "words", ["a" * 100] * 10**5),
    "header": long_header,
    "nan": weight("video_head.weight", lambda value: value * torch.nan),
    "inf": weight("text_encoder.vectors.weight", lambda value: value / 0),
    "double": weight("video_head.bias", lambda value: value.double() + 1e300),
    "variance": weight("video_encoder.stem.1.running_var", lambda value: -value),
    "integers": weight("video_head.weight", lambda value: value.int()),
    "complex": weight("video_head.weight", lambda value: value.to(torch.complex64)),
}
TRANSFORMER: dict[str, Change] = {
    "code": foreign_code,
    "kernel": setting("language_model/config.json", "_attn_implementation", "someone/kernel"),
    "layers": setting("language_model/config.json", "n_layers", 10**9),
    "more layers": setting("language_model/config.json", "n_layers", 10**4),
    "labels": setting("language_model/config.json", "num_labels", 10**9),
    "vocabulary": setting("language_model/config.json", "vocab_size", 2 * 10**6),
    "pipe": pipe("language_model/tokenizer.json"),
    "optional pipe": pipe("language_model/chat_template.jinja"),
    "nested": text("language_model/tokenizer.json", NESTED),
}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *(pytest.param("words", change, id=name) for name, change in WORDS.items()),
        *(pytest.param("transformer", change, id=f"transformer {name}") for name, change in TRANSFORMER.items()),
    ],
)
def test_hostile_model_folder(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, change: Change
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks the user"))
    folder = Path(shutil.copytree(saved / kind, tmp_path / "model"))
    CPD.from_pretrained(folder)
    change(folder)
    with pytest.raises(CrosspairError, match=f"{folder}") as caught:
        CPD.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_damaged_initial_weights(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved / "words", tmp_path / "model"))
    weight("video_encoder.stem.0.weight", lambda value: value * torch.nan)(folder)
    with pytest.raises(ModelError, match=r"model\.safetensors.*stem"):
        load_init_weights(str(folder))
    weight("video_encoder.stem.0.weight", lambda value: value[:1].nan_to_num())(folder)
    with pytest.raises(ModelError, match=r"stem\.0\.weight"):
        load_init_weights(str(folder)).load_into(cpd())


def test_imported_weights_that_are_not_finite(tmp_path: Path) -> None:
    weights = resnet2d(18)
    weights["bn1.bias"] = weights["bn1.bias"] * torch.nan
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"w\.pth: bn1\.bias"):
        import_weights(tmp_path / "w.pth")
