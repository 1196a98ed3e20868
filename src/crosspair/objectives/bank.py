"""The memory bank: one video and one text entry for each pair (Section 3.2).

Entries are spread over the processes, entry i on process ``i % world.size``. What travels in a
step are the rows that are asked for and the batch's new entries, whatever the number of pairs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from crosspair.devices import sent
from crosspair.distributed import World
from crosspair.errors import RunError


class MemoryBank:
    """Unit vectors for N pairs, updated by a moving average.

    Args:
        pairs: N.
        dimensions: D of the common space.
        momentum: share of the old entry that an update keeps (the paper's code: 0.5).
        seed: of the random unit vectors that it starts with.
        world: the processes that share it.
    """

    def __init__(
        self, pairs: int, dimensions: int, momentum: float, seed: int, world: World
    ) -> None:
        self.pairs, self.momentum, self.world = pairs, momentum, world
        self.video, self.text = self._random_entries(dimensions, seed).to(world.device)

    def lookup(
        self, index: torch.Tensor, *, shared: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Entries of given pairs.

        Args:
            index: (...) int64, 0 to N - 1.
            shared: whether every process asks for the same ones, which then travel but once.

        Returns:
            The video and the text entries, each (..., D).
        """
        if self.world.size == 1:
            return self.video[index], self.text[index]
        asked = index.flatten() if shared else self.world.gather_rows(index.flatten())
        mine = asked % self.world.size == self.world.rank
        row = torch.where(mine, asked // self.world.size, 0)
        found = torch.stack([self.video[row], self.text[row]]) * mine.unsqueeze(1)  # (2, M, D)
        found = self.world.sum(found)
        if not shared:
            begin = self.world.offset(index.numel())
            found = found[:, begin : begin + index.numel()]
        video, text = found.view(2, *index.shape, -1)
        return video, text

    @torch.no_grad()
    def update(self, index: torch.Tensor, video: torch.Tensor, text: torch.Tensor) -> None:
        """Move the entries of a batch towards its embeddings, on whichever process they are.

        Args:
            index: (B,) int64, this process's pairs; best on the host, which must know whose they
                are, and would else wait for the device.
            video: (B, D) f_v of unit norm.
            text: (B, D) f_t of unit norm.
        """
        index = self.world.gather_rows(index)
        new = self.world.gather_rows(torch.stack([video, text], dim=1).float())  # (B, 2, D)
        mine = (index % self.world.size == self.world.rank).nonzero().squeeze(1)
        row = sent(index[mine] // self.world.size, new.device)
        new = new[sent(mine, new.device)]
        for entries, vectors in ((self.video, new[:, 0]), (self.text, new[:, 1])):
            mixed = self.momentum * entries[row] + (1 - self.momentum) * vectors
            entries[row] = F.normalize(mixed, dim=1)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """This process's entries."""
        return {"video": self.video, "text": self.text}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back what `state_dict` gave."""
        for name, entries in (("video", self.video), ("text", self.text)):
            if state[name].shape != entries.shape:
                raise RunError(
                    f"the checkpoint's memory bank holds {tuple(state[name].shape)} entries, this "
                    f"run's {tuple(entries.shape)}: other pairs or another number of processes"
                )
            entries.copy_(state[name])

    def _random_entries(self, dimensions: int, seed: int) -> torch.Tensor:
        """This process's share of entries that are the same however many processes share them."""
        shares = []
        for begin in range(0, self.pairs, _BLOCK):
            generator = torch.Generator().manual_seed(seed + begin)
            block = torch.randn(2, min(_BLOCK, self.pairs - begin), dimensions, generator=generator)
            first = (self.world.rank - begin) % self.world.size
            shares.append(F.normalize(block[:, first :: self.world.size], dim=2))
        return torch.cat(shares, dim=1)


_BLOCK = 1 << 16  # rows drawn at a time, so that no process ever holds all of them
