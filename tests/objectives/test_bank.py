"""The memory bank: initialisation, update, sharding and resuming."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from crosspair.distributed import World
from crosspair.errors import RunError
from crosspair.objectives import MemoryBank
from crosspair.objectives import bank as bank_module

pytestmark = pytest.mark.usefixtures("one_thread")


def test_initial_entries_are_seeded_unit_vectors() -> None:
    bank, same, other = (MemoryBank(100, 16, 0.5, seed, World()) for seed in (0, 0, 1))
    for entries in (bank.video, bank.text):
        torch.testing.assert_close(entries.norm(dim=1), torch.ones(100))
    assert torch.equal(bank.video, same.video)
    assert not torch.equal(bank.video, other.video)
    assert not torch.equal(bank.video, bank.text)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_initial_entries_do_not_depend_on_the_world_size(size) -> None:
    whole = MemoryBank(100_003, 2, 0.5, 0, World())  # more than one block
    for rank in range(size):
        shard = MemoryBank(100_003, 2, 0.5, 0, World(rank, size))
        assert torch.equal(shard.video, whole.video[rank::size])
        assert torch.equal(shard.text, whole.text[rank::size])


def test_update_matches_reference() -> None:
    bank = MemoryBank(10, 4, 0.5, 0, World())
    video, text = F.normalize(torch.randn(2, 3, 4), dim=2)
    index = torch.tensor([7, 0, 3])
    expected_video, expected_text = bank.video.clone(), bank.text.clone()
    for i, pair in enumerate(index.tolist()):
        for entries, vector in ((expected_video, video[i]), (expected_text, text[i])):
            mixed = 0.5 * entries[pair] + 0.5 * vector
            entries[pair] = mixed / mixed.norm()
    bank.update(index, video, text)
    torch.testing.assert_close(bank.video, expected_video)
    torch.testing.assert_close(bank.text, expected_text)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_update_replaces_filled_entries(dtype: torch.dtype) -> None:
    bank = MemoryBank(6, 4, 0.5, 0, World(), dtype)
    random = bank.video.clone()
    titles, (video, text) = F.normalize(torch.randn(2, 4), dim=1), F.normalize(torch.randn(2, 3, 4), dim=2)
    bank.fill(torch.tensor([4, 1]), "text", titles)
    assert torch.equal(bank.text[[4, 1]], titles.to(dtype))
    assert torch.equal(bank.video, random)
    assert bank.unvisited.nonzero().flatten().tolist() == [1, 4]
    index = torch.tensor([1, 2, 5])
    bank.update(index, video, text)
    torch.testing.assert_close(bank.video[1], video[0].to(dtype))
    torch.testing.assert_close(bank.text[1], text[0].to(dtype))
    averaged = F.normalize(random[[2, 5]].float() + video[1:], dim=1).to(dtype)
    torch.testing.assert_close(bank.video[[2, 5]], averaged)
    before = bank.text[1].float().clone()
    bank.update(torch.tensor([1]), video[1:2], text[1:2])
    torch.testing.assert_close(bank.text[1], F.normalize(before + text[1], dim=0).to(dtype))
    assert bank.unvisited.nonzero().flatten().tolist() == [4]


def split_state(bank: MemoryBank, processes: int) -> list[dict[str, torch.Tensor]]:
    """Split the state of an unsharded bank as the given number of processes would save it."""
    return [
        {name: entries[rank::processes] for name, entries in bank.state_dict().items()} for rank in range(processes)
    ]


@given(pairs=st.integers(1, 60), old_size=st.integers(1, 7), size=st.integers(1, 7))
def test_resume_with_another_world_size(pairs: int, old_size: int, size: int) -> None:
    whole = MemoryBank(pairs, 3, 0.5, 1, World())
    whole.unvisited = torch.rand(pairs) < 0.5
    for rank in range(size):
        shard = MemoryBank(pairs, 3, 0.5, 0, World(rank, size))
        shard.load_state_dict(split_state(whole, old_size))
        assert torch.equal(shard.unvisited, whole.unvisited[rank::size])
        assert torch.equal(shard.video, whole.video[rank::size])
        assert torch.equal(shard.text, whole.text[rank::size])


def test_resharding_of_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_module, "_BLOCK", 4)
    whole = MemoryBank(50, 3, 0.5, 1, World())
    shard = MemoryBank(50, 3, 0.5, 0, World(1, 2))
    shard.load_state_dict(split_state(whole, 3))
    assert torch.equal(shard.video, whole.video[1::2])


@pytest.mark.parametrize("shape", [(11, 4), (10, 5)])
def test_bank_of_another_shape_is_refused(shape: tuple[int, int]) -> None:
    bank = MemoryBank(10, 4, 0.5, 0, World())
    with pytest.raises(RunError, match=r"10 .* 4 .*{} .* {}".format(*shape)):
        MemoryBank(*shape, 0.5, 0, World()).load_state_dict([bank.state_dict()])


@given(st.integers(0, 2**31))
def test_error_of_bfloat16_entries(seed: int) -> None:
    """Similarities are off by 2⁻⁹ at most, and so a posterior by a factor of exp(2⁻⁹/τ)."""
    pairs, dimensions, temperature = 200, 256, 0.07
    exact, coarse = (
        MemoryBank(pairs, dimensions, 0.5, seed, World(), dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    query = F.normalize(torch.randn(8, dimensions, generator=torch.Generator().manual_seed(seed)))
    index = torch.arange(pairs)
    for bank in (exact, coarse):
        bank.update(index[:8], query, query)
    assert coarse.state_dict()["video"].dtype == torch.bfloat16
    scores = [query @ bank.lookup(index)[0].T / temperature for bank in (exact, coarse)]
    error = (scores[0] - scores[1]).abs()
    assert 0 < error.max() < 2**-9 / temperature
    assert error.mean() < 1e-4 / temperature
    posterior = [each.softmax(dim=1) for each in scores]
    ratio = (posterior[1] / posterior[0]).log().abs()
    assert ratio.max() < 2 * 2**-9 / temperature
    assert ratio.mean() < 0.01
