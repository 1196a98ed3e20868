"""Model folders: saving, loading, invalid ones, the model card, and the Hugging Face Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from safetensors.torch import load_file, save_file

from crosspair.config import ClassifierConfig, ClipConfig
from crosspair.errors import CrosspairError, ModelError, TextError
from crosspair.evaluation import Result
from crosspair.models import CPD, Classifier, load_init_weights, load_model
from crosspair.models import hub as module
from crosspair.models.hub import push, write_card
from tests.models.test_models import TEXTS, classifier, clips, cpd, with_language_model

pytestmark = pytest.mark.usefixtures("one_thread")

FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture
def model() -> CPD:
    return cpd(**{"clip.frames": 5, "clip.stride": 6, "clip.size": 112, "text.column": "title_tree"})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("clip:\n  size: 32\n")
    inputs = {"manifest": "0123456789ab", "init": "random", "file": "/home/me/pairs.parquet"}
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(inputs))
    (tmp_path / "run" / "metrics.jsonl").write_text('{"kind": "pairs", "train": 1234, "val": 9}\n{"kind": "x"}\n')
    return tmp_path / "run"


@pytest.fixture
def folder(run: Path, model: CPD) -> Path:
    """A model in its run's folder."""
    model.save_pretrained(run / "model")
    return run / "model"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(folder: Path | str, message: str, kind: type = CPD, error: type = ModelError) -> None:
    with pytest.raises(error, match=message) as caught:
        kind.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# --- saving and loading -------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["words", "transformer"])
@torch.no_grad()
def test_saved_model_is_bit_identical(tmp_path: Path, language_model: Path, model: CPD, encoder: str) -> None:
    if encoder == "transformer":
        model = with_language_model(language_model, 0).eval()
    for values in model.state_dict().values():  # running statistics too
        if values.is_floating_point():
            values += 0.01 * torch.rand_like(values)
    model.save_pretrained(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert isinstance(again, CPD)
    assert not again.training
    assert (again.clip, again.video, again.text, again.head) == (model.clip, model.video, model.text, model.head)
    for before, after in zip(model(clips(), TEXTS), again(clips(), TEXTS), strict=True):
        assert torch.equal(before, after)


@torch.no_grad()
def test_saved_classifier_is_bit_identical(tmp_path: Path) -> None:
    model = classifier(["über", "b/c"], **{"classifier.frozen_norm": True, "clip.frames": 5}).eval()
    model.save_pretrained(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert isinstance(again, Classifier)
    assert again.classes == ["über", "b/c"]
    assert again.classifier == ClassifierConfig(frozen_norm=True)
    assert (again.clip, again.video, again.hash) == (model.clip, model.video, model.hash)
    assert torch.equal(again(clips()), model(clips()))
    assert names(tmp_path / "model") == FILES


def test_contents_of_a_model_folder(folder: Path) -> None:
    assert names(folder) == [*FILES, "words.json"]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    config = json.loads((folder / "config.json").read_text())
    assert list(config) == ["model_type", "clip", "video", "text", "head", "untrained", "temperature", "preprocessing"]
    assert config["preprocessing"] == {
        "frames": 5, "seconds_between_frames": 0.2, "short_side": 128, "size": 112,
        "channels": "RGB", "mean": 0.45, "std": 0.225,
    }  # fmt: skip
    assert ClipConfig(**config["clip"]).stride == 6


@torch.no_grad()
def test_model_replaces_another(tmp_path: Path, model: CPD, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    model.save_pretrained("model")
    (tmp_path / "disk" / "of-old.txt").touch()
    model.video_head.weight.zero_()
    model.save_pretrained("model")
    assert not CPD.from_pretrained("model").video_head.weight.any()
    assert names(tmp_path / "model") == [*FILES, "words.json"]
    assert (tmp_path / "model").is_symlink()
    assert names(tmp_path) == ["disk", "model"]


@pytest.mark.parametrize("place", ["writing", "renaming"])
@torch.no_grad()
def test_failed_save_keeps_the_old_model(folder: Path, model: CPD, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    before, beside = CPD.from_pretrained(folder).hash, names(folder.parent)
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
        model.save_pretrained(folder)
    monkeypatch.undo()
    assert CPD.from_pretrained(folder).hash == before
    assert names(folder.parent) == beside


def test_folder_of_other_files_is_not_replaced(tmp_path: Path, model: CPD) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for target in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ModelError, match=f"{target} "):
            model.save_pretrained(target)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


# --- invalid model folders -----------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model_type": "bert"}', '"crosspair-cpd"'])
def test_foreign_configuration(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    refused(folder, r"config\.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": None}, ""),
        ({"head": {"embeding": 3}}, "head.embeding"),
        ({"head": {"embedding": "x"}}, "head.embedding"),
        ({"video": {"depth": 11}}, "video.depth"),
    ],
)
def test_invalid_configuration(folder: Path, change: dict, message: str) -> None:
    change_config(folder, **change)
    refused(folder, rf"config\.json: .*{message}")
    if "video" in change:
        with pytest.raises(ModelError, match=rf"config\.json: .*{message}"):
            load_init_weights(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "crosspair-cpd"}))
    refused(folder, r"config\.json.*clip")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 3}, r"config\.json.* classes"),
        ({"classes": [1, 2]}, r"config\.json.* classes"),
        ({"classifier": {"dropout": 2}}, "classifier.dropout"),
        ({"classes": ["a", "b"]}, r"model\.safetensors.* fc"),
        ({"model_type": "crosspair-cpd"}, r"config\.json: model_type"),
    ],
)
def test_invalid_configuration_of_a_classifier(tmp_path: Path, change: dict, message: str) -> None:
    classifier().save_pretrained(tmp_path)
    change_config(tmp_path, **change)
    refused(tmp_path, message, Classifier)


def test_weights_of_another_architecture(folder: Path) -> None:
    change_config(folder, video={"depth": 10, "width": 12})
    refused(folder, r"model\.safetensors .*config\.json")
    change_config(folder, video={"depth": 10, "width": 4})
    weights = load_file(folder / "model.safetensors")
    weights.pop("video_head.bias")
    save_file(weights, folder / "model.safetensors")
    refused(folder, "Missing key.*video_head.bias")


@pytest.mark.parametrize("keep", [0, 5, 500, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    refused(folder, r"model\.safetensors")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "words.json"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, name)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_damaged_language_model(tmp_path: Path, language_model: Path, name: str) -> None:
    with_language_model(language_model, 0).save_pretrained(tmp_path)
    (tmp_path / "language_model" / name).write_text("{")
    refused(tmp_path, "language_model", error=TextError)


# --- model cards --------------------------------------------------------------------------------


def card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def front(folder: Path) -> dict:
    """The metadata that the Hub reads."""
    _, head, _ = card(folder).split("---\n", 2)
    return yaml.safe_load(head)


def test_card_of_a_run(folder: Path) -> None:
    assert front(folder) == {
        "license": "unknown",
        "library_name": "crosspair",
        "pipeline_tag": "feature-extraction",
        "tags": ["video", "crosspair", "cross-modal-pair-discrimination"],
    }
    for text in (
        "| frames | 5, 6/30 s apart |", "| size | short side 128, crop 112 × 112 pixels |", "| init | random |",
        "| manifest | 0123456789ab |", "| training pairs | 1,234 |", "clip:\n  size: 32\n",
    ):  # fmt: skip
        assert text in card(folder), text
    assert "## Results" not in card(folder)
    assert "untrained" not in card(folder)
    assert "/home" not in card(folder)  # the manifest's path
    # Folders of earlier versions lack some keys.
    before, config = card(folder), json.loads((folder / "config.json").read_text())
    del config["preprocessing"], config["untrained"]
    (folder / "config.json").write_text(json.dumps(config))
    write_card(folder)
    assert card(folder) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", b"[1, 2]"), ("recipe.yaml", b"# caf\xe9"), ("metrics.jsonl", b"[1]\n"),
        ("metrics.jsonl", b'{"kind": "pairs", "step": 3}\n'),
    ],
)  # fmt: skip
def test_foreign_files_next_to_the_model_are_ignored(folder: Path, name: str, content: bytes) -> None:
    (folder.parent / name).write_bytes(content)
    write_card(folder)
    assert "| frames | 5, " in card(folder)


def test_a_card_of_the_user_is_kept(folder: Path) -> None:
    (folder / "README.md").write_text("# My notes")
    with pytest.raises(ModelError, match=r"README\.md"):
        write_card(folder)
    assert card(folder) == "# My notes"


def test_results_licence_and_data(folder: Path) -> None:
    results = [
        Result("kNN", "top-1", 0.5, "trained", feature="visual", count=9),
        Result("kNN", "top-1", 0.1, "chance", feature="visual", count=9),
        Result("retrieval|text", "median rank", 12.5, "trained", split="val", count=9),
    ]
    path = write_card(folder, results=results, license="apache-2.0", data="clips of\nmy dog")
    assert path == folder / "README.md"
    assert front(folder)["license"] == "apache-2.0"
    (index,) = front(folder)["model-index"]
    found = {
        (metric["name"], metric["type"], metric["value"], result["dataset"]["name"])
        for result in index["results"]
        for metric in result["metrics"]
    }
    assert found == {("kNN visual", "top-1", 0.5, "test"), ("retrieval|text", "median rank", 12.5, "val")}
    for text in (
        "| protocol | feature | split | metric | trained | chance |\n",
        "| kNN | visual | test | top-1 | 50.0 % | 10.0 % |\n",
        "| retrieval\\|text |  | val | median rank | 12.5 |  |\n",
        "| data | clips of my dog |\n",
    ):
        assert text in card(folder), text


def test_card_of_a_classifier_and_of_a_model_without_text(tmp_path: Path, model: CPD) -> None:
    classifier().save_pretrained(tmp_path / "classifier")
    assert front(tmp_path / "classifier")["pipeline_tag"] == "video-classification"
    assert "| classes | 3, see config.json |" in card(tmp_path / "classifier")
    model.untrained = ("text_encoder", "text_head")
    model.save_pretrained(tmp_path / "video")
    assert "| untrained | text encoder, text head |" in card(tmp_path / "video")
    assert "mean of word vectors" not in card(tmp_path / "video")


# --- the Hub ------------------------------------------------------------------------------------


class Address(str):
    """A repository's URL as returned by the Hub."""

    def __new__(cls, name: str):
        address = super().__new__(cls, f"https://hub/{name}")
        address.repo_id = name
        return address


class LocalHub:
    """The Hub's API, in a local folder; ``fault`` is raised instead."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.private, self.fault = folder, {}, None

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> Address:
        assert exist_ok
        if self.fault:
            raise self.fault
        self.private.setdefault(name, private)
        return Address(name)

    def upload_folder(self, *, repo_id: str, folder_path: Path, ignore_patterns: str) -> None:
        ignored = shutil.ignore_patterns(ignore_patterns)
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True, ignore=ignored)

    def snapshot_download(self, name: str, allow_patterns: object) -> str:
        if self.fault:
            raise self.fault
        return str(self.folder / name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    hub = LocalHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


@pytest.mark.parametrize("private", [True, False])
def test_upload_and_download(folder: Path, hub: LocalHub, model: CPD, private: bool) -> None:
    (folder / ".cache").touch()
    assert push(folder, "me/dogs", private=private) == "https://hub/me/dogs"
    assert model.push_to_hub("me/cats", private=private) == "https://hub/me/cats"
    assert hub.private == {"me/dogs": private, "me/cats": private}
    for name in hub.private:
        assert names(hub.folder / name) == [*FILES, "words.json"]
        assert load_model(name).hash == model.hash


class NoNetworkError(Exception):
    """An exception of an HTTP client."""


def test_failed_upload_and_download(folder: Path, hub: LocalHub) -> None:
    refusal = HfHubHTTPError.__new__(HfHubHTTPError)
    Exception.__init__(refusal, "403 Forbidden\nmore on this")
    for hub.fault, expected in (
        (refusal, "403 Forbidden"),
        (LocalTokenNotFoundError("no token"), "hf auth login"),
        (NoNetworkError("\nno route\nto host"), "no route"),
        (NoNetworkError(), "NoNetworkError"),
    ):
        with pytest.raises(ModelError, match=rf"me/dogs: .*{expected}") as caught:
            push(folder, "me/dogs")
        assert "\n" not in str(caught.value)
    refused("me/dogs", r"me/dogs .*NoNetworkError")


def test_folder_without_a_model(tmp_path: Path, hub: LocalHub) -> None:
    for use in (push, lambda folder, _: write_card(folder), lambda folder, _: load_model(folder)):
        with pytest.raises(CrosspairError, match=rf"{tmp_path} .*config\.json"):
            use(tmp_path, "me/dogs")
    assert not hub.private
    refused(tmp_path / "none", f"{tmp_path / 'none'}")
    assert names(tmp_path) == []
