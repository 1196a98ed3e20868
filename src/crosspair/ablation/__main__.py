"""``python -m crosspair.ablation FOLDER SLOT``: what `crosspair.ablation.run` starts."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from crosspair.ablation.run import ASK_EVERY, STOPPED
from crosspair.errors import CrosspairError


def main(folder: str, slot: str) -> int:
    """Do a cell; its last line tells what was wrong, if anything was."""
    _end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%X")

    import torch  # heavy: whoever is told to stop before it has come that far ends at once

    from crosspair.ablation.work import run_cell
    from crosspair.distributed import World

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    world = World()
    if torch.cuda.is_available():
        world = World(device=torch.device("cuda", int(slot) % torch.cuda.device_count()))
        torch.cuda.set_device(world.device)
    try:
        return 0 if run_cell(Path(folder), world) else STOPPED
    except CrosspairError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def _end_with_parent() -> None:
    """Ask for a stop when the other end of standard input is gone, however that came about."""

    def follow() -> None:
        # Not sys.stdin: a decoding process would inherit its lock, held here, and wait for ever.
        while os.read(0, 1):
            pass
        while True:  # one may come when a training is at its end and no longer looks
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(ASK_EVERY)

    threading.Thread(target=follow, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
