"""Projections to several GPUs or machines."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.planning import TrainingSize, project
from crosspair.planning.measuring import Measurements

MEASURED = Measurements(
    seconds=30, by_worker=50, loading=180, step=100, together=90, data_wait=0.02, forward=400,
    part=32, memory=10_000, by_clip=100, worker_memory=0, available=20_000,
)  # fmt: skip
WHOLE = TrainingSize(
    clips=9_000, validated=600, batch=64, parts=2, bank=4_000, gradients=1_000, cores=6
)  # fmt: skip
rates = st.floats(0.1, 1e4)


def test_one_process_is_as_measured() -> None:
    found = project(WHOLE, MEASURED, 1)
    assert found.measured
    assert found.clips_per_second == 90
    assert found.hours == pytest.approx((9_000 / 90 + 600 / 180) / 3600)
    assert (found.memory, found.all_reduce) == (10_000, 0)


def test_gpus_of_one_machine_share_its_cores() -> None:
    four = project(WHOLE, MEASURED, 4)
    # Steps allow 400 and four times the workers 720, but six cores load 300.
    assert four.clips_per_second == pytest.approx(90 * 300 / 100)
    assert not four.measured


def test_machines_have_their_own_cores() -> None:
    apart = dataclasses.replace(WHOLE, cores=0)
    assert project(apart, MEASURED, 4).clips_per_second == pytest.approx(360)


def test_memory_has_a_smaller_micro_batch_and_a_shard_of_the_bank() -> None:
    # 64 / 2 processes / 2 parts: 16 clips rather than 32.
    assert project(WHOLE, MEASURED, 2).memory == 10_000 - 16 * 100 - 2_000


def test_traffic_of_a_ring_all_reduce() -> None:
    assert [project(WHOLE, MEASURED, n).all_reduce for n in (1, 2, 4)] == [0, 1_000, 1_500]


@given(rates, rates, rates, st.sampled_from([2, 4, 8]), st.integers(0, 64))
def test_speedup_is_between_one_and_the_number_of_processes(
    by_worker: float, loading: float, step: float, processes: int, cores: int
) -> None:
    measured = dataclasses.replace(
        MEASURED, by_worker=by_worker, loading=loading, step=step, together=min(step, loading) / 2
    )
    whole = dataclasses.replace(WHOLE, cores=cores)
    one, many = (project(whole, measured, n).clips_per_second for n in (1, processes))
    assert one * (1 - 1e-9) <= many <= processes * one * (1 + 1e-9)
