"""The rendered corpus: deterministic files and titles, whole files after interruptions, safe folders."""

from __future__ import annotations

import io
import json
import os
import re
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from crosspair.corpora import Manifest
from crosspair.corpora.rendered import ACTIONS, Scene, draw_scene, plan, render_corpus, render_frames
from crosspair.corpora.rendered.render import ENCODINGS, encode_scene
from crosspair.corpora.rendered.titles import ACTION_WORDS, COLOUR_WORDS, FOREIGN_ACTION_WORDS, SHAPE_WORDS
from crosspair.errors import ManifestError
from tests.corpora import dying

PAIRS = 26


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A small corpus, rendered in this process. Tests only read it."""
    return render_corpus(tmp_path_factory.mktemp("rendered"), PAIRS, seed=3, workers=1)


# --- scenes and files ---------------------------------------------------------------------------


def test_a_scene_renders_to_the_same_frames_and_bytes_each_time() -> None:
    scene = draw_scene(5, 7, "swinging")
    first, second = list(render_frames(scene)), list(render_frames(scene))
    np.testing.assert_array_equal(first, second)
    assert (first[0].shape, first[0].dtype) == ((scene.height, scene.width, 3), np.uint8)
    for codec in ENCODINGS:
        again = replace(scene, codec=codec, frames=10)
        assert encode_scene(again) == encode_scene(again), codec


def test_results_do_not_depend_on_workers(corpus: Manifest, tmp_path: Path) -> None:
    other = render_corpus(tmp_path, PAIRS, seed=3, workers=2)
    assert other.table.equals(corpus.table)
    for one, two in zip(corpus.clips(), other.clips(), strict=True):
        assert Path(one.path).read_bytes() == Path(two.path).read_bytes()


def test_seed_changes_everything_and_noise_only_titles() -> None:
    one, two, noisy = plan(64, seed=0), plan(64, seed=1), plan(64, seed=0, noise=0.6)
    assert [p.title for p in one] != [p.title for p in two]
    assert [p.scene.label for p in one] != [p.scene.label for p in two]
    a, b = (next(render_frames(replace(one[0].scene, seed=s))) for s in (0, 1))
    assert np.abs(a.astype(int) - b).mean() > 5
    assert [p.scene for p in one] == [p.scene for p in noisy]
    assert sum(a.title != b.title for a, b in zip(one, noisy, strict=True)) > 50


def test_files_have_the_frames_of_their_scenes_and_match_the_manifest(corpus: Manifest) -> None:
    for clip, row, pair in zip(corpus.clips(), corpus.table.to_pylist(), plan(PAIRS, seed=3), strict=True):
        with av.open(clip.path) as container:
            stream = container.streams.video[0]
            frames = list(container.decode(stream))
            assert float(stream.average_rate or 0) == pytest.approx(row["fps"], rel=2e-3)
            assert stream.codec_context.codec.canonical_name == row["codec"]
            assert (stream.width, stream.height) == (row["width"], row["height"])
        assert len(frames) == row["frames"]
        # WebM counts in milliseconds.
        times = [float(frame.time or 0) for frame in frames]
        np.testing.assert_allclose(times, np.arange(len(times)) / row["fps"], atol=1.1e-3)
        assert row["duration"] == pytest.approx(row["frames"] / row["fps"])
        assert 2 <= row["duration"] <= 6.05
        if row["pair_id"] < "00006":
            seen = np.stack([frame.to_ndarray(format="rgb24") for frame in frames]).astype(float)
            assert np.abs(seen - np.stack(list(render_frames(pair.scene)))).mean() < 8, row["codec"]


def test_files_are_of_all_kinds() -> None:
    scenes = [pair.scene for pair in plan(400)]
    assert {s.codec for s in scenes} == {"h264", "mpeg4", "vp9"}
    assert {s.fps for s in scenes} == {*map(Fraction, (24, 25, 30, 50, 60)), Fraction(30000, 1001)}
    assert {round(s.width / s.height, 1) for s in scenes} == {1.3, 1.5, 0.8}
    assert all(s.width % 2 == s.height % 2 == 0 for s in scenes)
    assert {s.gop for s in scenes} == {12, 48, 250}
    assert len({s.shape for s in scenes}) >= 8
    assert len({s.colour for s in scenes}) >= 6


def test_keyframes_come_at_the_planned_distance() -> None:
    scene = Scene(0, 0, "rising", "star", "red", 96, 96, Fraction(25), 50, "h264", gop=12)
    for codec in ENCODINGS:
        with av.open(io.BytesIO(encode_scene(replace(scene, codec=codec)))) as container:
            keys = [n for n, f in enumerate(container.decode(video=0)) if f.key_frame]
        assert keys == [0, 12, 24, 36, 48], codec


@pytest.mark.parametrize(("pairs", "seed"), [(200, 0), (210, 9), (337, 9)])
def test_every_action_is_in_every_split(pairs: int, seed: int) -> None:
    planned = plan(pairs, seed)
    assert {(p.scene.label, p.split) for p in planned} == {(a, s) for a in ACTIONS for s in ("train", "val", "test")}
    labels, splits = Counter(p.scene.label for p in planned), Counter(p.split for p in planned)
    assert max(labels.values()) - min(labels.values()) <= 1
    for split, share in (("train", 0.75), ("val", 0.10), ("test", 0.15)):
        assert splits[split] / pairs == pytest.approx(share, abs=0.01)


# --- titles -------------------------------------------------------------------------------------

ACTION_TEXTS = {a: ACTION_WORDS[a] + FOREIGN_ACTION_WORDS[a] for a in ACTIONS}
SHAPE_TEXTS = {t: tuple(w for pair in pairs for w in pair) for t, pairs in SHAPE_WORDS.items()}


def mentioned(title: str, texts: dict[str, tuple[str, ...]]) -> set[str]:
    """The keys that a title mentions."""
    low = title.lower()
    return {
        key
        for key, options in texts.items()
        if any(re.search(rf"(?<!\w){re.escape(o.lower())}(?!\w)", low) for o in options)
    }


def test_words_identify_their_action() -> None:
    owners = Counter(text for texts in ACTION_WORDS.values() for text in texts)
    assert max(owners.values()) == 1
    assert [words[0] for words in ACTION_WORDS.values()] == [*ACTIONS]


def test_titles_without_noise_are_right_and_mention_the_action() -> None:
    for pair in plan(200, noise=0):
        assert pair.scene.label in mentioned(pair.title, ACTION_TEXTS), pair.title
        assert mentioned(pair.title, SHAPE_TEXTS) <= {pair.scene.shape}, pair.title
        assert mentioned(pair.title, dict(COLOUR_WORDS)) <= {pair.scene.colour}, pair.title
        assert pair.title.isascii()
        assert "#" not in pair.title


@pytest.mark.parametrize(("noise", "wrong"), [(0.0, 0.0), (0.3, 0.09), (0.6, 0.36), (1.0, 1.0)])
def test_noise_sets_the_fraction_of_wrong_titles(noise: float, wrong: float) -> None:
    pairs = [(pair.scene.label, mentioned(pair.title, ACTION_TEXTS)) for pair in plan(1600, noise=noise)]
    found = [label not in labels for label, labels in pairs if labels]
    assert np.mean(found) == pytest.approx(wrong, abs=4 * np.sqrt(wrong * (1 - wrong) / len(found)))


def test_fractions_at_the_default_noise() -> None:
    titles = [pair.title for pair in plan(1600)]
    for expected, texts in ((0.88, ACTION_TEXTS), (0.60, SHAPE_TEXTS), (0.40, dict(COLOUR_WORDS))):
        assert np.mean([bool(mentioned(title, texts)) for title in titles]) == pytest.approx(expected, abs=0.04)
    assert np.mean(["#" in title for title in titles]) == pytest.approx(0.18, abs=0.04)
    assert np.mean([title.upper() == title for title in titles]) > 0.1
    for script in ("[ऀ-ॿ]", "[぀-ヿ]", "[áéíóúñ]", "[à-ÿ]", "[一-鿿]"):
        assert 0.005 < np.mean([bool(re.search(script, title)) for title in titles]) < 0.3, script


# --- interruptions and errors -------------------------------------------------------------------


def test_only_what_is_missing_is_rendered(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    first = render_corpus(tmp_path, 16, workers=1, progress=lambda *n: calls.append(n))
    assert calls == [(n, 16) for n in range(1, 17)]
    lost = tmp_path / first.column("path")[5]
    content = lost.read_bytes()
    lost.unlink()
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "videos").iterdir()}
    calls.clear()
    for _ in range(2):  # the second time, the corpus is complete
        again = render_corpus(tmp_path, 16, workers=1, progress=lambda *n: calls.append(n))
        assert again.table.equals(first.table)
    assert calls == [(16, 16)]
    assert lost.read_bytes() == content
    assert all(f.stat().st_mtime_ns == at for f, at in before.items())


def test_an_interrupted_run_leaves_whole_files_only(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_corpus(tmp_path, 16, workers=1, progress=stop)
    assert len(list((tmp_path / "videos").iterdir())) == 3
    assert not (tmp_path / "manifest.parquet").exists()
    assert json.loads((tmp_path / "rendered.json").read_text())["complete"] is False
    calls: list[int] = []
    render_corpus(tmp_path, 16, workers=1, progress=lambda done, _: calls.append(done))
    assert calls == list(range(4, 17))
    assert not list(tmp_path.rglob("*.partial"))


def test_an_interrupted_run_stops_its_workers(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    processes = Path(f"/proc/self/task/{os.getpid()}/children")
    before = processes.read_text() if processes.exists() else ""
    with pytest.raises(KeyboardInterrupt):
        render_corpus(tmp_path, 60, workers=2, progress=stop)
    assert (processes.read_text() if processes.exists() else "") == before
    assert len(list((tmp_path / "videos").iterdir())) < 30


def test_other_settings_are_rejected(corpus: Manifest) -> None:
    for change in ({"seed": 4}, {"noise": 0.1}, {"pairs": 30}):
        with pytest.raises(ManifestError, match=next(iter(change))):
            render_corpus(corpus.path.parent, **{"pairs": PAIRS, "seed": 3, **change})


@pytest.mark.parametrize("name", ["manifest.parquet", "videos/cat.mp4"])
def test_other_folders_are_rejected(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(ManifestError, match=str(tmp_path)):
        render_corpus(tmp_path, 16)
    assert (tmp_path / name).read_bytes() == b"mine"


def test_damaged_settings_are_rejected(tmp_path: Path) -> None:
    for text in ("{", "[]", "{}"):
        (tmp_path / "rendered.json").write_text(text)
        with pytest.raises(ManifestError, match=r"rendered\.json"):
            render_corpus(tmp_path, 16)


@pytest.mark.parametrize(
    ("name", "value"), [("pairs", 15), ("seed", -1), ("noise", 1.1), ("noise", float("nan")), ("workers", 0)]
)
def test_invalid_arguments(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(ManifestError, match=f"{name} is {value}"):
        render_corpus(tmp_path / "out", **{name: value})
    assert not (tmp_path / "out").exists()


def test_failures_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "videos").mkdir()
    partial = [(tmp_path / pair.path).with_name(f".{Path(pair.path).name}.partial") for pair in plan(24)]
    for path in partial:
        path.symlink_to(tmp_path / "none" / "file")
    with pytest.raises(ManifestError, match=r"videos.*No such file or directory"):
        render_corpus(tmp_path, 24, workers=2)
    monkeypatch.setattr("crosspair.corpora.rendered.render.write_video", dying.kill)
    with pytest.raises(ManifestError, match=f"{tmp_path}.*signal 9"):
        render_corpus(tmp_path, 24, workers=2)
