"""Pretrained encoders: features compared with transformers' classes, model folders, and errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, VideoMAEForVideoClassification

from crosspair.config import ClassifierConfig, ClipConfig, HeadConfig, TextConfig, VideoConfig
from crosspair.errors import CrosspairError, ModelError, RecipeError, TextError
from crosspair.evaluation.encode import check_text_tower
from crosspair.evaluation.evaluate import randomize_weights
from crosspair.models import (
    CPD,
    Classifier,
    WordAverage,
    build_model,
    load_init_weights,
    load_model,
    load_pretrained_towers,
)
from crosspair.models.hub import weights_hash
from crosspair.models.pretrained import FAMILIES
from crosspair.models.video import load_pretrained_encoder
from crosspair.recipes import recipe_of
from crosspair.video.pixels import normalize
from tests.models.conftest import MEAN, PRETRAINED, STD, TWO_TOWERS, write_pretrained

pytestmark = pytest.mark.usefixtures("one_thread")

# Of a clip of the default format: T / 2 · 2 · 2 patches, and a class token in some.
TOKENS = {"videoprism_vision_model": 4 * 2 * 2, "videomae": 8, "vivit": 9, "timesformer": 17, "vjepa2": 8}
TEXTS = ["a dog is playing", "the cat", "a person with the ball is playing"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a model by kind; tests only read it."""
    folders: dict[str, Path] = {}

    def find(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = write_pretrained(tmp_path_factory.mktemp(kind) / kind, kind)
        return folders[kind]

    return find


def clips(model: CPD) -> torch.Tensor:
    shape = (2, 3, model.clip.frames, model.clip.size, model.clip.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def features_by_hand(kind: str, model: Any, clips: torch.Tensor) -> torch.Tensor:
    """Visual features of uint8 clips, frame by frame for image encoders."""
    mean, std = (torch.tensor(color).view(3, 1, 1, 1) for color in (MEAN, STD))
    frames = ((clips / 255 - mean) / std).permute(0, 2, 1, 3, 4)
    if kind in ("xclip", "videoprism"):
        return model.get_video_features(frames).pooler_output.reshape(2, -1)
    if kind == "vjepa2":
        return model(pixel_values_videos=frames, skip_predictor=True).last_hidden_state.mean(1)
    if kind == "videoprism_vision_model":
        return model(pixel_values_videos=frames).last_hidden_state.mean(1)
    if kind == "vivit":
        return model(pixel_values=frames).pooler_output
    if kind in ("videomae", "timesformer"):
        tokens = model(pixel_values=frames).last_hidden_state
        return tokens.mean(1) if kind == "videomae" else tokens[:, 0]
    if kind == "siglip2":
        each = [F.normalize(model.get_image_features(*naflex_inputs(x)).pooler_output, dim=1) for x in frames.unbind(1)]
    elif kind in TWO_TOWERS:
        each = [F.normalize(model.get_image_features(pixel_values=x).pooler_output, dim=1) for x in frames.unbind(1)]
    else:
        each = [model(pixel_values=x).pooler_output.reshape(2, -1) for x in frames.unbind(1)]
    return torch.stack(each).mean(0)


def naflex_inputs(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patches, mask and shapes of images (N, 3, 32, 32), as of transformers' processor."""
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    patches = torch.stack([torch.from_numpy(convert_image_to_patches(image.numpy(), 16)) for image in images])
    return patches, torch.ones(len(images), 4).long(), torch.tensor([[2, 2]] * len(images))


def texts_by_hand(kind: str, model: Any, folder: Path) -> torch.Tensor:
    padding = "max_length" if kind in ("siglip", "siglip2", "videoprism") else "longest"
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=padding, max_length=16, return_tensors="pt")
    mask = {} if kind in ("siglip", "siglip2") else {"attention_mask": tokens.attention_mask}
    return model.get_text_features(input_ids=tokens.input_ids, **mask).pooler_output


# --- families -----------------------------------------------------------------------------------


def test_every_family_is_tested() -> None:
    assert set(PRETRAINED) == set(FAMILIES)


@pytest.mark.parametrize("kind", PRETRAINED)
@torch.no_grad()
def test_features_are_those_of_transformers(folder: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    source = AutoModel.from_pretrained(folder(kind)).eval()
    model = CPD.from_pretrained(folder(kind))
    assert not model.training
    inputs = clips(model)
    features, embedding = model.encode_video(inputs)
    expected = features_by_hand(kind, source, inputs)
    assert features.shape == expected.shape == (2, model.video_encoder.features)
    assert expected.std(dim=0).max() > 0  # the clips differ
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(embedding, F.normalize(expected, dim=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.encode_video(normalize(inputs))[0], features, rtol=1e-5, atol=1e-5)
    if kind in TWO_TOWERS:
        assert model.untrained == ()
        expected = F.normalize(texts_by_hand(kind, source, folder(kind)), dim=1)
        torch.testing.assert_close(model.encode_text(TEXTS), expected, rtol=1e-5, atol=1e-5)
    else:
        assert model.untrained == ("text_encoder", "text_head")
        with pytest.raises(ModelError, match="text"):
            check_text_tower(model, TEXTS)

    tokens = model.visual_tokens(inputs)
    assert (len(tokens), tokens.shape[2]) == features.shape
    assert tokens.shape[1] == TOKENS.get(kind, 1 if kind in ("xclip", "videoprism") else model.clip.frames)
    pooled = tokens[:, 0] if kind == "timesformer" else tokens.mean(dim=1)
    if kind != "vivit":  # its pooled feature is a layer on the first token
        torch.testing.assert_close(pooled, features, rtol=1e-5, atol=1e-5)

    model.save_pretrained(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert isinstance(again, CPD)
    assert (again.clip, again.video, again.text, again.head) == (model.clip, model.video, model.text, model.head)
    assert (again.untrained, again.hash) == (model.untrained, model.hash)
    scale = getattr(source, "logit_scale", None)  # of the model's own probabilities
    assert model.temperature == again.temperature == (0.07 if scale is None else pytest.approx(1 / scale.exp().item()))
    torch.testing.assert_close(again.encode_video(inputs)[0], features)
    if kind in TWO_TOWERS:
        assert torch.equal(again.encode_text(TEXTS), model.encode_text(TEXTS))


@pytest.mark.parametrize("kind", PRETRAINED)
@torch.no_grad()
def test_without_the_text_tower(folder: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    """A classifier, and a model with another text encoder, are saved without the tokenizer."""
    video = VideoConfig(encoder="pretrained", source=str(folder(kind)))
    encoder, tower = load_pretrained_encoder(video)
    assert tower is None
    classifier = Classifier(["a", "b", "c"], encoder.clip, video, ClassifierConfig(), encoder).eval()
    words = WordAverage(["dog"], torch.ones(1, 4))
    head = HeadConfig(embedding=8, hidden=8)
    model = CPD(words, encoder.clip, video, TextConfig(), head, encoder).eval()
    for each in (classifier, model):
        each.save_pretrained(tmp_path / "model")
        again = load_model(tmp_path / "model")
        assert type(again) is type(each)
        torch.testing.assert_close(again.visual_features(clips(model)), each.visual_features(clips(model)))
    assert classifier(clips(model)).shape == (2, 3)


@torch.no_grad()
def test_fine_tuned_videomae_normalises_the_mean(folder: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(folder("videomae"), tmp_path / "source")
    source = VideoMAEForVideoClassification(AutoConfig.from_pretrained(tmp_path / "source")).eval()
    source.fc_norm.weight.uniform_(0.5, 2)
    source.save_pretrained(tmp_path / "source")
    model = CPD.from_pretrained(tmp_path / "source")
    inputs = clips(model)
    features = model.encode_video(inputs)[0]
    expected = source.fc_norm(features_by_hand("videomae", source.videomae, inputs))
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "model")
    torch.testing.assert_close(CPD.from_pretrained(tmp_path / "model").encode_video(inputs)[0], features)
    assert randomize_weights(model, 0).state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("kind", ["clip", "resnet"])
@torch.no_grad()
def test_random_weights_keep_the_text_tower(folder: Callable[[str], Path], kind: str) -> None:
    model = CPD.from_pretrained(folder(kind))
    random = randomize_weights(model, 0)
    inputs = clips(model)
    assert not torch.allclose(random.encode_video(inputs)[0], model.encode_video(inputs)[0])
    if kind == "clip":
        assert torch.equal(random.encode_text(TEXTS), model.encode_text(TEXTS))


# --- preprocessing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ClipConfig(size=32, frames=2, stride=30, test_scale=36 / 32)),
        ({"size": 40, "crop_size": 32}, ClipConfig(size=32, frames=2, stride=30, test_scale=1.25)),  # old files
        ({"crop_size": None, "crop_pct": 0.8, "size": 48}, ClipConfig(size=48, frames=2, stride=30, test_scale=1.25)),
        ({"do_center_crop": False, "size": {"height": 64, "width": 64}},
         ClipConfig(size=64, frames=2, stride=30, test_scale=1.0)),
    ],
)  # fmt: skip
def test_clip_format_is_that_of_the_preprocessor(tmp_path: Path, changes: dict[str, Any], expected: ClipConfig) -> None:
    write_pretrained(tmp_path, "resnet")
    change(tmp_path / "preprocessor_config.json", **changes)
    assert CPD.from_pretrained(tmp_path).clip == expected


@pytest.mark.parametrize(
    ("settings", "lowest", "highest"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, -1.0, 1.0),
        ({"do_normalize": False}, 0.0, 1.0),  # VideoPrism
        ({"do_normalize": False, "rescale_factor": 1 / 127.5, "offset": True}, -1.0, 1.0),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 127.5, "offset": True}, -3.0, 1.0),
    ],
)
def test_colours_are_scaled_as_by_the_preprocessor(
    tmp_path: Path, settings: dict[str, Any], lowest: float, highest: float
) -> None:
    write_pretrained(tmp_path, "resnet")
    change(tmp_path / "preprocessor_config.json", **settings)
    encoder = CPD.from_pretrained(tmp_path).video_encoder
    pixels = normalize(torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 1, 1, 2), encoder.mean, encoder.std)
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([[lowest, highest]] * 3))


@pytest.mark.parametrize(("name", "value"), [("frames", 8), ("size", 64)])
def test_clips_of_another_format(folder: Callable[[str], Path], name: str, value: int) -> None:
    model = CPD.from_pretrained(folder("videomae"))
    parts = model.text_encoder, ClipConfig(**{"frames": 4, "size": 32, name: value}), model.video, TextConfig()
    with pytest.raises(RecipeError, match=f"clip.{name}"):
        CPD(*parts, HeadConfig(embedding=32, projection="none"), model.video_encoder)


# --- errors -------------------------------------------------------------------------------------


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def refused(source: Path | str, message: str, kind: type[CrosspairError] = ModelError) -> None:
    with pytest.raises(kind, match=message) as caught:
        load_model(source)
    assert "\n" not in str(caught.value)


def test_missing_and_unexpected_weights_are_named(tmp_path: Path) -> None:
    file = write_pretrained(tmp_path, "clip") / "model.safetensors"
    weights = load_file(file)
    extra = {"classifier.weight": torch.zeros(2), "vision_model.embeddings.position_ids": torch.zeros(1, 5).long()}
    save_file({**weights, **extra}, file, {"format": "pt"})
    load_model(tmp_path)  # other parts, and buffers that are no longer saved
    name = "vision_model.encoder.layers.1.mlp.fc1.bias"
    save_file({**weights, name.replace("layers.1", "layers.2"): weights[name] + 1}, file, {"format": "pt"})
    refused(tmp_path, "unexpected.*layers.2.mlp")
    del weights[name]
    save_file(weights, file, {"format": "pt"})
    refused(tmp_path, f"missing.*{name}")


def test_unsupported_architecture(language_model: Path) -> None:
    refused(language_model, "distilbert")
    with pytest.raises(ModelError, match="distilbert"):
        load_pretrained_encoder(VideoConfig(encoder="pretrained", source=str(language_model)))


def test_weights_of_another_class(folder: Callable[[str], Path], tmp_path: Path) -> None:
    for weights, config in (("vit", "dinov2"), ("dinov2", "vit"), ("resnet", "clip")):
        mixed = shutil.copytree(folder(config), tmp_path / (weights + config))
        shutil.copy(folder(weights) / "model.safetensors", mixed)
        refused(mixed, "weights are")
    shutil.copytree(folder("vit"), tmp_path / "other")
    change(tmp_path / "other" / "config.json", intermediate_size=48)
    refused(tmp_path / "other", r"another shape.*layers\.0\.mlp")


def test_text_tower_of_a_model_without_one(folder: Callable[[str], Path]) -> None:
    settings = {"video.encoder": "pretrained", "video.source": str(folder("vit")), "text.encoder": "same"}
    with pytest.raises(ModelError, match=r"text\.encoder=same"):
        build_model(recipe_of({**settings, "clip.size": 32}), [])


@pytest.mark.parametrize("value", [0, "1", None])
def test_invalid_temperature(folder: Callable[[str], Path], tmp_path: Path, value: object) -> None:
    CPD.from_pretrained(folder("clip")).save_pretrained(tmp_path / "model")
    change(tmp_path / "model" / "config.json", temperature=value)
    refused(tmp_path / "model", "temperature")


# --- initial weights ----------------------------------------------------------------------------


def test_initial_weights(folder: Callable[[str], Path], tmp_path: Path) -> None:
    video = VideoConfig(10, encoder="pretrained", source=str(folder("vit")))
    encoder, _ = load_pretrained_encoder(video)
    assert encoder
    model = Classifier(["a", "b"], ClipConfig(size=32), video, ClassifierConfig(), encoder.with_random_weights())
    init = load_init_weights(str(folder("vit")))
    init.load_into(model)
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in init.encoder.items())
    assert weights_hash(model.video_encoder.state_dict()) == weights_hash(encoder.state_dict())
    with pytest.raises(ModelError, match=r"video\.source"):
        load_init_weights(str(folder("dinov2"))).load_into(model)
    plain = Classifier(["a", "b"], ClipConfig(size=32), VideoConfig(10, 4), ClassifierConfig())
    with pytest.raises(ModelError, match=r"video\.encoder=pretrained"):
        init.load_into(plain)
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(ModelError, match=r"video\.encoder=resnet3d"):
        load_init_weights(str(tmp_path / "plain")).load_into(model)
    cpd = CPD.from_pretrained(folder("vit"))
    with torch.no_grad():
        cpd.video_encoder.get_parameter("model.layernorm.bias").fill_(2)
    assert load_pretrained_towers(cpd, str(folder("vit"))) == init.name
    assert weights_hash(cpd.video_encoder.state_dict()) == weights_hash(encoder.state_dict())


def test_missing_files(tmp_path: Path) -> None:
    write_pretrained(tmp_path, "clip")
    for name, kind in (("preprocessor_config.json", ModelError), ("model.safetensors", ModelError)):
        hidden = (tmp_path / name).rename(tmp_path / "hidden")
        refused(tmp_path, name.split(".")[0], kind)
        hidden.rename(tmp_path / name)
    (tmp_path / "tokenizer.json").unlink()
    refused(tmp_path, "token", CrosspairError)


def test_configuration_that_runs_code(tmp_path: Path) -> None:
    write_pretrained(tmp_path, "clip")
    config = json.loads((tmp_path / "config.json").read_text())
    config["_attn_implementation"] = "someone/kernel"
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, "someone/kernel")


@pytest.mark.parametrize(
    ("fault", "message"), [(GatedRepoError, "hf auth login"), (LocalEntryNotFoundError, "hf download")]
)
def test_models_that_cannot_be_downloaded(
    monkeypatch: pytest.MonkeyPatch, fault: type[Exception], message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        error = fault.__new__(fault)
        Exception.__init__(error, "one\ntwo")
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    refused("openai/clip-vit-base-patch32", message)


def test_tokenizer_without_words(tmp_path: Path) -> None:
    write_pretrained(tmp_path, "clip")
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] = {word: i for word, i in content["model"]["vocab"].items() if word.startswith("[")}
    file.write_text(json.dumps(content))
    refused(tmp_path, "tokenizer", TextError)
