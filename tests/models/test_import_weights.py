"""Weights of other projects: the same outputs as their networks, and errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer

from crosspair.config import ClipConfig, VideoConfig
from crosspair.errors import ModelError, RecipeError, TextError
from crosspair.models import CPD, import_weights, inflate
from tests.models.slowonly import (
    Weights,
    authors,
    bordered,
    features,
    mmaction2,
    pyslowfast,
    pytorchvideo,
    resnet2d,
    slow_only,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# Shorter than the authors' 64 tokens, as long, and longer.
TEXTS = ["a dog is playing", "the cat " * 31, "a person is playing with the ball " * 12]


def clips(count: int = 2, frames: int = 4, side: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (count, 3, frames, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def pixels(clips: torch.Tensor) -> torch.Tensor:
    return (clips / 255 - 0.45) / 0.225


def same(found: torch.Tensor, expected: torch.Tensor, relative: float = 1e-5) -> None:
    assert expected.std() > 0.01
    assert float((found - expected).abs().max() / expected.abs().max()) < relative


def refused(content: object, folder: Path, message: str, **options: object) -> None:
    torch.save(content, folder / "w.pth")
    with pytest.raises(ModelError, match=message) as caught:
        import_weights(folder / "w.pth", **options)
    assert "\n" not in str(caught.value)


# --- the authors' checkpoints -------------------------------------------------------------------


@pytest.mark.parametrize("depth", [18, 50])
@torch.no_grad()
def test_both_towers_match_the_authors_network(depth: int, language_model: Path, tmp_path: Path) -> None:
    checkpoint = authors(depth, 64, language_model)
    torch.save(checkpoint, tmp_path / "cpd.pth")
    imported = import_weights(tmp_path / "cpd.pth", tokenizer=str(language_model))
    model = imported.model
    assert model.video == VideoConfig(depth=depth, width=64, shortcut="A")
    assert (model.clip.size, model.clip.frames, model.clip.stride) == (224, 8, 4)
    assert (model.head.embedding, model.head.hidden, model.untrained) == (6, 12, ())
    weights = {n.removeprefix("module."): v for n, v in checkpoint["state_dict"].items()}

    visual, video = model.encode_video(clips())
    prefix = "visual_encoder."
    encoder = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
    expected = features(encoder, depth, bordered(pixels(clips())))
    same(visual, expected)
    embedded = expected @ weights["vis_emb.weight"].double().T + weights["vis_emb.bias"].double()
    same(video, F.normalize(embedded, dim=1))

    same(model.encode_text(TEXTS), authors_text(weights, language_model))


def authors_text(weights: Weights, language_model: Path) -> torch.Tensor:
    """Pad titles to 64 tokens and attend to all; average without the padding."""
    tokenizer = AutoTokenizer.from_pretrained(str(language_model))
    ids = torch.zeros(len(TEXTS), 64, dtype=torch.long)
    for row, text in enumerate(TEXTS):
        found = torch.tensor(tokenizer.encode(text))[:64]
        ids[row, : len(found)] = found
    mask = (ids != 0).unsqueeze(2)
    hidden = AutoModel.from_pretrained(str(language_model))(ids)[0]
    x = (hidden * mask).sum(1) / mask.sum(1)
    x = F.linear(x, weights["text_emb.0.weight"], weights["text_emb.0.bias"])
    keys = ("running_mean", "running_var", "weight", "bias")
    x = F.batch_norm(x, *(weights[f"text_emb.1.{key}"] for key in keys)).relu()
    return F.normalize(F.linear(x, weights["text_emb.3.weight"], weights["text_emb.3.bias"]), dim=1)


@torch.no_grad()
def test_saved_import_is_bit_identical(language_model: Path, tmp_path: Path) -> None:
    torch.save(authors(18, 4, language_model), tmp_path / "cpd.pth")
    model = import_weights(tmp_path / "cpd.pth", tokenizer=str(language_model)).model
    model.save_pretrained(tmp_path / "model")
    again = CPD.from_pretrained(tmp_path / "model")
    for before, after in zip(model(clips(3), TEXTS), again(clips(3), TEXTS), strict=True):
        assert torch.equal(before, after)
    assert again.hash == model.hash


def test_without_a_tokenizer_only_the_video_tower(language_model: Path, tmp_path: Path) -> None:
    torch.save(authors(18, 4, language_model, pairs=1200), tmp_path / "cpd.pth")
    imported = import_weights(tmp_path / "cpd.pth")
    assert imported.project == "the authors' code"
    assert imported.model.untrained == ("text_encoder", "text_head")
    banks, text = imported.skipped
    assert "1,200 pairs" in banks
    assert "--tokenizer" in text
    whole = import_weights(tmp_path / "cpd.pth", tokenizer=str(language_model)).model
    for part in ("video_encoder", "video_head"):
        ours, theirs = (getattr(each, part).state_dict() for each in (imported.model, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    imported.model.save_pretrained(tmp_path / "model")
    assert CPD.from_pretrained(tmp_path / "model").untrained == ("text_encoder", "text_head")


@torch.no_grad()
def test_fine_tuned_checkpoint_of_the_authors(tmp_path: Path) -> None:
    weights = {**slow_only(18, 4, projection=False), "fc.weight": torch.zeros(101, 32)}
    state = {f"module.{name}": value for name, value in weights.items()}
    torch.save({"state_dict": state}, tmp_path / "ucf.pth")
    imported = import_weights(tmp_path / "ucf.pth")
    assert imported.skipped == ["the classifier (fc.weight)"]
    assert (imported.model.clip.frames, imported.model.video.shortcut) == (16, "A")
    same(imported.model.encode_video(clips())[0], features(weights, 18, bordered(pixels(clips()))))


@pytest.mark.parametrize(
    ("remove", "add"),
    [
        ("visual_encoder.layer3.1.bn2.bias", ""),
        ("", "visual_encoder.fc.weight"),
        ("textual_encoder.embeddings.LayerNorm.bias", ""),
        ("", "textual_encoder.pooler.dense.bias"),
        ("vis_emb.bias", ""),
        ("vis_emb.weight", ""),
    ],
)
def test_missing_and_unexpected_weights_of_the_authors(
    language_model: Path, tmp_path: Path, remove: str, add: str
) -> None:
    checkpoint = authors(18, 4, language_model)
    checkpoint["state_dict"].pop(f"module.{remove}", None)
    if add:
        checkpoint["state_dict"][f"module.{add}"] = torch.zeros(1)
    refused(checkpoint, tmp_path, rf"w\.pth: .*{remove or add}", tokenizer=str(language_model))


def test_tokenizer_of_another_model(language_model: Path, tmp_path: Path) -> None:
    checkpoint = authors(18, 4, language_model)
    name = "module.textual_encoder.embeddings.word_embeddings.weight"
    checkpoint["state_dict"][name] = torch.zeros(99, 32)
    refused(checkpoint, tmp_path, r"word_embeddings.weight .*\(99, 32\)", tokenizer=str(language_model))
    (tmp_path / "empty").mkdir()
    torch.save(checkpoint, tmp_path / "w.pth")
    with pytest.raises(TextError, match=f"{tmp_path}/empty"):
        import_weights(tmp_path / "w.pth", tokenizer=str(tmp_path / "empty"))


# --- slow-only networks of others ---------------------------------------------------------------

OTHERS = {
    "PySlowFast": (pyslowfast, "head.projection.weight", "model_state"),
    "pytorchvideo": (pytorchvideo, "blocks.5.proj.weight", "model_state"),
    "mmaction2": (mmaction2, "cls_head.fc_cls.weight", "state_dict"),
}


def other(project: str, depth: int = 50) -> dict:
    rename, head, key = OTHERS[project]
    return {key: {**rename(slow_only(depth, 4)), head: torch.zeros(400, 128)}, "epoch": 196}


@pytest.mark.parametrize("project", ["PySlowFast", "pytorchvideo"])
@pytest.mark.parametrize("depth", [18, 50, 101])
@torch.no_grad()
def test_features_match_the_network(project: str, depth: int, tmp_path: Path) -> None:
    torch.save(other(project, depth), tmp_path / "w.pyth")
    imported = import_weights(tmp_path / "w.pyth")
    assert imported.project == project
    assert imported.skipped == [f"the classifier ({OTHERS[project][1]})"]
    model = imported.model
    assert model.video == VideoConfig(depth=depth, width=4)
    assert model.clip == ClipConfig(size=224, stride=8)
    assert model.untrained == ("video_head", "text_encoder", "text_head")
    visual, _ = model.encode_video(clips())
    same(visual, features(slow_only(depth, 4), depth, bordered(pixels(clips()))))


@torch.no_grad()
def test_mmaction2_pixel_normalisation(tmp_path: Path) -> None:
    torch.save(other("mmaction2"), tmp_path / "w.pth")
    model = import_weights(tmp_path / "w.pth").model
    mean, std = (torch.tensor(each).view(3, 1, 1, 1) for each in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    # The zero padding of our network corresponds to a grey of 0.45.
    theirs = (bordered(clips().float(), 0.45 * 255) - mean) / std
    same(model.encode_video(clips())[0], features(slow_only(50, 4), 50, theirs))


def test_2d_network_is_inflated(tmp_path: Path) -> None:
    torch.save(resnet2d(18), tmp_path / "w.pth")
    imported = import_weights(tmp_path / "w.pth")
    assert imported.project == "a 2D ResNet"
    assert imported.skipped == ["the classifier (fc.weight, fc.bias)"]
    assert imported.model.untrained == ("video_head", "text_encoder", "text_head")
    video, state = inflate(tmp_path / "w.pth")
    assert imported.model.video == video
    found = imported.model.video_encoder.state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("where", "settings", "expected"),
    [
        ("cfg", "DATA:\n  NUM_FRAMES: 4\n  SAMPLING_RATE: 16\n  TRAIN_CROP_SIZE: 112\n", (4, 16, 112)),
        ("meta", "dict(type='SampleFrames', clip_len=16, frame_interval=4)", (16, 4, 224)),
        ("cfg", "nothing of that", (8, 8, 224)),
    ],
)
def test_clip_format_is_read_from_the_configuration(where: str, settings: str, expected: tuple, tmp_path: Path) -> None:
    given = {"config": settings} if where == "meta" else settings
    torch.save({**other("PySlowFast", 18), where: given}, tmp_path / "w.pyth")
    clip = import_weights(tmp_path / "w.pyth").model.clip
    assert (clip.frames, clip.stride, clip.size) == expected
    clip = import_weights(tmp_path / "w.pyth", clip={"frames": 5}).model.clip
    assert (clip.frames, clip.stride, clip.size) == (5, *expected[1:])
    with pytest.raises(RecipeError, match=r"clip\.size.*3"):
        import_weights(tmp_path / "w.pyth", clip={"size": 3})


# --- unsupported networks and files --------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ("RESNET:\n  STRIDE_1X1: true\n", "RESNET.STRIDE_1X1"),
        ("  SPATIAL_DILATIONS:\n  - - 1\n  - - 1\n  - - 1\n  - - 2\n", "dilated"),
        ("dict(depth=50, style='caffe')", "style='caffe'"),
    ],
)
def test_unsupported_settings(settings: str, what: str, tmp_path: Path) -> None:
    content = {**other("PySlowFast"), "cfg": settings}
    refused(content, tmp_path, rf"w\.pth: .*{what}")


def test_another_structure(tmp_path: Path) -> None:
    weights = other("PySlowFast")["model_state"]
    image = {n: v[:, :, :1] if v.dim() == 5 else v for n, v in weights.items()}
    message = r"s4.pathway0_res0.branch2.a.weight .*\(16, 32, 1, 1, 1\).*\(16, 32, 3, 1, 1\)"
    refused(image, tmp_path, message)
    wide = {**weights, "s2.pathway0_nonlocal0.conv_g.weight": torch.zeros(1)}
    refused(wide, tmp_path, "1 weights .*s2.pathway0_nonlocal0.conv_g.weight")
    fewer = {n: v for n, v in weights.items() if not n.startswith("s5.pathway0_res2")}
    refused(fewer, tmp_path, "PySlowFast .*3, 4, 6, 2 bottlenecks")
    two = {n.replace("pathway0", "pathway1"): v for n, v in weights.items()}
    refused(two, tmp_path, r"w\.pth: .*s1.pathway1_stem")


def test_other_files(tmp_path: Path) -> None:
    refused({"patch_embed.weight": torch.zeros(3)}, tmp_path, r"w\.pth: .*patch_embed.weight")
    refused({}, tmp_path, r"w\.pth")
    refused([torch.zeros(3)], tmp_path, r"w\.pth .*list")
    refused(other("PySlowFast"), tmp_path, "PySlowFast .*--tokenizer", tokenizer="somewhere")
    with pytest.raises(ModelError, match=f"{tmp_path}/none"):
        import_weights(tmp_path / "none")
