"""Features that are being made: journals on disk, so that what was killed goes on where it was."""

from __future__ import annotations

import shutil
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crosspair.atomic import write_atomically
from crosspair.distributed import World
from crosspair.evaluation.features import Encoded
from crosspair.journal import Journal, entries

LOOK_EVERY = 0.2  # s between looks for the other processes' marks


class Parts:
    """A folder with a journal of each process.

    Args:
        folder: shared by all processes; need not be there.
        world: the processes that fill the folder together.
    """

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        self._protocol_file = folder / "protocol.json"

    @property
    def protocol(self) -> str:
        """What `begin` was given when the folder was made; empty where it is not there."""
        try:
            return self._protocol_file.read_text(encoding="utf-8")
        except OSError:
            return ""

    def begin(self, protocol: str) -> set[int]:
        """Make the folder where there is none; each process calls this before any adds to it.

        Returns:
            The rows of the manifest that are done, readable or not.

        Raises:
            RunError: the folder cannot be written, or a journal cannot be read.
        """
        if self.world.is_main and not self.protocol:
            write_atomically(self._protocol_file, protocol)
        self.world.barrier()
        self._mark(self.world.rank).unlink(missing_ok=True)
        done = {each.row for each in self.read()}
        self.world.barrier()
        return done

    def journal(self) -> Journal:
        """This process's, open for more; takes what `lines` gives."""
        return Journal(self.folder / f"{self.world.rank}.jsonl")

    def wait_for_all(self) -> None:
        """Until every process has written all that it will."""
        if self.world.size == 1:
            return
        # By files first: processes may end hours apart, and a barrier gives up after minutes.
        write_atomically(self._mark(self.world.rank), "")
        while not all(self._mark(rank).exists() for rank in range(self.world.size)):
            time.sleep(LOOK_EVERY)
        self.world.barrier()

    def read(self) -> Iterator[Encoded]:
        """What all processes have written; a video that was encoded twice comes twice.

        Raises:
            RunError: a journal cannot be read.
        """
        for path in sorted(self.folder.glob("*.jsonl")):
            for entry in entries(path):
                try:
                    row, visual, embedding, error = entry
                    encoded = Encoded(row, _tensor(visual), _tensor(embedding), error)
                except (TypeError, ValueError):
                    continue  # spoilt: the video is encoded again
                yield encoded

    def remove(self) -> None:
        """All is done, and kept elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _mark(self, rank: int) -> Path:
        return self.folder / f"{rank}.done"


def lines(encoded: Sequence[Encoded]) -> list[Any]:
    """What a journal holds of videos: floats to the last digit, as base64."""
    return [[e.row, _text(e.visual), _text(e.embedding), e.error] for e in encoded]


def _text(values: torch.Tensor) -> str:
    return b64encode(values.numpy().astype("<f4").tobytes()).decode()


def _tensor(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(b64decode(text), "<f4").astype(np.float32))
