"""Worker tasks that end their process: for empty files, or always."""

import os
import signal
from pathlib import Path

from crosspair.corpora.prepare import TranscodeOutcome, TranscodeRequest, run_request


def attempt(request: TranscodeRequest) -> TranscodeOutcome:
    if Path(request.clip.path).stat().st_size == 0:
        os.kill(os.getpid(), signal.SIGSEGV)
    return run_request(request)


def kill(job: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
