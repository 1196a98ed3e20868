"""Small real videos, made on the spot, whose frames say which frame they are."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
import torch
from hypothesis import settings
from numpy.typing import NDArray

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Pixels = NDArray[np.uint8]
Content = Callable[[int, int, int], Pixels]

# A job in the background of a shell ignores Ctrl-C or SIGHUP, and so would all commands that tests start.
for ignorable, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(ignorable) is signal.SIG_IGN:
        signal.signal(ignorable, handler)

settings.register_profile("any machine", deadline=None)  # a busy one is no failure
settings.load_profile("any machine")

os.environ["CROSSPAIR_CACHE"] = tempfile.mkdtemp(prefix="crosspair-tests-")  # instead of the user's folder
atexit.register(shutil.rmtree, os.environ["CROSSPAIR_CACHE"], ignore_errors=True)

BITS = 8
CODECS = {".mp4": "libx264", ".mkv": "libx264", ".avi": "mpeg4", ".webm": "libvpx-vp9"}
OPTIONS = {
    "libx264": {"preset": "ultrafast", "crf": "16"},
    "mpeg4": {"q": "3"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "20"},
}


def barcode(index: int, width: int, height: int) -> Pixels:
    """A frame's number as eight columns, black or white: no codec can blur it away."""
    bits = [(index >> bit) & 1 for bit in range(BITS)]
    columns = np.repeat(bits, width // BITS)
    return np.broadcast_to(columns[None, :, None] * 255, (height, width, 3)).astype(np.uint8)


def grey(level: int) -> Content:
    """Frames of one grey level."""
    return lambda _, width, height: np.full((height, width, 3), level, np.uint8)


class VideoMaker:
    """Writes videos, and reads the numbers back from their frames."""

    def __call__(
        self,
        path: Path,
        *,
        fps: Fraction | int = 30,
        frames: int = 60,
        size: tuple[int, int] = (128, 64),
        gop: int = 12,
        b_frames: int = 0,
        codec: str = "",
        content: Content = barcode,
        options: dict[str, str] | None = None,
        container_format: str | None = None,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        codec = codec or CODECS[path.suffix]
        with av.open(str(path), "w", format=container_format) as container:
            stream = container.add_stream(codec, rate=fps, options={**OPTIONS[codec], **(options or {})})
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            stream.gop_size = gop
            stream.codec_context.max_b_frames = b_frames
            stream.codec_context.thread_count = 1
            for index in range(frames):
                frame = av.VideoFrame.from_ndarray(content(index, *size), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    barcode = staticmethod(barcode)

    @staticmethod
    def numbers(pixels: Pixels) -> list[int]:
        """The number that each of (T, H, W, 3) frames of `barcode` bears."""
        middle = pixels[:, pixels.shape[1] // 2, :, :].mean(axis=-1)  # (T, W)
        columns = np.array_split(middle, BITS, axis=1)
        bits = [column.mean(axis=1) > 127 for column in columns]
        return [int(sum(int(b[t]) << i for i, b in enumerate(bits))) for t in range(len(pixels))]


@pytest.fixture(scope="session")
def make_video() -> VideoMaker:
    return VideoMaker()


@pytest.fixture(scope="session")
def make_audio() -> Callable[[Path], Path]:
    """Writes a file of silence: a container without pictures."""

    def make(path: Path) -> Path:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=16000, layout="mono")
            silence = np.zeros((1, 1024), np.float32)
            for block in range(16):
                frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16000, block * 1024
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return make


@pytest.fixture(scope="session")
def grey_frames() -> Callable[[int], Content]:
    return grey


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test material, which is no part of the project."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CROSSPAIR_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real test data: {folder} does not exist (set CROSSPAIR_DATA)")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window; needs the package playwright, and no browser is downloaded."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with api.sync_playwright() as playwright:
        # Its sandbox asks for rights that containers lack; only pages made here are opened.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tensors are slower on many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def eager_backend() -> Iterator[None]:
    """Compiled, but by no compiler: that takes minutes, and a C++ compiler."""
    with torch.compiler.set_stance("default", force_backend="aot_eager"):
        yield
