"""The memory bank: one video and one text entry for each pair (Section 3.2).

Entries are spread over the processes, entry i on process ``i % world.size``. What travels in a
step are the rows that are asked for and the batch's new entries, whatever the number of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from crosspair.device import to_device
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
        dtype: float32, or bfloat16 for half the memory and traffic: a similarity is then off by
            2⁻⁹ at most.
    """

    def __init__(
        self,
        pairs: int,
        dimensions: int,
        momentum: float,
        seed: int,
        world: World,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.pairs, self.momentum, self.world = pairs, momentum, world
        rows = len(range(world.rank, pairs, world.size))
        self.video, self.text = torch.empty(2, rows, dimensions, dtype=dtype, device=world.device)
        self._fill_randomly(seed)

    def lookup(
        self, index: torch.Tensor, *, shared: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Entries of given pairs.

        Args:
            index: (...) int64, 0 to N - 1.
            shared: whether every process asks for the same ones, which then travel but once.

        Returns:
            The video and the text entries, each (..., D), in float32 at least.
        """
        if self.world.size == 1:
            return _to_float32(self.video[index]), _to_float32(self.text[index])
        asked = index.flatten() if shared else self.world.gather_rows(index.flatten())
        mine = asked % self.world.size == self.world.rank
        row = torch.where(mine, asked // self.world.size, 0)
        found = torch.stack([self.video[row], self.text[row]]) * mine.unsqueeze(1)  # (2, M, D)
        found = self.world.sum(found)
        if not shared:
            begin = self.world.offset(index.numel())
            found = found[:, begin : begin + index.numel()]
        video, text = _to_float32(found).view(2, *index.shape, -1)
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
        row = to_device(index[mine] // self.world.size, new.device)
        new = new[to_device(mine, new.device)]
        for entries, vectors in ((self.video, new[:, 0]), (self.text, new[:, 1])):
            mixed = self.momentum * _to_float32(entries[row]) + (1 - self.momentum) * vectors
            entries[row] = F.normalize(mixed, dim=1).to(entries.dtype)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """This process's entries."""
        return {"video": self.video, "text": self.text}

    def load_state_dict(self, shares: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Put back what `state_dict` gave to the processes that there were then, however many.

        Args:
            shares: in the order of their ranks; best mapped from files, as nothing but this
                process's entries is copied.

        Raises:
            RunError: they are of another number of pairs, or of other dimensions.
        """
        then, now = len(shares), self.world.size
        # Entries of one residue by this period were on one process, and are on one, evenly spaced.
        period = math.lcm(then, now)
        for name, entries in (("video", self.video), ("text", self.text)):
            held = (sum(len(share[name]) for share in shares), shares[0][name].shape[1])
            if held != (self.pairs, entries.shape[1]):
                raise RunError(
                    f"the checkpoint's memory bank holds {held[0]} entries of {held[1]} "
                    f"dimensions, this run's {self.pairs} of {entries.shape[1]}: other pairs"
                )
            for first in range(self.world.rank, period, now):
                theirs = shares[first % then][name][first // then :: period // then]
                mine = entries[first // now :: period // now]
                for begin in range(0, len(mine), _BLOCK):
                    mine[begin : begin + _BLOCK] = theirs[begin : begin + _BLOCK]

    def _fill_randomly(self, seed: int) -> None:
        """Begin with entries that are the same however many processes share them."""
        for begin in range(0, self.pairs, _BLOCK):
            generator = torch.Generator().manual_seed(seed + begin)
            shape = 2, min(_BLOCK, self.pairs - begin), self.video.shape[1]
            block = torch.randn(shape, generator=generator)
            first = (self.world.rank - begin) % self.world.size
            share = F.normalize(block[:, first :: self.world.size], dim=2)
            row = (begin + first) // self.world.size
            for entries, drawn in zip((self.video, self.text), share, strict=True):
                entries[row : row + len(drawn)] = drawn


def _to_float32(entries: torch.Tensor) -> torch.Tensor:
    return entries.to(torch.promote_types(entries.dtype, torch.float32))


_BLOCK = 1 << 16  # rows drawn or copied at a time, so that no process ever holds all of them
