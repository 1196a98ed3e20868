"""Check the installation: devices, decoders, optional packages and disk space."""

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
from crosspair.errors import TextError, format_error
from crosspair.provenance import provenance

# FFmpeg's decoder, and its encoder for a test clip, of common codecs.
CODECS = {
    "H.264": ("h264", "libx264"), "HEVC": ("hevc", "libx265"), "MPEG-4 (Xvid)": ("mpeg4", "mpeg4"),
    "VP9": ("vp9", "libvpx-vp9"), "AV1": ("av1", "libsvtav1"),
}  # fmt: skip
FRAMES, WIDTH, HEIGHT = 5, 64, 64  # of the test clip
MIN_DISK = 5e9  # bytes

# (package, extra, features that require it)
EXTRAS = (
    ("transformers", "text", "text.encoder=transformer"),
    ("gensim", "text", "text.encoder=words"),
    ("wordfreq", "text", "crosspair titles: detection of English words"),
    ("ftfy", "text", "crosspair titles: repair of broken characters"),
    ("lancedb", "search", "crosspair index, search"),
    ("fastapi", "demo", "crosspair serve"),
    ("aiohttp", "remote", "videos at https:// addresses"),
    ("ray", "scale", "crosspair prepare --engine ray"),
    ("onnxruntime", "export", "crosspair export"),
)
_INSTALL_EXTRA = 'pip install "crosspair[{}]"'
_INSTALL_PYAV = 'pip install --force-reinstall --no-deps --only-binary av "av>=15.1,<19"'
_INSTALL_CUDA_TORCH = (
    "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu128"
)


@dataclass(frozen=True)
class Check:
    """Result of a check.

    Attributes:
        name: of the component.
        ok: whether it is available and works.
        found: its version or properties, or the error.
        needed_for: features that require it.
        fix: command or hint to fix it; empty if ``ok``.
        optional: whether the component is an optional extra.
    """

    name: str
    ok: bool
    found: str
    needed_for: str = ""
    fix: str = ""
    optional: bool = False


def run_checks(folder: Path) -> list[Check]:
    """Run all checks.

    Args:
        folder: where to check for disk space.
    """
    return [
        _check_machine(),
        *_check_devices(),
        *_check_decoders(),
        *(_check_extra(*extra) for extra in EXTRAS),
        _check_spacy_model(),
        _check_disk(folder),
    ]


def _check_machine() -> Check:
    machine = provenance(recipe="", model="", manifest="", seed=0).machine
    return Check(
        "machine",
        True,
        f"Python {platform.python_version()}, {machine.cpu}, {machine.cores} cores, "
        f"{machine.memory:g} GiB",
    )


def _check_devices() -> Iterator[Check]:
    yield Check("PyTorch", True, torch.__version__)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(count):
        device = torch.device("cuda", number)
        yield _check_matmul(f"GPU {number}", device, torch.cuda.get_device_name(number))
    if not count:
        has_driver = shutil.which("nvidia-smi") is not None  # without one, a missing GPU is fine
        built_for_gpu = torch.version.cuda or torch.version.hip
        fix = "update the GPU driver to match PyTorch" if built_for_gpu else _INSTALL_CUDA_TORCH
        yield Check(
            "GPU",
            not has_driver,
            "none available to PyTorch",
            "training beyond laptop size",
            fix if has_driver else "",
        )
    yield _check_matmul("processor", torch.device("cpu"), "")


def _check_matmul(name: str, device: torch.device, model: str) -> Check:
    """Multiply matrices in the dtype that training would use."""
    dtype = dtype_for(device, "auto")
    amx = " with AMX" if device.type == "cpu" and "amx_bf16" in _cpu_flags() else ""
    try:
        ones = torch.ones(32, 32, device=device, dtype=dtype)
        ok = float((ones @ ones)[0, 0]) == 32
        found = f"computes in {str(dtype).removeprefix('torch.')}{amx}"
    except RuntimeError as error:
        ok, found = False, format_error(error)
    fix = "" if ok else "reinstall PyTorch for this device, or update its driver"
    return Check(name, ok, ", ".join(filter(None, (model, found))), "the network", fix)


def _cpu_flags() -> str:
    with suppress(OSError):
        return Path("/proc/cpuinfo").read_text()
    return ""


def _check_decoders() -> Iterator[Check]:
    yield Check("PyAV, FFmpeg", True, f"{av.__version__}, {av.ffmpeg_version_info}")
    os.environ.setdefault("SVT_LOG", "0")  # silence the encoder
    for codec, (decoder, encoder) in CODECS.items():
        yield _check_decoder(codec, decoder, encoder)


def _check_decoder(codec: str, decoder: str, encoder: str) -> Check:
    """Encode and decode a test clip; without an encoder, only look for the decoder."""
    name, needed_for = f"decoder {codec}", f"videos in {codec}"
    try:
        clip = _encode_test_clip(encoder)
    except (av.FFmpegError, ValueError, OSError) as error:
        ok = _has_decoder(decoder)
        found = f"available, not tested (no encoder: {error})" if ok else "not available"
        return Check(name, ok, found, needed_for, "" if ok else _INSTALL_PYAV)
    try:
        with av.open(clip) as container:
            assert isinstance(container, InputContainer)
            levels = [
                float(frame.to_ndarray(format="gray").mean()) for frame in container.decode(video=0)
            ]
    except (av.FFmpegError, OSError) as error:
        return Check(name, False, str(error), needed_for, _INSTALL_PYAV)
    ok = len(levels) == FRAMES and all(np.diff(levels) > 0)
    found = "works" if ok else "decodes wrong pixels"
    return Check(name, ok, found, needed_for, "" if ok else _INSTALL_PYAV)


def _encode_test_clip(encoder: str) -> io.BytesIO:
    """Encode frames of increasing brightness."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        options = {"x265-params": "log-level=none"} if encoder == "libx265" else {}
        stream = container.add_stream(encoder, rate=Fraction(10), options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(FRAMES):
            pixels = np.full((HEIGHT, WIDTH, 3), 40 + 40 * index, np.uint8)
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


def _check_extra(package: str, extra: str, needed_for: str) -> Check:
    try:
        return Check(package, True, version(package), needed_for)
    except PackageNotFoundError:
        fix = _INSTALL_EXTRA.format(extra)
        return Check(package, False, "not installed", needed_for, fix, optional=True)


def _check_spacy_model() -> Check:
    from crosspair.corpora.titles.stage import load_english_model

    name, needed_for = "spaCy, English model", "crosspair titles: verbs and nouns"
    found = "not installed"
    if find_spec("spacy") is not None:
        try:
            model = load_english_model(False)
        except TextError as error:
            found = str(error)
        else:
            found = f"{model.meta['name']} {model.meta['version']}"
            return Check(name, True, found, needed_for)
    return Check(name, False, found, needed_for, _INSTALL_EXTRA.format("text"), optional=True)


def _check_disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    ok = free > MIN_DISK
    return Check(
        "disk",
        ok,
        f"{free / 1e9:.1f} GB free in {folder.absolute()}",
        "runs, features, libraries",
        "" if ok else "free disk space, or write to another disk",
    )
