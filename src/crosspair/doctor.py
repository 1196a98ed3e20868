"""What this machine has, what is missing for which feature, and the command that mends it."""

from __future__ import annotations

import io
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.stream import VideoStream

from crosspair.device import dtype_for
from crosspair.provenance import provenance

# The kinds that videos come in: decoder, and the encoder for a tiny clip.
CODECS = {
    "H.264": ("h264", "libx264"), "HEVC": ("hevc", "libx265"), "MPEG-4 (Xvid)": ("mpeg4", "mpeg4"),
    "VP9": ("vp9", "libvpx-vp9"), "AV1": ("av1", "libsvtav1"),
}  # fmt: skip
FRAMES, WIDTH, HEIGHT = 5, 64, 64
LITTLE_DISK = 5e9  # bytes

PIP = 'pip install "crosspair[{}]"'


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: of the thing.
        ok: whether it is there and works.
        found: what is there, or what is wrong.
        needed_for: what does not work without it.
        mend: a command, or what else to do; empty where all is well.
        optional: whether one may well do without it.
    """

    name: str
    ok: bool
    found: str
    needed_for: str = ""
    mend: str = ""
    optional: bool = False


def examine(folder: Path) -> list[Check]:
    """Look at everything.

    Args:
        folder: where runs and libraries are to be written.
    """
    return [
        _python(),
        *_devices(),
        *_decoders(),
        *(_extra(*each) for each in EXTRAS),
        _parser(),
        _disk(folder),
    ]


# package, extra, what is needed of it
EXTRAS = (
    ("transformers", "text", "text.encoder=transformer"),
    ("gensim", "text", "text.encoder=words"),
    ("wordfreq", "text", "crosspair titles: which words are English"),
    ("ftfy", "text", "crosspair titles: broken characters"),
    ("lancedb", "search", "crosspair index, search"),
    ("gradio", "demo", "crosspair serve"),
    ("aiohttp", "remote", "videos at https:// addresses"),
    ("ray", "scale", "crosspair prepare --engine ray"),
    ("onnxruntime", "export", "crosspair export"),
)


def _python() -> Check:
    machine = provenance(recipe="", model="", manifest="", seed=0).machine
    return Check(
        "machine",
        True,
        f"Python {platform.python_version()}, {machine.cpu}, {machine.cores} cores, "
        f"{machine.memory:g} GiB",
    )


def _devices() -> Iterator[Check]:
    yield Check("PyTorch", True, torch.__version__)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(count):
        device = torch.device("cuda", number)
        yield _computes(f"GPU {number}", device, torch.cuda.get_device_name(number))
    if not count:
        built = torch.version.cuda or torch.version.hip
        driver = shutil.which("nvidia-smi") is not None
        yield Check(
            "GPU",
            not driver,  # a machine without one is what it is
            "none that PyTorch can use",
            "training beyond laptop size",
            ("pip install --force-reinstall torch --index-url "
             "https://download.pytorch.org/whl/cu128" if not built
             else "its driver does not fit this PyTorch: update it") if driver else "",
        )  # fmt: skip
    yield _computes("processor", torch.device("cpu"), "")


def _computes(name: str, device: torch.device, model: str) -> Check:
    """A product in the number format that would be taken there."""
    dtype = dtype_for(device, "auto")
    short = str(dtype).removeprefix("torch.")
    amx = " with AMX" if device.type == "cpu" and "amx_bf16" in _cpu_flags() else ""
    try:
        ones = torch.ones(32, 32, device=device, dtype=dtype)
        works = float((ones @ ones)[0, 0]) == 32
        found = f"computes in {short}{amx}"
    except RuntimeError as error:
        works, found = False, str(error).splitlines()[0]
    mend = "" if works else "reinstall PyTorch for this device, or update its driver"
    return Check(name, works, ", ".join(filter(None, (model, found))), "the network", mend)


def _cpu_flags() -> str:
    with suppress(OSError):
        return Path("/proc/cpuinfo").read_text()
    return ""


def _decoders() -> Iterator[Check]:
    yield Check("PyAV, FFmpeg", True, f"{av.__version__}, {av.ffmpeg_version_info}")
    os.environ.setdefault("SVT_LOG", "0")  # or it tells the terminal how it encodes
    for kind, (decoder, encoder) in CODECS.items():
        yield _decodes(kind, decoder, encoder)


def _decodes(kind: str, decoder: str, encoder: str) -> Check:
    """Whether a tiny clip can be written, and reads as it was written."""
    mend = 'pip install --force-reinstall --no-deps --only-binary av "av>=15.1,<19"'
    name, use = f"decoder {kind}", f"videos in {kind}"
    try:
        clip = _tiny_clip(encoder)
    except (av.FFmpegError, ValueError, OSError) as error:
        # Without an encoder nothing can be tried: whether there is a decoder can be told.
        there = _has_decoder(decoder)
        found = f"there, not tried (no encoder: {error})" if there else "none"
        return Check(name, there, found, use, "" if there else mend)
    try:
        with av.open(clip) as container:
            assert isinstance(container, InputContainer)
            levels = [float(frame.to_ndarray(format="gray").mean()) for frame in
                      container.decode(video=0)]  # fmt: skip
    except (av.FFmpegError, OSError) as error:
        return Check(name, False, str(error), use, mend)
    good = len(levels) == FRAMES and all(np.diff(levels) > 0)
    return Check(name, good, "works" if good else "gives wrong pictures", use, "" if good else mend)


def _tiny_clip(encoder: str) -> io.BytesIO:
    """Frames that grow brighter."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        quiet = {"x265-params": "log-level=none"} if encoder == "libx265" else {}
        stream = container.add_stream(encoder, rate=Fraction(10), options=quiet)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(FRAMES):
            level = 40 + 40 * index
            pixels = np.full((HEIGHT, WIDTH, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    return file


def _has_decoder(name: str) -> bool:
    try:
        av.codec.Codec(name, "r")
    except (av.FFmpegError, ValueError):
        return False
    return True


def _extra(package: str, extra: str, needed_for: str) -> Check:
    try:
        found = version(package)
    except PackageNotFoundError:
        return Check(package, False, "not installed", needed_for, PIP.format(extra), True)
    return Check(package, True, found, needed_for)


def _parser() -> Check:
    """spaCy with an English model, as trees need it."""
    from crosspair.corpora.titles.stage import load_english_model
    from crosspair.errors import TextError

    name, use = "spaCy, English model", "crosspair titles: verbs and nouns"
    if find_spec("spacy") is None:
        return Check(name, False, "not installed", use, PIP.format("text"), True)
    try:
        model = load_english_model(False)
    except TextError as error:
        return Check(name, False, str(error), use, PIP.format("text"), True)
    return Check(name, True, f"{model.meta['name']} {model.meta['version']}", use)


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    enough = free > LITTLE_DISK
    return Check(
        "disk",
        enough,
        f"{free / 1e9:.1f} GB free in {folder.absolute()}",
        "runs, features, libraries",
        "" if enough else "free some space, or write elsewhere",
    )
