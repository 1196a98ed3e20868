"""Training with a frozen video encoder from stored features: compared with training without them, killed, faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from crosspair import files
from crosspair.corpora import Manifest, manifest_from_rows
from crosspair.distributed import World
from crosspair.errors import TRY_LATER, ModelError, RunError
from crosspair.evaluation.encode import encode_rows, load_engine
from crosspair.evaluation.stored import ChunkFeatures, StoredFeatures, encode_stored_rows, store_features, videos_key
from crosspair.models import CPD
from tests.e2e.conftest import command, pretrain_arguments, run
from tests.models.conftest import write_pretrained

EPOCHS = 4


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pretrained(tmp_path_factory.mktemp("models") / "clip", "clip")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CROSSPAIR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def arguments(source: Path, rendered: Manifest) -> Callable[..., list[object]]:
    def make(folder: Path, *settings: str, manifest: Manifest = rendered) -> list[object]:
        return pretrain_arguments(
            manifest.path, folder, "video.encoder=pretrained", f"video.source={source}", "video.train=head",
            "video.views=2", "clip.size=32", "clip.frames=2", "clip.stride=30", "clip.color_jitter=0.4",
            "clip.hue=0.2", "clip.area=[0.3,1]", "training.precision=fp32", f"training.epochs={EPOCHS}", *settings,
        )  # fmt: skip

    return make


def metrics(folder: Path, kind: str = "train") -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    left_out = {"kind", "clips_per_second", "data_wait"}
    return [{n: v for n, v in line.items() if n not in left_out} for line in lines if line["kind"] == kind]


def assert_equal_runs(one: Path, other: Path, **tolerance: float) -> None:
    for kind in ("train", "validation"):
        assert len(metrics(one, kind)) == len(metrics(other, kind)) > 0
        for ours, theirs in zip(metrics(one, kind), metrics(other, kind), strict=True):
            assert ours == pytest.approx(theirs, rel=tolerance.get("rtol"), abs=tolerance.get("atol"))
    states = [CPD.from_pretrained(each / "model").state_dict() for each in (one, other)]
    torch.testing.assert_close(*map(dict, states), **(tolerance or {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize(
    "settings",
    [
        ("curriculum.strategy=frozen", "objective.name=in_batch", "head.dropout=0.5", "head.video_hidden=8"),
        ("curriculum.stage2_epoch=2", "objective.video_weight=0.5", "objective.bank_init=text"),
        ("text.encoder=same", "curriculum.strategy=frozen", "head.projection=identity"),
    ],
)
def test_stored_features_give_the_same_heads(
    arguments: Callable[..., list[object]], cache: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    run(*arguments(tmp_path / "stored", *settings))
    assert {path.name for path in cache.glob("*/*")} == {"features.npy", "failures.json", "key.json"}
    assert len(list(cache.iterdir())) == 4  # 2 views, validation, titles
    run(*arguments(tmp_path / "plain", "video.cache=false", *settings))
    assert_equal_runs(tmp_path / "stored", tmp_path / "plain", rtol=1e-3, atol=1e-5)


def test_evaluation_from_stored_features(source: Path, rendered: Manifest, cache: Path) -> None:
    engine = load_engine(source, device="cpu", precision="fp32", workers=0, batch_size=6)
    videos = rendered.take(range(6))
    videos = videos.with_columns({"error": [None] * 4 + ["broken", None]})
    usable = [0, 1, 2, 3, 5]
    plain = list(encode_rows(engine, videos, usable, clips=3))
    for _ in range(2):
        stored = list(encode_stored_rows(engine, videos, usable, clips=3, world=World()))
        for ours, theirs in zip(stored, plain, strict=True):
            assert (ours.row, ours.spans) == (theirs.row, theirs.spans)
            torch.testing.assert_close(ours.visual, theirs.visual)
            torch.testing.assert_close(ours.embedding, theirs.embedding)
    backwards = videos.take(range(5, -1, -1))
    (last,) = encode_stored_rows(engine, backwards, [0], clips=3, world=World())
    torch.testing.assert_close(last.visual, plain[-1].visual)
    assert len(list(cache.iterdir())) == 1  # shared by other orders of the rows


def kill_when(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not ready():
        assert process.poll() is None, "the training ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_run_resumes_identically(arguments: Callable[..., list[object]], cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = (
        "training.checkpoint_steps=2", "training.log_every=1", "head.dropout=0.5", "training.ema=0.8",
        "objective.video_weight=0.5", "objective.bank_init=towers",
    )  # fmt: skip
    run(*arguments(tmp_path / "whole", *settings))
    files = {path: path.stat().st_mtime_ns for path in cache.glob("*/features.npy")}
    for path in list(files)[:2]:
        path.unlink()
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}

    def start() -> subprocess.Popen[bytes]:
        resumed = command(*arguments(folder, *settings), "--resume")
        return subprocess.Popen(resumed, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    kill_when(start(), lambda: sum(path.exists() for path in files) > 2)  # while features are computed
    kill_when(start(), lambda: len(list((folder / "checkpoints").glob("step-*"))) > 1)  # while heads are trained
    assert not (folder / "model").exists()
    assert start().wait(timeout=240) == 0
    kept = [path for path, time_ns in files.items() if path.stat().st_mtime_ns == time_ns]
    assert len(kept) == len(files) - 2  # the other features were not computed again
    assert_equal_runs(folder, tmp_path / "whole")


def test_unreadable_videos_are_skipped_and_listed(
    arguments: Callable[..., list[object]], rendered: Manifest, cache: Path, tmp_path: Path
) -> None:
    rows = rendered.table.to_pylist()
    broken = [next(row for row in rows if row["split"] == split) for split in ("train", "val")]
    for row in rows:
        row["path"] = str(rendered.path.parent / row["path"])
    for row in broken:
        row["path"] = str(tmp_path / f"{row['split']}.mp4")
        Path(row["path"]).write_bytes(b"no video")
    manifest = manifest_from_rows(rows, tmp_path / "m.parquet").write(tmp_path / "m.parquet")
    run(*arguments(tmp_path / "run", manifest=manifest))
    (event,) = metrics(tmp_path / "run", "event")
    assert event["pair_id"] == broken[0]["pair_id"]
    assert broken[0]["path"] in event["message"]
    assert metrics(tmp_path / "run", "pairs")[-1]["failed"] == 1
    readable = sum(row["split"] == "val" for row in rows) - 1
    assert readable - 1 <= metrics(tmp_path / "run", "validation")[0]["pairs"] <= readable  # one title may be unknown


class AloneOfTwo(World):
    """One of two processes, without a connection to the other."""

    def barrier(self) -> None:
        pass


def test_processes_share_the_work(cache: Path) -> None:
    count, shares = 700, []

    def encode(chunks: Sequence[range]) -> Iterator[ChunkFeatures]:
        shares.append(sum(map(len, chunks)))
        for chunk in chunks:
            yield torch.tensor([[item, -item] for item in chunk]).float(), {}

    def open_features(rank: int) -> StoredFeatures:
        return store_features({"a": 1}, (count, 2), encode, AloneOfTwo(rank, 2), "test")

    with ThreadPoolExecutor(2) as pool:
        stored = list(pool.map(open_features, range(2)))
    assert sorted(shares) == [320, 380]
    for features in stored:
        assert features[[699, 0, 256]].tolist() == [[699, -699], [0, 0], [256, -256]]
    (folder,) = cache.iterdir()
    assert not (folder / "parts").exists()
    (folder / "features.npy").write_bytes(b"damaged")
    with pytest.raises(RunError, match=folder.name):
        open_features(1)


def test_temporary_failures_are_tried_again(cache: Path) -> None:
    asked: list[range] = []

    def store(failures: dict[int, str]) -> StoredFeatures:
        def encode(chunks: Sequence[range]) -> Iterator[ChunkFeatures]:
            asked.extend(chunks)
            for chunk in chunks:
                yield torch.ones(len(chunk), 2), {i: text for i, text in failures.items() if i in chunk}

        return store_features({"a": 1}, (150, 2), encode, World(), "test")

    temporary = f"http://x/70.mp4: no answer{TRY_LATER}"
    assert store({3: "broken", 70: temporary}).failures == {3: "broken", 70: temporary}
    assert asked == [range(64), range(64, 128), range(128, 150)]
    for _ in range(2):  # once again, then never
        assert store({}).failures == {3: "broken"}
        assert asked[3:] == [range(64, 128)]


def test_features_that_are_not_finite_are_not_stored(cache: Path) -> None:
    def encode(chunks: Sequence[range]) -> Iterator[ChunkFeatures]:
        yield torch.full((5, 2), torch.nan), {0: "broken"}

    with pytest.raises(ModelError):
        store_features({"a": 1}, (5, 2), encode, World(), "test")
    assert not list(cache.glob("**/*.npy"))


def test_another_run_finishes_first(cache: Path) -> None:
    def encode(chunks: Sequence[range]) -> Iterator[ChunkFeatures]:
        for chunk in chunks:
            yield torch.ones(len(chunk), 2), {}

    def encode_slowly(chunks: Sequence[range]) -> Iterator[ChunkFeatures]:
        for number, features in enumerate(encode(chunks)):
            if number == 1:  # the first chunk is written; the other run merges it and removes it
                store_features({"a": 1}, (150, 2), encode, World(), "other")
            yield features

    assert store_features({"a": 1}, (150, 2), encode_slowly, World(), "test")[[149]].tolist() == [[1, 1]]
    (folder,) = cache.iterdir()
    assert not (folder / "parts").exists()
    with pytest.raises(RunError, match=folder.name):  # of another width
        store_features({"a": 1}, (150, 3), encode, World(), "test")


def test_features_depend_on_files_and_tokenizers(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(b"00")
    videos = manifest_from_rows([{"pair_id": "a", "path": str(video), "title": "a"}], tmp_path / "m.parquet")
    before = videos_key(videos)
    assert videos_key(videos) == before
    video.write_bytes(b"11")
    os.utime(video, ns=(0, 1))
    assert videos_key(videos) != before
    folders = [write_pretrained(tmp_path / name, "clip") for name in "ab"]
    tokenizer = folders[1] / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"dog"', '"wolf"'))
    one, other = (CPD.from_pretrained(folder).text_encoder.description for folder in folders)
    assert one != other


def test_separate_folders_of_processes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.time, "sleep", lambda _: None)
    with pytest.raises(RunError, match="CROSSPAIR_CACHE"):
        store_features({"a": 1}, (5, 2), lambda _: (), AloneOfTwo(1, 2), "test")
