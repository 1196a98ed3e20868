"""Dot products of queries with their rows of a table: Triton kernel and PyTorch reference."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspair.objectives import nce
from crosspair.objectives.nce import Dots, gather_dot, gather_dot_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def kernel() -> Iterator[Dots]:
    """The kernel on a GPU, else in Triton's interpreter."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("no Triton: it comes with PyTorch for CUDA")
    with pytest.MonkeyPatch.context() as environment:
        if DEVICE == "cpu":
            environment.setenv("TRITON_INTERPRET", "1")
        from crosspair.objectives import triton_dots

        environment.setattr(triton_dots, "BLOCK", 4)
        environment.setattr(triton_dots, "SPLITS", 2)
        yield triton_dots.triton_gather_dot


def random_inputs(batch: int, m: int, pairs: int, width: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, width, generator=generator)
    table = torch.randn(pairs, width, generator=generator)
    rows = torch.randint(pairs, (batch, m), generator=generator)
    weights = torch.randn(batch, m, generator=generator)  # upstream gradient
    return query, table, rows, weights


@settings(max_examples=10)
@given(
    batch=st.integers(1, 3),
    m=st.integers(1, 20),  # more and less than the blocks of all splits
    pairs=st.integers(1, 40),
    widths=st.lists(st.integers(1, 20), min_size=1, max_size=2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_kernel_matches_reference(kernel, batch, m, pairs, widths, dtype, seed) -> None:
    query, table, rows, weights = random_inputs(batch, m, pairs, sum(widths), seed)
    columns = table.to(DEVICE, dtype).split(widths, dim=1)
    found = []
    for dots in (kernel, gather_dot_reference):
        leaf = query.to(DEVICE).requires_grad_()
        values = dots(leaf, columns, rows.to(DEVICE))
        values.backward(weights.to(DEVICE))
        found.append((values.detach(), leaf.grad))
    for of_kernel, of_twin in zip(*found, strict=True):
        torch.testing.assert_close(of_kernel, of_twin, rtol=1e-5, atol=1e-4)


def test_hand_computed_values() -> None:
    query = torch.tensor([[1.0, 2.0], [0.0, 1.0]], requires_grad=True)
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    rows = torch.tensor([[0, 1, 2], [2, 2, 0]])
    expected = torch.tensor([[1.0, 2.0, 11.0], [4.0, 4.0, 0.0]])
    blocks = [table[:, :1], table[:, 1:]]
    for columns in ([table], blocks):
        assert torch.equal(gather_dot(query, columns, rows), expected)
    gather_dot(query, blocks, rows)[0, 2].backward()
    assert torch.equal(query.grad, torch.tensor([[3.0, 4.0], [0.0, 0.0]]))


def test_gradient_of_a_learned_table() -> None:
    query, table, rows, weights = random_inputs(2, 5, 7, 3, seed=0)
    table.requires_grad_()
    gather_dot(query, [table], rows).backward(weights)
    expected = torch.zeros(7, 3)
    for pair in range(2):
        for k in range(5):
            expected[rows[pair, k]] += weights[pair, k] * query[pair]
    torch.testing.assert_close(table.grad, expected)


def test_missing_triton_is_logged_once(monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "crosspair.objectives.triton_dots", raising=False)
    nce._triton_kernel.cache_clear()
    with caplog.at_level(logging.WARNING, "crosspair"):
        assert nce._triton_kernel() is nce._triton_kernel() is None
    nce._triton_kernel.cache_clear()
    (record,) = caplog.records
    assert "Triton" in record.getMessage()
