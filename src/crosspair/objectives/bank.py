"""Memory bank: one video and one text embedding per pair (Section 3.2).

Entries start as random unit vectors, unless `MemoryBank.fill` sets them before the first update.
The bank is sharded: entry i is stored on process ``i % world.size``. A step communicates only the
requested rows and the new entries of the batch, so traffic does not depend on the number of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from crosspair.device import to_device
from crosspair.distributed import World
from crosspair.errors import RunError

_BLOCK = 1 << 16  # rows generated or copied at a time, so that no process holds the whole bank


class MemoryBank:
    """Unit vectors of N pairs, updated by an exponential moving average.

    Args:
        pairs: number of pairs N.
        dimensions: embedding dimension D.
        momentum: weight of the old entry in an update, 0 to 1 (0.5 in the paper's code).
        seed: seed of the random unit vectors that the bank is initialised with.
        world: processes that the bank is sharded over.
        dtype: float32, or bfloat16 for half the memory and traffic with an error of at most 2⁻⁹ in a similarity.

    Attributes:
        video, text: entries of this process, (rows, D) each.
        unvisited: (rows,) bool, pairs whose next update replaces their entries: those filled, and not updated since.
    """

    def __init__(
        self, pairs: int, dimensions: int, momentum: float, seed: int, world: World, dtype: torch.dtype = torch.float32
    ) -> None:
        self.pairs, self.momentum, self.world = pairs, momentum, world
        self.titles: torch.Tensor | None = None  # (N,) int64 of each pair, if pairs of one title are no negatives
        rows = len(range(world.rank, pairs, world.size))
        self.video, self.text = torch.empty(2, rows, dimensions, dtype=dtype, device=world.device)
        self.unvisited = torch.zeros(rows, dtype=torch.bool, device=world.device)
        self._init_entries(seed)

    def lookup(self, index: torch.Tensor, *, shared: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the entries of pairs.

        Args:
            index: (...) int64, pairs from 0 to N - 1.
            shared: whether all processes pass the same ``index``, which then is not gathered.

        Returns:
            Video and text entries, each (..., D), in float32 or wider.
        """
        if self.world.size == 1:
            return _to_float32(self.video[index]), _to_float32(self.text[index])
        requested = index.flatten() if shared else self.world.gather_rows(index.flatten())
        local = requested % self.world.size == self.world.rank
        row = torch.where(local, requested // self.world.size, 0)
        entries = torch.stack([self.video[row], self.text[row]]) * local.unsqueeze(1)  # (2, M, D)
        entries = self.world.sum(entries)
        if not shared:
            start = self.world.offset(index.numel())
            entries = entries[:, start : start + index.numel()]
        video, text = _to_float32(entries).view(2, *index.shape, -1)
        return video, text

    def duplicates(self, index: torch.Tensor, others: torch.Tensor) -> torch.Tensor | None:
        """Return which pairs are no negatives of others, since they share their title.

        Args:
            index: (B,) int64, pairs.
            others: (n,) or (B, n) int64, pairs to compare each of them with.

        Returns:
            (B, n) bool, False for a pair and itself; None if no titles are set.
        """
        if self.titles is None:
            return None
        index = index.unsqueeze(1)
        return (self.titles[index] == self.titles[others]) & (index != others)

    @torch.no_grad()
    def fill(self, index: torch.Tensor, name: str, vectors: torch.Tensor) -> None:
        """Set entries before the training; the first update of their pairs replaces the video and the text entry.

        Args:
            index: (B,) int64 on the CPU, the pairs of this process; B may be 0.
            name: "video" or "text".
            vectors: (B, D) of unit norm.
        """
        entries: torch.Tensor = getattr(self, name)
        row, new = self._gather_local(index, vectors)
        entries[row] = new.to(entries.dtype)
        self.unvisited[row] = True

    @torch.no_grad()
    def update(self, index: torch.Tensor, video: torch.Tensor, text: torch.Tensor) -> None:
        """Move the entries of the global batch towards its embeddings and normalise them.

        The entries of a pair that is `unvisited` become the embeddings themselves.

        Args:
            index: (B,) int64, the pairs of this process. A CPU tensor avoids a synchronisation with the device.
            video: (B, D) f_v of unit norm.
            text: (B, D) f_t of unit norm.
        """
        row, new = self._gather_local(index, torch.stack([video, text], dim=1))  # (b, 2, D)
        replaced = self.unvisited[row].unsqueeze(1)
        for entries, vectors in ((self.video, new[:, 0]), (self.text, new[:, 1])):
            mixed = self.momentum * _to_float32(entries[row]) + (1 - self.momentum) * vectors
            entries[row] = F.normalize(torch.where(replaced, vectors, mixed), dim=1).to(entries.dtype)
        self.unvisited[row] = False

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the shard of this process."""
        return {"video": self.video, "text": self.text, "unvisited": self.unvisited}

    def load_state_dict(self, shards: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Load a bank that was saved by any number of processes.

        Args:
            shards: the `state_dict` of every process, in rank order. Only the entries of this
                process are copied, so memory-mapped tensors stay on disk.

        Raises:
            RunError: the number of pairs or the dimension differs.
        """
        old_size, size = len(shards), self.world.size
        # All entries with the same index modulo `period` are on one old and on one new process, evenly spaced on both.
        period = math.lcm(old_size, size)
        saved = (sum(len(shard["video"]) for shard in shards), shards[0]["video"].shape[1])
        if saved != (self.pairs, self.video.shape[1]):
            raise RunError(
                f"memory bank: the checkpoint has {saved[0]} entries of {saved[1]} dimensions, "
                f"this run has {self.pairs} of {self.video.shape[1]}. Resume with the same "
                "manifest and recipe, or start a new run."
            )
        for name, entries in self.state_dict().items():
            for first in range(self.world.rank, period, size):
                source = shards[first % old_size][name][first // old_size :: period // old_size]
                target = entries[first // size :: period // size]
                for start in range(0, len(target), _BLOCK):
                    target[start : start + _BLOCK] = source[start : start + _BLOCK]

    def _gather_local(self, index: torch.Tensor, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gather vectors (B, …) of pairs (B,) from all processes.

        Returns:
            The rows (b,) in this process's shard of those pairs that it stores, and their vectors (b, …) in float32.
        """
        index, vectors = self.world.gather_rows(index), self.world.gather_rows(vectors.float())
        local = (index % self.world.size == self.world.rank).nonzero().squeeze(1)
        row = to_device(index[local] // self.world.size, vectors.device)
        return row, vectors[to_device(local, vectors.device)]

    def _init_entries(self, seed: int) -> None:
        """Fill this process's shard with random unit vectors that do not depend on the number of processes."""
        for start in range(0, self.pairs, _BLOCK):
            generator = torch.Generator().manual_seed(seed + start)
            shape = 2, min(_BLOCK, self.pairs - start), self.video.shape[1]
            block = torch.randn(shape, generator=generator)
            first = (self.world.rank - start) % self.world.size
            local = F.normalize(block[:, first :: self.world.size], dim=2)
            row = (start + first) // self.world.size
            for entries, vectors in zip((self.video, self.text), local, strict=True):
                entries[row : row + len(vectors)] = vectors


def _to_float32(entries: torch.Tensor) -> torch.Tensor:
    """Convert to float32; float64 is kept."""
    return entries.to(torch.promote_types(entries.dtype, torch.float32))
