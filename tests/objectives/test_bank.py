"""The memory bank: how it starts, moves, is shared, and comes back."""

import pytest
import torch
import torch.nn.functional as F

from crosspair.distributed import World
from crosspair.errors import RunError
from crosspair.objectives import MemoryBank


def test_it_starts_with_unit_vectors_that_its_seed_decides() -> None:
    bank, same, other = (MemoryBank(100, 16, 0.5, seed, World()) for seed in (0, 0, 1))
    for entries in (bank.video, bank.text):
        torch.testing.assert_close(entries.norm(dim=1), torch.ones(100))
    assert torch.equal(bank.video, same.video)
    assert not torch.equal(bank.video, other.video)
    assert not torch.equal(bank.video, bank.text)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_processes_start_with_their_share_of_the_same_entries(size) -> None:
    whole = MemoryBank(100_003, 2, 0.5, 0, World())  # more than one block
    for rank in range(size):
        share = MemoryBank(100_003, 2, 0.5, 0, World(rank, size))
        assert torch.equal(share.video, whole.video[rank::size])
        assert torch.equal(share.text, whole.text[rank::size])


def test_an_update_is_the_plain_loops() -> None:
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


def test_momentum_zero_replaces_entries() -> None:
    bank = MemoryBank(10, 4, 0.0, 0, World())
    video, text = F.normalize(torch.randn(2, 2, 4), dim=2)
    bank.update(torch.tensor([1, 2]), video, text)
    torch.testing.assert_close(bank.lookup(torch.tensor([1, 2])), (video, text))


def test_lookup_takes_any_shape() -> None:
    bank = MemoryBank(10, 4, 0.5, 0, World())
    video, text = bank.lookup(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert video.shape == text.shape == (2, 3, 4)
    assert torch.equal(text[1, 2], bank.text[6])


def test_state_comes_back_and_another_size_is_refused() -> None:
    bank, other = (MemoryBank(10, 4, 0.5, seed, World()) for seed in (0, 1))
    other.load_state_dict(bank.state_dict())
    assert torch.equal(other.video, bank.video)
    with pytest.raises(RunError, match="other pairs or another number of processes"):
        MemoryBank(11, 4, 0.5, 0, World()).load_state_dict(bank.state_dict())
