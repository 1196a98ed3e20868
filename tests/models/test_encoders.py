"""Video encoders that a Python function returns, and which layers of an encoder are trained."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from crosspair.config import ClassifierConfig, ClipConfig, FinetuneRecipe, HeadConfig, Recipe, TextConfig, VideoConfig
from crosspair.errors import ModelError, RecipeError
from crosspair.evaluation.evaluate import randomize_weights
from crosspair.models import CPD, Classifier, ResNet3d, WordAverage, build_model, load_model
from crosspair.models.encoder import ENCODERS_VARIABLE, VideoEncoder
from crosspair.models.pretrained import load_towers
from crosspair.models.video import load_pretrained_encoder, read_resolved_recipe
from crosspair.recipes import read_recipe, recipe_of
from crosspair.video.pixels import normalize
from tests.models.conftest import write_pretrained

pytestmark = pytest.mark.usefixtures("one_thread")

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    features, frames, size, mean, std = 6, {frames}, 32, 0.5, [0.2, 0.25, 0.3]
    image = {image}

    def __init__(self):
        super().__init__()
        conv = nn.Conv2d if self.image else nn.Conv3d
        norm = nn.BatchNorm2d if self.image else nn.BatchNorm3d
        self.stem = nn.Sequential(conv(3, 4, 1), norm(4), nn.ReLU())
        self.layers = nn.Sequential(*(conv(4, 4, 1) for _ in range(3)))
        self.norm = norm(4)
        self.out = nn.Linear(4, 6)

    def forward(self, x):
        return self.out(self.norm(self.layers(self.stem(x))).flatten(2).mean(2))

def build():
    torch.manual_seed(0)
    return Net()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the modules image_net and video_net; without trust in import paths."""
    for name, image, frames in (("image_net", True, None), ("video_net", False, 3)):
        (tmp_path / f"{name}.py").write_text(CODE.format(image=image, frames=frames))
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv(ENCODERS_VARIABLE, "")
    return tmp_path


def distrust() -> None:
    """Act as another process, which has not imported anything."""
    os.environ[ENCODERS_VARIABLE] = ""


def clips(frames: int = 3, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, frames, size, size), dtype=torch.uint8, generator=generator)


def pretrained(source: str, train: str = "all") -> VideoConfig:
    return VideoConfig(encoder="pretrained", source=source, train=train)


# --- encoders of the user -----------------------------------------------------------------------


@pytest.mark.parametrize("source", ["image_net:build", "video_net:build"])
@torch.no_grad()
def test_features_are_those_of_the_module(here: Path, source: str) -> None:
    model = CPD.from_pretrained(source)
    encoder, inputs = model.video_encoder, clips()
    pixels = normalize(inputs, 0.5, (0.2, 0.25, 0.3))
    module = sys.modules[source.split(":")[0]].build().eval()
    if source == "image_net:build":
        expected = torch.stack([module(frames) for frames in pixels.unbind(2)]).mean(0)
        assert model.clip == ClipConfig(size=32, frames=2, stride=30)
    else:
        expected = module(pixels)
        assert model.clip == ClipConfig(size=32, frames=3)
    torch.testing.assert_close(model.encode_video(inputs)[0], expected)
    tokens = model.visual_tokens(inputs)
    assert tokens.shape == (2, 3 if encoder.image else 1, 6)
    torch.testing.assert_close(tokens.mean(dim=1), expected)
    if encoder.image:
        torch.testing.assert_close(tokens[:, 2], module(pixels[:, :, 2]))
    assert (encoder.features, encoder.frames, encoder.size) == (6, module.frames, 32)
    assert model.untrained == ("text_encoder", "text_head")
    random = randomize_weights(model, 7)
    assert random.state_dict().keys() == model.state_dict().keys()
    assert not torch.allclose(random.encode_video(inputs)[0], expected)


@torch.no_grad()
def test_a_model_folder_imports_only_what_the_user_allows(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier(
        ["a", "b"], ClipConfig(size=32, frames=3), pretrained("video_net:build"), ClassifierConfig(),
        load_pretrained_encoder(pretrained("video_net:build"))[0],
    ).eval()  # fmt: skip
    classifier.video_encoder.get_parameter("model.out.bias").fill_(3)
    for model in (classifier, CPD.from_pretrained("video_net:build")):
        model.save_pretrained(here / "model")
        again = load_model(here / "model")  # this process has imported it
        assert again.hash == model.hash
        torch.testing.assert_close(again.visual_features(clips()), model.visual_features(clips()))
        distrust()
        monkeypatch.delitem(sys.modules, "video_net")
        with pytest.raises(ModelError, match=f"{ENCODERS_VARIABLE}=video_net:build"):
            load_model(here / "model")
        assert "video_net" not in sys.modules
        monkeypatch.setenv(ENCODERS_VARIABLE, "other:build, video_net:build")
        assert load_model(here / "model").hash == model.hash


def test_a_model_folder_cannot_name_another_source(here: Path) -> None:
    CPD.from_pretrained("video_net:build").save_pretrained(here / "model")
    config = json.loads((here / "model" / "config.json").read_text())
    for source in ("video_net:Net", str(write_pretrained(here / "clip", "clip")), "openai/clip"):
        config["video"]["source"] = source
        (here / "model" / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError):
            load_model(here / "model")


def test_an_existing_folder_takes_precedence(here: Path) -> None:
    write_pretrained(here / "image_net:build", "resnet")
    assert CPD.from_pretrained("image_net:build").video_encoder.features == 24


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "faulty"),
        ("1 / 0", "division"),
        ("", "build"),
        ("build = 3", "callable"),
        ("build = dict", "dict"),
        ("{CODE}\ndel Net.std", "std is missing"),
        ("{CODE}\nNet.features = 6.0", "features"),
        ("{CODE}\nNet.mean = [0.5, 0.5]", "mean"),
        ("{CODE}\nNet.features = 5", r"\(2, 6\)"),
        ("{CODE}\nNet.forward = None", "fails"),
    ],
)
def test_invalid_modules(here: Path, code: str | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "faulty", raising=False)
    if code is not None:
        (here / "faulty.py").write_text(code.replace("{CODE}", CODE.format(image=False, frames=3)))
    with pytest.raises(ModelError, match=message) as caught:
        load_pretrained_encoder(pretrained("faulty:build"))
    assert "faulty:build" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- clip format --------------------------------------------------------------------------------


def test_the_encoder_determines_the_clip_format_that_a_recipe_omits(here: Path) -> None:
    file = here / "my.yaml"
    file.write_text("clip: {stride: 7, flip: false}\nvideo: {encoder: pretrained, source: 'video_net:build'}\n")
    recipe = read_resolved_recipe(Recipe, str(file))
    assert recipe.clip == ClipConfig(size=32, frames=3, stride=7, flip=False)
    assert recipe == read_recipe(Recipe, str(file), ["clip.size=32", "clip.frames=3"])
    source = write_pretrained(here / "resnet", "resnet")
    recipe = read_resolved_recipe(Recipe, str(file), [f"video.source={source}", "clip.frames=5"])
    assert recipe.clip == ClipConfig(size=32, frames=5, stride=7, test_scale=36 / 32, flip=False)
    for override in ("clip.size=64", "clip.frames=4"):
        with pytest.raises(RecipeError, match=override.split("=")[0]):
            read_resolved_recipe(Recipe, str(file), [override])
    assert read_resolved_recipe(FinetuneRecipe, "laptop-finetune") == read_recipe(FinetuneRecipe, "laptop-finetune")


# --- trained layers -----------------------------------------------------------------------------


def build(encoder: VideoEncoder, train: str) -> CPD:
    clip = ClipConfig(size=encoder.size or 32, frames=encoder.frames or 2)
    text = WordAverage(["video"], torch.zeros(1, 4))
    return CPD(text, clip, pretrained("x", train), TextConfig(), HeadConfig(4, 8), encoder).train()


def changed_by_training(model: CPD | Classifier) -> set[str]:
    """Names of the parameters and buffers of the video tower that a step changes."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD(parameters, 0.1)
    size, frames = model.clip.size, model.clip.frames
    output = model(clips(frames, size)) if isinstance(model, Classifier) else model.encode_video(clips(frames, size))[1]
    (output * torch.linspace(-1, 1, output.shape[1])).sum().backward()
    optimizer.step()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(
    ("train", "trained", "normalised"),
    [
        ("none", set(), set()),
        ("head", {"video_head"}, set()),
        ("last:1", {"video_head", "layers.2", "norm", "out"}, {"norm"}),
        ("last:2", {"video_head", "layers.1", "layers.2", "norm", "out"}, {"norm"}),
        ("all", {"video_head", "stem", "layers.0", "layers.1", "layers.2", "norm", "out"}, {"stem.1", "norm"}),
    ],
)
def test_layers_that_are_trained(here: Path, train: str, trained: set[str], normalised: set[str]) -> None:
    encoder, _ = load_pretrained_encoder(pretrained("video_net:build"))
    assert encoder
    model = build(encoder, train)
    if train == "none":
        assert not any(value.requires_grad for value in (*encoder.parameters(), *model.video_head.parameters()))
        assert not any(module.training for module in (*encoder.modules(), *model.video_head.modules()))
        return
    changed = {name.removeprefix("video_encoder.model.") for name in changed_by_training(model)}
    weights = {name for name in changed if name.endswith(("weight", "bias"))}
    assert {name for name in weights if not name.startswith(tuple(trained))} == set()
    assert all(any(name.startswith(part) for name in weights) for part in trained)
    assert {name.removesuffix(".running_mean") for name in changed - weights if "mean" in name} == normalised
    assert not any(module.training for module in model.eval().modules())


def test_a_classifier_trains_the_same_layers() -> None:
    video = VideoConfig(depth=10, width=4, train="last:1")
    model = Classifier(["a", "b"], ClipConfig(size=32, frames=2), video, ClassifierConfig()).train()
    changed = changed_by_training(model)
    assert {name.split(".")[0] + "." + name.split(".")[1] for name in changed} == {
        "video_encoder.res5", "fc.weight", "fc.bias",
    }  # fmt: skip
    video = VideoConfig(depth=10, width=4, train="last:1")
    frozen = Classifier(["a", "b"], ClipConfig(size=32, frames=2), video, ClassifierConfig(frozen_norm=True)).train()
    assert not any("bn" in name or "running" in name for name in changed_by_training(frozen))


@pytest.mark.parametrize(
    ("kind", "blocks", "last"),
    [
        ("clip", 2, "vision_model.post_layernorm"),
        ("convnext", 4, "layernorm"),
        ("resnet", 4, "encoder.stages.3.layers.0.layer.1.normalization"),
        ("vit", 2, "pooler.dense"),
        ("xclip", 4, "mit.encoder.layers.1.mlp.fc2"),
        ("videoprism_vision_model", 2, "layernorm2"),
        ("vjepa2", 2, "encoder.layernorm"),
    ],
)
def test_blocks_of_pretrained_encoders(tmp_path: Path, kind: str, blocks: int, last: str) -> None:
    encoder, _ = load_towers(write_pretrained(tmp_path, kind))
    names = {module: name for name, module in encoder.named_modules()}
    depths = {names[module].removeprefix("model."): after for module, after in encoder.iter_depths()}
    assert len(depths) == len(names)
    assert len(encoder.blocks) == blocks
    assert depths[last] == 0
    assert max(depths.values()) == blocks
    first = next(name for name, module in encoder.named_modules() if list(module.parameters(recurse=False)))
    assert depths[first.removeprefix("model.")] in (blocks, 0 if first.endswith("layernorm2") else blocks)
    with pytest.raises(RecipeError, match=r"video\.train"):
        build(encoder, f"last:{blocks + 1}")
    build(encoder, f"last:{blocks}")


def test_blocks_of_modules_and_of_the_resnet(here: Path) -> None:
    encoder, _ = load_pretrained_encoder(pretrained("video_net:build"))
    assert encoder
    assert encoder.blocks == list(encoder.get_submodule("model.layers").children())
    encoder.get_submodule("model").blocks = nn.ModuleList(encoder.blocks[1:])
    assert len(encoder.blocks) == 2
    network = ResNet3d(10, 4)
    assert [after for module, after in network.iter_depths() if module in network.blocks] == [3, 2, 1, 0]


@pytest.mark.parametrize("train", ["last:0", "last", "last:-1", "last:1.5", "body", "last:1 "])
def test_invalid_settings(train: str) -> None:
    with pytest.raises(RecipeError, match=r"video\.train"):
        recipe_of({"video.train": train})


def test_frozen_layers_keep_no_activations() -> None:
    settings = {"video.depth": 10, "video.width": 4, "video.train": "last:1", "clip.size": 32, "clip.frames": 2}
    model = build_model(recipe_of({**settings, "text.dimensions": 4}), ["a dog"] * 2).train()
    encoder = model.video_encoder
    assert isinstance(encoder, ResNet3d)
    outputs: dict[str, torch.Tensor] = {}
    for name in ("res4", "res5"):
        encoder.get_submodule(name).register_forward_hook(lambda *args, name=name: outputs.update({name: args[2]}))
    model.encode_video(clips(2, 32))
    assert {name: value.requires_grad for name, value in outputs.items()} == {"res4": False, "res5": True}
