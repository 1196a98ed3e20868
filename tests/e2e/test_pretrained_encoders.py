"""End-to-end runs with models of other projects, without training."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import crosspair
from crosspair.config import FinetuneRecipe
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.evaluation import read_results
from crosspair.models import CPD, load_model
from crosspair.models.encoder import ENCODERS_VARIABLE
from crosspair.recipes import read_recipe
from tests.e2e.conftest import FAST, pretrain_arguments, refused, run
from tests.models.conftest import PRETRAINED, TWO_TOWERS, write_pretrained
from tests.models.test_encoders import CODE

CLASSES = ["dog", "cat"]
PROTOCOLS = "zeroshot,retrieval,knn,linear"


@pytest.fixture(scope="module")
def corpus(rendered: Manifest) -> Manifest:
    rows = rendered.table.to_pylist()[:12]
    for row, values in enumerate(rows):
        values |= {"label": CLASSES[row % 2], "split": "test" if row % 3 == 0 else "train", "title": "a dog is playing"}
    return manifest_from_rows(rows, rendered.path).write(rendered.path.with_name("dogs.parquet"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models; that of CLIP has the usual files of a repository."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("clip", "xclip", "resnet"):
        write_pretrained(folder / kind, kind)
    return folder


@pytest.mark.parametrize("kind", ["clip", "xclip"])
def test_two_towers(
    folder: Path, corpus: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    source = shutil.copytree(folder / kind, tmp_path / kind)
    videos = [corpus.clips()[row].path for row in range(3)]
    library, out = tmp_path / "library", tmp_path / "f.parquet"
    sampling = ("--sampling", "keyframes")
    if kind == "xclip":
        assert "image encoder" in refused("index", *videos, "--library", library, "--model", source, *sampling, *FAST)
        sampling = ()
    run("index", *videos, "--library", library, "--model", source, *sampling, *FAST)
    run("embed", *videos, "--model", source, "--out", out, "--clips", 2, *FAST)
    model = crosspair.load(source, device="cpu", precision="fp32", workers=0)
    shutil.rmtree(source)  # the library has its own copy
    capsys.readouterr()
    run("search", "a dog", "--library", library, "--json", *FAST)
    assert {hit["path"] for hit in json.loads(capsys.readouterr().out)} == {*map(str, videos)}
    run("index", *videos, "--library", library, *FAST)
    assert "3 unchanged" in capsys.readouterr().out
    embeddings = torch.tensor([row["embedding"] for row in pq.read_table(out).to_pylist()])
    torch.testing.assert_close(embeddings, model.embed_videos(videos, clips=2).embedding)
    classified = model.classify(videos, CLASSES, clips=2)
    scores = (classified.cosines / model.engine.model.temperature).softmax(dim=1)
    torch.testing.assert_close(classified.scores, scores)
    assert len(scores) == 3
    assert model.engine.model.temperature != 0.07


@pytest.mark.parametrize("kind", PRETRAINED)
def test_every_family(corpus: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    model, library, file = write_pretrained(tmp_path / kind, kind), tmp_path / "library", tmp_path / "r.json"
    video, other = (corpus.clips()[row].path for row in range(2))
    run("index", video, other, "--library", library, "--model", model, *FAST)
    run("search", *(["a dog"] if kind in TWO_TOWERS else ["--video", video]), "--library", library, *FAST)
    assert Path(other).name in capsys.readouterr().out
    protocols = "zeroshot,knn" if kind in TWO_TOWERS else "knn"
    arguments = ("--manifest", corpus.path, "--protocols", protocols, "--out", file, "--clips", 1, "--workers", 0)
    run("evaluate", "--model", model, *arguments, "zeroshot.class_counts=[2]", "knn.k=3")
    found = {result.protocol for result in read_results(file)[0]}
    assert "kNN" in found
    assert ("zero-shot" in found) == (kind in TWO_TOWERS)


def test_evaluate(folder: Path, corpus: Manifest, tmp_path: Path) -> None:
    for kind, protocols in (("clip", PROTOCOLS), ("resnet", "knn,linear")):
        file = tmp_path / kind / "results.json"
        arguments = ("--manifest", corpus.path, "--protocols", protocols, "--out", file, "--clips", 2, "--workers", 0)
        run(
            "evaluate",
            "--model",
            folder / kind,
            *arguments,
            "--random-baseline",
            "zeroshot.class_counts=[2]",
            "knn.k=3",
        )
        results, _ = read_results(file)
        found = {(each.protocol, each.feature) for each in results if each.of == "random weights"}
        assert {("kNN", "visual"), ("linear", "visual")} <= found
        assert ("zero-shot", "embedding") in found or kind == "resnet"


def test_texts_need_a_text_tower(folder: Path, corpus: Manifest, tmp_path: Path) -> None:
    video, other = (corpus.clips()[row].path for row in range(2))
    library, model = tmp_path / "library", folder / "resnet"
    run("index", video, other, "--library", library, "--model", model, *FAST)
    for arguments in (
        ("search", "a dog", "--library", library, *FAST),
        ("classify", video, "--classes", "dog,cat", "--model", model, *FAST),
        (
            "evaluate",
            "--model",
            model,
            "--manifest",
            corpus.path,
            "--protocols",
            "zeroshot",
            "--out",
            tmp_path / "r.json",
        ),
    ):
        assert "text tower" in refused(*arguments)


def test_export(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("export", "--model", folder / "clip", "--out", tmp_path / "model.onnx")
    assert {each.name for each in tmp_path.iterdir()} == {"model.onnx", "model.text.onnx"}
    assert "clips uint8 (B, 3, T, 32, 32)" in capsys.readouterr().out


# --- training -----------------------------------------------------------------------------------

CLIP_FORMAT = ("clip.size=32", "clip.frames=2", "clip.stride=30", "training.precision=fp32")


def video_settings(source: Path, train: str) -> list[str]:
    return ["video.encoder=pretrained", f"video.source={source}", f"video.train={train}", *CLIP_FORMAT]


@pytest.mark.parametrize(
    ("kind", "train"), [("clip", "head"), ("clip", "none"), ("resnet", "last:1"), ("resnet", "all")]
)
def test_pretrain(folder: Path, rendered: Manifest, tmp_path: Path, kind: str, train: str) -> None:
    settings = video_settings(folder / kind, train)
    if kind == "clip":
        settings += ["text.encoder=same", "curriculum.strategy=frozen"]
    run(*pretrain_arguments(rendered.path, tmp_path / "run", *settings))
    model = CPD.from_pretrained(tmp_path / "run" / "model")
    before = CPD.from_pretrained(folder / kind).video_encoder.state_dict()
    after = model.video_encoder.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    last = {name for name in before if "stages.3" in name}
    assert changed == {"last:1": last, "all": before.keys()}.get(train, set())
    assert model.untrained == ()
    run(*pretrain_arguments(rendered.path, tmp_path / "run", *settings), "--resume")
    assert CPD.from_pretrained(tmp_path / "run" / "model").hash == model.hash


@pytest.mark.parametrize(
    ("kind", "train"), [("clip", "head"), *(("resnet", train) for train in ("none", "head", "last:1", "all"))]
)
def test_finetune(folder: Path, corpus: Manifest, tmp_path: Path, kind: str, train: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("training: {epochs: 1, batch_size: 4, workers: 1, precision: fp32}\nplateau: {drops: 0}\n")
    arguments = ["--recipe", recipe, "--manifest", corpus.path, "--run", tmp_path / "run", "--init", "random"]
    run("finetune", *arguments, *video_settings(folder / kind, train)[:3])
    model = load_model(tmp_path / "run" / "model")
    assert (model.clip.size, model.clip.frames, model.clip.stride) == (32, 2, 30)  # of the model
    saved = read_recipe(FinetuneRecipe, str(tmp_path / "run" / "recipe.yaml"))
    assert saved.clip == model.clip
    before = CPD.from_pretrained(folder / kind).video_encoder.state_dict()
    after = model.video_encoder.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert bool(changed) == (train not in ("none", "head"))
    assert train != "last:1" or all("stages.3" in name for name in changed)
    assert "video.source" in refused("finetune", *arguments[:-1], folder / kind)
    assert read_results(tmp_path / "run" / "results.json")[0]


def test_encoder_of_the_user(corpus: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_net.py").write_text(CODE.format(image=True, frames=None))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv(ENCODERS_VARIABLE, "")
    recipe, video = Path("recipe.yaml"), corpus.clips()[0].path
    recipe.write_text(
        "video: {encoder: pretrained, source: 'users_net:build', train: 'last:1'}\n"
        "optimizer: {layer_decay: 0.5, encoder_factor: 0.5}\n"
        "training: {epochs: 1, batch_size: 4, workers: 1, precision: fp32}\n"
    )
    start = [
        "--manifest", corpus.path, "text.dimensions=8", "head.hidden=8", "head.embedding=8",
        "objective.noise_samples=4", "curriculum.strategy=frozen",
    ]  # fmt: skip
    run("pretrain", "--recipe", recipe, "--run", "run", *start)
    run("pretrain", "--recipe", recipe, "--run", "run", *start, "--resume", "training.workers=0")
    run("finetune", "--recipe", recipe, "--run", "tuned", "--init", "run/model", *start[:2], "plateau.drops=0")
    monkeypatch.setenv(ENCODERS_VARIABLE, "")
    assert ENCODERS_VARIABLE in refused("embed", video, "--model", "run/model", "--out", "f.parquet", *FAST)
    monkeypatch.setenv(ENCODERS_VARIABLE, "users_net:build")
    run("embed", video, "--model", "run/model", "--out", "f.parquet", *FAST)
    run("index", video, "--model", "users_net:build", "--library", "library", *FAST)
    run("search", "--video", video, "--library", "library", *FAST)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (("video.encoder=pretrained",), "video.source"),
        (("video.source=x",), "video.encoder"),
        (("text.encoder=same",), "video.encoder"),
        (("video.encoder=pretrained", "video.source={xclip}"), "clip.frames"),
        (("video.encoder=pretrained", "video.source={xclip}", "clip.size=64"), "clip.size"),
        (("video.encoder=pretrained", "video.source={resnet}", "text.encoder=same"), "text tower"),
        (("video.encoder=pretrained", "video.source={resnet}", "head.projection=none"), "head.projection"),
        (("video.train=head", "head.projection=none"), "curriculum.strategy"),
        (("video.train=none", "head.projection=none"), "curriculum.strategy"),
        (("video.encoder=pretrained", "video.source={resnet}", "video.train=last:5"), "video.train"),
        (("video.encoder=pretrained", "video.source=nothing.here:build"), "nothing.here:build"),
    ],
)
def test_invalid_recipes(folder: Path, rendered: Manifest, tmp_path: Path, settings: tuple[str, ...], key: str) -> None:
    chosen = [each.format(**{kind: folder / kind for kind in ("xclip", "resnet")}) for each in settings]
    frames = "clip.frames=4" if key == "clip.size" else "clip.frames=3"
    message = refused(*pretrain_arguments(rendered.path, tmp_path / "run", frames, *chosen))
    assert key in message
