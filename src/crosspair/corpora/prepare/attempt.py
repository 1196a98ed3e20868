"""One request answered, whatever happens: what a worker of any engine runs.

Who asks does not import this: it brings all that decoding needs.
"""

from __future__ import annotations

import time
from dataclasses import asdict

from crosspair.atomic import write_atomically
from crosspair.corpora.prepare.request import Outcome, Request
from crosspair.corpora.prepare.transcode import transcode
from crosspair.errors import RunError, VideoError
from crosspair.video.container import probe


def attempt(request: Request) -> Outcome:
    """Make a file, in one step."""
    begun = time.perf_counter()
    try:
        content = transcode(request.clip, request.settings)
        write_atomically(request.target, content)
        probed = asdict(probe(str(request.target)))
        return Outcome(time.perf_counter() - begun, len(content), probed)
    except VideoError as error:
        fault = str(error)
    except RunError as error:
        kept = "; what is done is kept, and the same command goes on from there"
        return Outcome(fatal=_one_line(str(error)) + kept)
    except Exception as error:  # of 240,000 files from the web, one will show a fault unknown yet
        fault = f"{request.clip.path}: cannot be prepared ({type(error).__name__}: {error})"
    return Outcome(time.perf_counter() - begun, error=_one_line(fault))


def _one_line(text: str) -> str:
    return " ".join(text.split())
