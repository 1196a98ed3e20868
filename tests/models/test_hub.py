"""Model folders: preprocessing, links, permissions, and the Hugging Face Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from crosspair.config import ClipConfig
from crosspair.errors import ModelError
from crosspair.models import CPD, WordAverage, load_model
from crosspair.models.hub import push
from crosspair.recipes import recipe_of

TINY = {
    "video.depth": 10, "video.width": 4, "head.embedding": 6, "head.hidden": 8,
    "clip.size": 112, "clip.frames": 5, "clip.stride": 6,
}  # fmt: skip


def saved(folder: Path) -> CPD:
    recipe = recipe_of(TINY)
    words = WordAverage(["dog", "cat"], torch.randn(2, 5))
    model = CPD(words, recipe.clip, recipe.video, recipe.text, recipe.head).eval()
    model.save_pretrained(folder)
    return model


class LocalHub:
    """The Hub's API, in a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.private = folder, {}

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> SimpleNamespace:
        assert exist_ok
        self.private.setdefault(name, private)
        return Address(name)

    def upload_folder(self, *, repo_id: str, folder_path: Path, ignore_patterns: str) -> None:
        ignored = shutil.ignore_patterns(ignore_patterns)
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True, ignore=ignored)

    def snapshot_download(self, name: str) -> str:
        return str(self.folder / name)


class Address(str):
    """A repository's URL as returned by the Hub."""

    def __new__(cls, name: str):
        address = super().__new__(cls, f"https://hub/{name}")
        address.repo_id = name
        return address


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    hub = LocalHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_preprocessing_in_the_configuration(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["preprocessing"] == {
        "frames": 5, "seconds_between_frames": 0.2, "short_side": 128, "size": 112,
        "channels": "RGB", "mean": 0.45, "std": 0.225,
    }  # fmt: skip
    assert ClipConfig(**config["clip"]).stride == 6


def test_symbolic_link_is_kept(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    for _ in range(2):
        saved(tmp_path / "model")
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "disk" / "config.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "model"}


def test_all_files_have_the_same_permissions(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    modes = {path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert len(modes) == 1


def test_push_to_hub(tmp_path: Path, hub: LocalHub) -> None:
    model = saved(tmp_path / "model")
    assert model.push_to_hub("me/dogs", private=True) == "https://hub/me/dogs"
    assert hub.private == {"me/dogs": True}
    assert CPD.from_pretrained("me/dogs").hash == model.hash


@pytest.mark.parametrize("private", [True, False])
def test_upload_and_download(tmp_path: Path, hub: LocalHub, private: bool) -> None:
    model = saved(tmp_path / "model")
    (tmp_path / "model" / ".cache").touch()
    assert push(tmp_path / "model", "me/dogs", private=private) == "https://hub/me/dogs"
    assert hub.private == {"me/dogs": private}
    again = load_model("me/dogs")
    assert isinstance(again, CPD)
    assert again.hash == model.hash
    names = sorted(path.name for path in (hub.folder / "me/dogs").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors", "words.json"]


def test_failed_upload(tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "model")

    def fails(error: Exception):
        def create_repo(*_: object, **__: object) -> None:
            raise error

        return create_repo

    refusal = HfHubHTTPError.__new__(HfHubHTTPError)
    Exception.__init__(refusal, "403 Forbidden\nmore on this")
    monkeypatch.setattr(hub, "create_repo", fails(refusal))
    with pytest.raises(ModelError, match=rf"me/dogs: .*{tmp_path}/model .*403 Forbidden"):
        push(tmp_path / "model", "me/dogs")
    monkeypatch.setattr(hub, "create_repo", fails(LocalTokenNotFoundError("no token")))
    with pytest.raises(ModelError, match=r"me/dogs: .*hf auth login"):
        push(tmp_path / "model", "me/dogs")


class NoNetworkError(Exception):
    """An exception of an HTTP client."""


@pytest.mark.parametrize(("text", "expected"), [("\nno route\nto host", "no route"), ("", "NoNetworkError")])
def test_without_a_network(
    tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    saved(tmp_path / "model")

    def fails(*_: object, **__: object) -> None:
        raise NoNetworkError(text)

    monkeypatch.setattr(hub, "create_repo", fails)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(ModelError, match=rf"me/dogs: .*\({expected}\)"):
        push(tmp_path / "model", "me/dogs")
    with pytest.raises(ModelError, match=rf"me/dogs .*\({expected}\)"):
        load_model("me/dogs")


def test_folder_without_a_model_is_not_uploaded(tmp_path: Path, hub: LocalHub) -> None:
    with pytest.raises(ModelError, match=rf"{tmp_path} .*config\.json"):
        push(tmp_path, "me/dogs")
    assert not hub.private
