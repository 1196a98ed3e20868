"""Batches: the same whoever makes them, resumed exactly, and never under another's label."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosspair.config import Clip, ClipConfig
from crosspair.errors import RunError, VideoError
from crosspair.video import loader
from crosspair.video.loader import VIEW, Batch, TrainingOrder, explain_dead_workers, training_loader, view_numbers
from crosspair.video.pixels import separate_views
from crosspair.video.views import load_view, training_view
from tests.test_workers import is_running, wait_for

CONFIG = ClipConfig(size=16, frames=2, stride=4, color_jitter=0.3)
BROKEN = (2, 5)
LEVEL = 25  # of grey, between one row's video and the next one's


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, make_video, grey_frames) -> list[Clip]:
    """Row i is grey of level 25 i; rows 2 and 5 cannot be read."""
    folder = tmp_path_factory.mktemp("rows")
    made = []
    for row in range(8):
        path = folder / f"{row}.mp4"
        if row in BROKEN:
            path.write_text("no video")
        else:
            make_video(path, size=(48, 32), frames=20, content=grey_frames(LEVEL * row))
        made.append(Clip(str(path)))
    return made


def batches(clips: list[Clip], workers: int = 0, start: int = 0, epochs: int = 2) -> list[Batch]:
    order = TrainingOrder(len(clips), 4, epochs, seed=7, start=start)
    return list(training_loader(clips, order, CONFIG, seed=7, workers=workers))


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert (a.epoch, a.failures) == (b.epoch, b.failures)
        assert torch.equal(a.rows, b.rows)
        assert torch.equal(a.clips, b.clips)
        assert torch.equal(a.colors, b.colors)


# --- the order ----------------------------------------------------------------------------------

orders = st.tuples(
    st.integers(4, 60), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31)
)  # pairs, batch size, epochs, seed


@given(orders)
def test_an_epoch_takes_each_pair_at_most_once_and_drops_less_than_a_batch(order: tuple[int, int, int, int]) -> None:
    pairs, size, epochs, seed = order
    taken = list(TrainingOrder(pairs, size, epochs, seed))
    assert len(taken) == epochs * (pairs // size) == len(TrainingOrder(pairs, size, epochs, seed))
    for epoch in range(epochs):
        rows = [row for batch in taken for row, of in batch if of == epoch]
        assert len(rows) == len(set(rows)) == pairs - pairs % size
        assert set(rows) <= set(range(pairs))


@given(orders, st.integers(1, 4))
def test_the_shares_of_all_processes_make_up_each_batch(order: tuple[int, int, int, int], world_size: int) -> None:
    whole = list(TrainingOrder(*order))
    shares = [list(TrainingOrder(*order, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert [job for part in parts for job in part] == batch
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(orders, st.integers(1, 4), st.data())
def test_a_resumed_order_goes_on_where_it_was_for_any_number_of_processes(
    order: tuple[int, int, int, int], world_size: int, data: st.DataObject
) -> None:
    whole = list(TrainingOrder(*order))
    start = data.draw(st.integers(0, len(whole)))
    rests = [TrainingOrder(*order, rank=rank, world_size=world_size, start=start) for rank in range(world_size)]
    batches = [[job for part in parts for job in part] for parts in zip(*rests, strict=True)]
    assert batches == whole[start:]
    assert len(rests[0]) == len(whole) - start


def test_fewer_pairs_than_a_batch_make_an_order_without_batches() -> None:
    order = TrainingOrder(pairs=3, batch_size=4, epochs=5, seed=0)
    assert len(order) == 0
    assert list(order) == []


# --- batches ------------------------------------------------------------------------------------


def test_batches_are_the_same_with_and_without_workers(clips: list[Clip]) -> None:
    assert_same(batches(clips), batches(clips, workers=2))


def test_a_resumed_loader_goes_on_with_the_very_batch(clips: list[Clip]) -> None:
    assert_same(batches(clips, start=1, epochs=3), batches(clips, epochs=3)[1:])


def test_every_row_bears_its_own_pixels(clips: list[Clip]) -> None:
    seen = set()
    for batch in batches(clips):
        assert batch.clips.dtype == torch.uint8
        assert batch.clips.is_contiguous(memory_format=torch.channels_last_3d)
        for row, pixels in zip(batch.rows.tolist(), batch.clips, strict=True):
            assert pixels.float().mean().item() == pytest.approx(LEVEL * row, abs=5)
            seen.add(row)
    assert seen == set(range(8)) - set(BROKEN)


def test_a_broken_video_is_named_under_its_row_and_replaced_by_none(clips: list[Clip]) -> None:
    for epoch in range(2):
        made = [batch for batch in batches(clips) if batch.epoch == epoch]
        failures = {row: message for batch in made for row, message in batch.failures}
        assert set(failures) == set(BROKEN)
        for row, message in failures.items():
            assert message.startswith(f"{clips[row].path}: ")
        assert sorted(row for b in made for row in b.rows.tolist()) == [0, 1, 3, 4, 6, 7]
    broken = [clips[row] for row in BROKEN]
    (batch,) = training_loader(broken, TrainingOrder(2, 2, 1, seed=0), CONFIG, seed=0, workers=0)
    assert len(batch.rows) == len(batch.clips) == len(batch.colors) == 0


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("is killed by signal: Terminated. ", "--resume"),
        ("is killed by signal: Killed. ", r"crosspair check --decode m --out checked\.parquet"),
    ],
)
def test_a_dead_worker_is_explained(reason: str, advice: str) -> None:
    with pytest.raises(VideoError, match=advice), explain_dead_workers(Path("m")):
        raise RuntimeError(f"DataLoader worker (pid 7) {reason}")


BATCH = 4 * 3 * CONFIG.frames * CONFIG.size**2  # bytes


@pytest.mark.parametrize(
    ("free", "processes", "prefetch"), [(None, 1, 4), (10, 1, 4), (9, 1, 3), (4, 1, 1), (20, 2, 4), (10, 2, 1)]
)
def test_batches_that_fill_shared_memory_are_not_prefetched(
    clips: list[Clip], monkeypatch: pytest.MonkeyPatch, free: int | None, processes: int, prefetch: int
) -> None:
    monkeypatch.setattr(loader, "free_shared_memory", lambda: free and free * BATCH)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    made = training_loader(clips, TrainingOrder(len(clips), 4, 1, seed=7), CONFIG, seed=7, workers=2)
    assert made.prefetch_factor == prefetch


def test_a_batch_larger_than_shared_memory_is_an_error(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "free_shared_memory", lambda: 4 * BATCH - 1)
    order = TrainingOrder(len(clips), 4, 1, seed=7)
    with pytest.raises(RunError, match="--shm-size"):
        training_loader(clips, order, CONFIG, seed=7, workers=2)
    training_loader(clips, order, CONFIG, seed=7, workers=0)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_worker_whose_parent_ended_before_it_began_ends(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    code = (
        "import multiprocessing, os, pathlib, signal, sys, time\n"
        "from crosspair.video.loader import _start_worker\n"
        "def work(parent):\n"
        "    while os.getppid() == parent: time.sleep(0.01)\n"
        "    pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\n"
        "    _start_worker(0)\n"
        "    while True: signal.pause()\n"
        "multiprocessing.get_context('fork').Process(target=work, args=(os.getpid(),)).start()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(file)])
    wait_for(lambda: file.exists() and file.read_text())
    wait_for(lambda: not is_running(int(file.read_text())))


def test_a_view_depends_on_seed_epoch_and_row_alone(clips: list[Clip]) -> None:
    for batch in batches(clips):
        for row, pixels, colors in zip(batch.rows.tolist(), batch.clips, batch.colors, strict=True):
            generator = np.random.default_rng((7, VIEW, batch.epoch, row))
            view = training_view(generator, CONFIG)
            expected = load_view(clips[row], view, CONFIG)
            np.testing.assert_array_equal(pixels.permute(1, 2, 3, 0).numpy(), expected)
            assert colors.tolist() == pytest.approx(view.colors)


def test_two_views_of_a_clip_lie_one_after_the_other(clips: list[Clip]) -> None:
    order = TrainingOrder(len(clips), 4, 4, seed=7)
    for batch in training_loader(clips, order, CONFIG, seed=7, workers=0, views=3, views_per_step=2):
        assert batch.clips.is_contiguous(memory_format=torch.channels_last_3d)
        colors = separate_views(batch.colors, 2)
        pixels = separate_views(batch.clips.transpose(1, 2), 2)  # (2B, T, 3, H, W)
        assert pixels.data_ptr() == batch.clips.data_ptr()  # not copied
        numbers = view_numbers(batch.epoch, 3, 2)
        expected = [(row, number) for row in batch.rows.tolist() for number in numbers]
        for (row, number), found, factors in zip(expected, pixels, colors, strict=True):
            view = training_view(np.random.default_rng((7, VIEW, number, row)), CONFIG)
            np.testing.assert_array_equal(found.permute(0, 2, 3, 1), load_view(clips[row], view, CONFIG))
            assert factors.tolist() == pytest.approx(view.colors)


@given(st.integers(0, 50), st.integers(1, 6))
def test_epochs_use_views_in_turn(epoch: int, views: int) -> None:
    assert view_numbers(epoch, views, 1) == [epoch % views]
    assert view_numbers(epoch, 0, 1) == [epoch]
    assert view_numbers(epoch, 0, 2) == [2 * epoch, 2 * epoch + 1]


@given(st.integers(2, 6))
def test_all_combinations_of_two_views_occur(views: int) -> None:
    steps = [tuple(view_numbers(epoch, views, 2)) for epoch in range(views * (views - 1))]
    assert set(steps) == set(itertools.permutations(range(views), 2))
