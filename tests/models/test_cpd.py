"""CPD: the two towers, saving and loading, and invalid model folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from crosspair.errors import ModelError, TextError
from crosspair.models import CPD, WordAverage, build_model, build_text_encoder
from crosspair.models import hub as module
from crosspair.recipes import recipe_of
from crosspair.video.pixels import normalize

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["a dog is playing", "the cat", "a ball and nothing else"]
TINY = {
    "video.depth": 10, "video.width": 8, "head.embedding": 16, "head.hidden": 24, "clip.size": 32,
}  # fmt: skip


def tiny(encoder: str, language_model: Path, **settings: object) -> CPD:
    torch.manual_seed(0)
    if encoder == "transformer":
        source = str(language_model)
        chosen = {**TINY, "text.encoder": "transformer", "text.source": source, **settings}
        return build_model(recipe_of(chosen), TEXTS).eval()
    recipe = recipe_of({**TINY, **settings})
    words = WordAverage(["dog", "cat", "ball", "playing"], torch.randn(4, 12))
    return CPD(words, recipe.clip, recipe.video, recipe.text, recipe.head).eval()


@pytest.fixture
def model(language_model: Path) -> CPD:
    return tiny("words", language_model)


@pytest.fixture
def saved(model: CPD, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def clips(frames: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (3, 3, frames, 32, 32)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def refused(folder: Path | str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        CPD.from_pretrained(folder)
    assert "\n" not in str(caught.value)


# --- the towers ---------------------------------------------------------------------------------


@torch.no_grad()
def test_both_towers_return_unit_vectors(model: CPD) -> None:
    features, video = model.encode_video(clips())
    text = model.encode_text(TEXTS)
    assert features.shape == (3, 64)
    assert video.shape == text.shape == (3, 16)
    torch.testing.assert_close(video.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(3))
    together = model(clips(), TEXTS)
    assert torch.equal(together[0], video)
    assert torch.equal(together[1], text)


@torch.no_grad()
def test_heads_compute_in_float32(model: CPD) -> None:
    text = model.encode_text(TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, video = model.encode_video(clips())
        assert torch.equal(model.encode_text(TEXTS), text)
    assert features.dtype == torch.float32
    expected = torch.nn.functional.normalize(model.video_head(features), dim=1)
    assert torch.equal(video, expected)


@torch.no_grad()
def test_uint8_and_normalised_float_inputs_agree(model: CPD) -> None:
    for of_bytes, of_floats in zip(model.encode_video(clips()), model.encode_video(normalize(clips())), strict=True):
        torch.testing.assert_close(of_bytes, of_floats)


@torch.no_grad()
def test_any_number_of_frames_and_any_size(model: CPD) -> None:
    features, _ = model.encode_video(clips(frames=16))
    assert features.shape == (3, 64)
    assert model.encode_video(clips()[:, :, :, :24, :])[0].shape == (3, 64)
    # A still clip, long enough that its borders in time weigh little, is about as its first half.
    still = clips(1).expand(3, 3, 16, 32, 32)
    longer, shorter = (model.encode_video(still[:, :, :n])[1] for n in (16, 8))
    assert (longer * shorter).sum(dim=1).min() > 0.95


@torch.no_grad()
def test_memory_format_does_not_matter(model: CPD) -> None:
    last = clips().contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(model.encode_video(last), model.encode_video(clips()))


def test_text_head(model: CPD) -> None:
    kinds = [type(part).__name__ for part in model.text_head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert [model.text_head[0].out_features, model.text_head[3].out_features] == [24, 16]


def test_word_vectors_from_titles_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("dog 1 2 3\ncat 3 4 5\n")
    learnt = build_text_encoder(recipe_of({"text.dimensions": 5}).text, ["a dog", "a dog"], seed=0)
    read = build_text_encoder(recipe_of({"text.source": str(tmp_path / "v.txt")}).text, [], seed=0)
    assert (learnt.features, read.features) == (5, 3)


# --- saving and loading -------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["words", "transformer"])
@torch.no_grad()
def test_saved_model_is_bit_identical(tmp_path: Path, language_model: Path, encoder: str) -> None:
    model = tiny(encoder, language_model, **{"clip.stride": 7, "text.column": "title_tree"})
    for values in model.state_dict().values():  # running statistics too
        if values.is_floating_point():
            values += 0.01 * torch.rand_like(values)
    model.save_pretrained(tmp_path / "model")
    again = CPD.from_pretrained(tmp_path / "model")
    assert not again.training
    assert (again.clip, again.video, again.text, again.head) == (
        model.clip, model.video, model.text, model.head,
    )  # fmt: skip
    for before, after in zip(model(clips(), TEXTS), again(clips(), TEXTS), strict=True):
        assert torch.equal(before, after)


def test_files_of_a_model_folder(saved: Path) -> None:
    names = sorted(path.name for path in saved.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors", "words.json"]
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


@torch.no_grad()
def test_model_replaces_another(saved: Path, model: CPD) -> None:
    (saved / "of-old.txt").touch()
    model.video_head.weight.zero_()
    model.save_pretrained(saved)
    assert not CPD.from_pretrained(saved).video_head.weight.any()
    assert not (saved / "of-old.txt").exists()
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("place", ["writing", "renaming"])
@torch.no_grad()
def test_failed_save_keeps_the_old_model(saved: Path, model: CPD, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    before = CPD.from_pretrained(saved)(clips(), TEXTS)
    model.video_head.weight.zero_()
    rename = Path.rename

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def fails_once_moved(path: Path, to: Path) -> Path:
        return full() if path.name.endswith(".partial") else rename(path, to)

    if place == "writing":
        monkeypatch.setattr(module, "save_file", full)
    else:
        monkeypatch.setattr(Path, "rename", fails_once_moved)
    with pytest.raises(ModelError, match="No space left on device"):
        model.save_pretrained(saved)
    monkeypatch.undo()
    for old, now in zip(before, CPD.from_pretrained(saved)(clips(), TEXTS), strict=True):
        assert torch.equal(old, now)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_folder_of_other_files_is_not_replaced(tmp_path: Path, model: CPD) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "file").touch()
    for target in (tmp_path, tmp_path / "file"):
        with pytest.raises(ModelError, match=f"{target} "):
            model.save_pretrained(target)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_save_to_a_relative_path(tmp_path: Path, model: CPD, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("model")
    assert isinstance(CPD.from_pretrained("model"), CPD)


# --- invalid model folders -----------------------------------------------------------------------


def test_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none", f"{tmp_path / 'none'}")


def test_name_unknown_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(name: str) -> str:
        raise LocalEntryNotFoundError("Cannot find the requested files.\nMore on this.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    refused("some/model", r"some/model .*Cannot find")


def test_folder_without_a_configuration(tmp_path: Path) -> None:
    refused(tmp_path, rf"{tmp_path} .*config\.json")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, rf"{tmp_path} .*config\.json")


@pytest.mark.parametrize("content", ["[]", "{}", '{"model_type": "bert"}', '"crosspair-cpd"'])
def test_foreign_configuration(saved: Path, content: str) -> None:
    (saved / "config.json").write_text(content)
    refused(saved, r"config\.json: model_type")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": None}, ""),
        ({"head": {"embeding": 3}}, "head.embeding"),
        ({"head": {"embedding": "x"}}, "head.embedding"),
    ],
)
def test_invalid_configuration(saved: Path, change: dict, message: str) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, **change}))
    refused(saved, f"config.json: .*{message}")
    (saved / "config.json").write_text(json.dumps({"model_type": "crosspair-cpd"}))
    refused(saved, r"config\.json.*clip")


def test_weights_of_another_architecture(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["video"]["width"] = 12
    (saved / "config.json").write_text(json.dumps(config))
    refused(saved, r"model\.safetensors .*size mismatch")
    config["video"].update(width=8, depth=18)
    (saved / "config.json").write_text(json.dumps(config))
    refused(saved, r"model\.safetensors .*Missing key")


def test_missing_weight(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    weights.pop("video_head.bias")
    save_file(weights, saved / "model.safetensors")
    refused(saved, "Missing key.*video_head.bias")


@pytest.mark.parametrize("keep", [0, 5, 500, -1])
def test_truncated_weights(saved: Path, keep: int) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    refused(saved, r"model\.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "words.json"])
def test_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    refused(saved, name)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_damaged_language_model(tmp_path: Path, language_model: Path, name: str) -> None:
    tiny("transformer", language_model).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "language_model" / name).write_text("{")
    with pytest.raises(TextError, match="language_model"):
        CPD.from_pretrained(tmp_path / "model")
