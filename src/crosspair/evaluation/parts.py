"""Features that are being made: parts on disk, so that what was killed goes on where it was."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from crosspair.atomic import write_atomically
from crosspair.distributed import World
from crosspair.errors import RunError
from crosspair.evaluation.features import Encoded

SAVE_EVERY = 30.0  # s between parts: what a kill costs at most
LOOK_EVERY = 0.2  # s between looks for the other processes' marks
SUFFIX = ".safetensors"


class Parts:
    """A folder of parts; as a context, open for more by this process.

    Args:
        folder: shared by all processes; need not be there.
        world: the processes that fill the folder together.
    """

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        self.added = 0
        """Videos, readable or not, that this process added."""
        self._next = 0
        self._new, self._saved = Encoded(), time.monotonic()

    @property
    def protocol(self) -> str:
        """What `begin` was given when the folder was made; empty where it is not there."""
        try:
            return self._protocol_file.read_text(encoding="utf-8")
        except OSError:
            return ""

    def begin(self, protocol: str) -> set[int]:
        """Make the folder where there is none; each process calls this before any adds a part.

        Returns:
            The rows of the manifest that are done, readable or not.

        Raises:
            RunError: the folder cannot be written, or a part cannot be read.
        """
        if self.world.is_main and not self.protocol:
            write_atomically(self._protocol_file, protocol)
        self.world.barrier()
        self._mark(self.world.rank).unlink(missing_ok=True)
        mine = self.folder.glob(f"{self.world.rank}-*{SUFFIX}")
        self._next = 1 + max((int(path.stem.split("-")[1]) for path in mine), default=-1)
        done = {row for part in self.read(rows_only=True) for row in (*part.rows, *part.failures)}
        self.world.barrier()
        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._flush()  # after Ctrl-C, too

    def add(self, encoded: Encoded) -> None:
        """Take what came of some videos; now and then, write it."""
        self._new.extend(encoded)
        self.added += len(encoded.rows) + len(encoded.failures)
        if time.monotonic() - self._saved >= SAVE_EVERY:
            self._flush()

    def wait_for_all(self) -> None:
        """Until every process has written all that it will."""
        if self.world.size == 1:
            return
        # By files first: processes may end hours apart, and a barrier gives up after minutes.
        write_atomically(self._mark(self.world.rank), "")
        while not all(self._mark(rank).exists() for rank in range(self.world.size)):
            time.sleep(LOOK_EVERY)
        self.world.barrier()

    def read(self, rows_only: bool = False) -> Iterator[Encoded]:
        """The parts of all processes.

        Raises:
            RunError: one cannot be read.
        """
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            try:
                with safe_open(path, framework="pt") as part:
                    yield _encoded(part, rows_only)
            except (SafetensorError, OSError, ValueError, KeyError) as error:
                raise RunError(
                    f"{path} cannot be read ({error}); remove it, and its videos are encoded again"
                ) from error

    def remove(self) -> None:
        """All is done, and kept elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _protocol_file(self) -> Path:
        return self.folder / "protocol.json"

    def _mark(self, rank: int) -> Path:
        return self.folder / f"{rank}.done"

    def _flush(self) -> None:
        new = self._new
        if new.rows or new.failures:
            tensors = {"rows": torch.tensor(new.rows, dtype=torch.long)}
            if new.rows:
                tensors["visual"] = torch.stack(new.visual)
                tensors["embedding"] = torch.stack(new.embedding)
            name = f"{self.world.rank}-{self._next:06d}{SUFFIX}"
            content = save(tensors, {"failures": json.dumps(new.failures)})
            write_atomically(self.folder / name, content)
            self._next += 1
        self._new, self._saved = Encoded(), time.monotonic()


def _encoded(part: Any, rows_only: bool) -> Encoded:
    failures = {int(row): text for row, text in json.loads(part.metadata()["failures"]).items()}
    rows = part.get_tensor("rows").tolist()
    if rows_only or not rows:
        return Encoded(rows, failures=failures)
    visual, embedding = (list(part.get_tensor(name)) for name in ("visual", "embedding"))
    return Encoded(rows, visual, embedding, failures)
