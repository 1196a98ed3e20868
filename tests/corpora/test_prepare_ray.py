"""Preparing on a Ray cluster gives the same files as on one machine."""

from __future__ import annotations

import builtins
import importlib.util
import re
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from crosspair.corpora import manifest_from_rows
from crosspair.corpora.prepare import plan_preparation, prepare_corpus, transcode_locally, transcode_on_ray
from crosspair.corpora.transcode import TranscodeSettings
from crosspair.errors import RunError


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed")
def test_both_engines_give_the_same_files(tmp_path: Path, make_video) -> None:
    rows = [{"pair_id": "bad", "path": "bad.mp4", "title": "t"}]
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    for fps in (24, 30):
        name = make_video(tmp_path / f"{fps}.mp4", fps=fps, frames=20).name
        rows.append({"pair_id": str(fps), "path": name, "title": "t"})
    manifest = manifest_from_rows(rows, tmp_path / "manifest.parquet")
    made = {}
    for engine in (partial(transcode_locally, workers=2), partial(transcode_on_ray, workers=2)):
        out = tmp_path / engine.func.__name__
        try:
            new = prepare_corpus(plan_preparation(manifest, out, TranscodeSettings(short_side=32)), engine)
        except RunError as error:
            if "timed out during startup" in str(error):  # Ray gives itself half a minute
                pytest.skip("this machine is too busy to start Ray")
            raise
        files = {p.name: p.read_bytes() for p in (out / "videos").iterdir()}
        made[out.name] = new.table.to_pylist(), files
    assert made["transcode_on_ray"] == made["transcode_locally"]
    assert sorted(made["transcode_on_ray"][1]) == ["24.mp4", "30.mp4"]
    assert [row["error"] is None for row in made["transcode_on_ray"][0]] == [False, True, True]


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed")
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_unreachable_cluster(scheme: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{free.getsockname()[1]}"  # bound, but not listening
        with pytest.raises(RunError, match=re.escape(address)):
            next(transcode_on_ray([], workers=1, address=address))


@pytest.mark.parametrize(
    ("task", "status"), [("while True: pass", -signal.SIGALRM), ("extend_timeout(60); time.sleep(0.5)", 0), ("pass", 0)]
)
def test_timeout_ends_the_process(task: str, status: int) -> None:
    code = f"""
import time
from crosspair.workers import extend_timeout, run_with_timeout
def run_request(request):
    {task}
run_with_timeout(run_request, 0.3, None)
time.sleep(0.5)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == status


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def none(name: str, *rest: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(RunError, match="pip install"):
        next(transcode_on_ray([], workers=1))
