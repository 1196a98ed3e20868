"""A worker's task that dies of empty files."""

import os
import signal
from pathlib import Path
from typing import Any

from crosspair.corpora.prepare.attempt import attempt as answer


def attempt(form: list[Any]) -> dict[str, Any]:
    if Path(form[0]["path"]).stat().st_size == 0:
        os.kill(os.getpid(), signal.SIGSEGV)
    return answer(form)
