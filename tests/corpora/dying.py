"""Tasks of workers that die: of empty files, or of anything."""

import os
import signal
from pathlib import Path

from crosspair.corpora.prepare.attempt import attempt as answer
from crosspair.corpora.prepare.request import Outcome, Request


def attempt(request: Request) -> Outcome:
    if Path(request.clip.path).stat().st_size == 0:
        os.kill(os.getpid(), signal.SIGSEGV)
    return answer(request)


def kill(job: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
