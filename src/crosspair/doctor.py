"""Check the installation: devices, decoders, optional packages and disk space."""

from __future__ import annotations

import io
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import av
import numpy as np
import torch
from av.video.stream import VideoStream

from crosspair.device import dtype_for
from crosspair.errors import TextError, format_error
from crosspair.provenance import current_machine
from crosspair.video.loader import SHARED_MEMORY, free_shared_memory

# FFmpeg's decoder, and its encoder for a test clip, of common codecs.
CODECS = {
    "H.264": ("h264", "libx264"), "HEVC": ("hevc", "libx265"), "MPEG-4 (Xvid)": ("mpeg4", "mpeg4"),
    "VP9": ("vp9", "libvpx-vp9"), "AV1": ("av1", "libsvtav1"),
}  # fmt: skip
FRAMES, SIZE = 5, 64  # of the test clip
MIN_DISK, MIN_SHARED = 5e9, 1e9  # bytes

# (package, extra, features that require it)
EXTRAS = (
    ("transformers", "text", "text.encoder=transformer"),
    ("gensim", "text", "text.encoder=words"),
    ("wordfreq", "text", "crosspair titles clean: detection of English words"),
    ("ftfy", "text", "crosspair titles clean: repair of broken characters"),
    ("emoji", "text", "crosspair titles clean: detection of emoji"),
    ("wordninja", "text", "crosspair titles clean: splitting of hashtags"),
    ("lancedb", "search", "crosspair index, search"),
    ("opentimelineio", "edit", "crosspair search --edl, --fcpxml"),
    ("fastapi", "demo", "crosspair serve"),
    ("aiohttp", "remote", "videos at https:// addresses"),
    ("ray", "scale", "crosspair prepare --engine ray"),
    ("onnxruntime", "export", "crosspair export"),
)
_INSTALL_EXTRA = 'pip install "crosspair[{}]"'
_INSTALL_PYAV = 'pip install --force-reinstall --no-deps --only-binary av "av>=17.1,<19"'
_INSTALL_CUDA_TORCH = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu128"


@dataclass(frozen=True)
class Check:
    """Result of a check."""

    name: str  # of the component
    ok: bool  # whether it is available and works
    found: str  # its version or properties, or the error
    needed_for: str = ""  # features that require it
    fix: str = ""  # command or hint to fix it; empty if ok
    optional: bool = False  # whether it is an optional extra


def run_checks(folder: Path) -> list[Check]:
    """Run all checks; the disk is that of ``folder``."""
    machine = current_machine()
    system = f"Python {platform.python_version()}, {machine.cpu}, {machine.cores} cores"
    os.environ.setdefault("SVT_LOG", "0")  # silence the AV1 encoder
    free = shutil.disk_usage(folder).free
    fix_disk = "" if free > MIN_DISK else "free disk space, or write to another disk"
    return [
        Check("machine", True, f"{system}, {machine.memory:g} GiB"),
        Check("PyTorch", True, torch.__version__),
        *_check_devices(),
        Check("PyAV, FFmpeg", True, f"{av.__version__}, {av.ffmpeg_version_info}"),
        *(_check_decoder(codec, *names) for codec, names in CODECS.items()),
        *(_check_extra(*extra) for extra in EXTRAS),
        _check_spacy_model(),
        *_check_shared_memory(),
        Check(
            "disk", free > MIN_DISK, f"{free / 1e9:.1f} GB free in {folder.absolute()}",
            "runs, features, libraries", fix_disk,
        ),
    ]  # fmt: skip


def _check_devices() -> Iterator[Check]:
    """Check each GPU and the processor; no GPU is a failure only if the GPU driver (nvidia-smi) is installed."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(count):
        yield _check_matmul(f"GPU {number}", torch.device("cuda", number), f"{torch.cuda.get_device_name(number)}, ")
    if not count:
        fix = ""
        if shutil.which("nvidia-smi"):
            built_for_gpu = torch.version.cuda or torch.version.hip
            fix = "update the GPU driver to match PyTorch" if built_for_gpu else _INSTALL_CUDA_TORCH
        yield Check("GPU", not fix, "none available to PyTorch", "training beyond laptop size", fix)
    yield _check_matmul("processor", torch.device("cpu"))


def _check_shared_memory() -> Iterator[Check]:
    free = free_shared_memory()
    if free is not None:
        fix = "" if free > MIN_SHARED else "start the container with a larger one, such as docker run --shm-size=8g"
        found = f"{free / 1e9:.1f} GB free in {SHARED_MEMORY}"
        yield Check("shared memory", not fix, found, "training.workers", fix)


def _check_matmul(name: str, device: torch.device, model: str = "") -> Check:
    """Check that a device multiplies matrices correctly in the dtype that training would use."""
    dtype = dtype_for(device, "auto")
    cpu_info = Path("/proc/cpuinfo")
    has_amx = device.type == "cpu" and cpu_info.exists() and "amx_bf16" in cpu_info.read_text()
    found = f"computes in {str(dtype).removeprefix('torch.')}{' with AMX' if has_amx else ''}"
    try:
        ones = torch.ones(32, 32, device=device, dtype=dtype)
        ok = float((ones @ ones)[0, 0]) == 32
    except RuntimeError as error:
        ok, found = False, format_error(error)
    fix = "" if ok else "reinstall PyTorch for this device, or update its driver"
    return Check(name, ok, f"{model}{found}", "the network", fix)


def _check_decoder(codec: str, decoder: str, encoder: str) -> Check:
    """Encode and decode a test clip; without an encoder, only look for the decoder."""
    try:
        clip = _encode_test_clip(encoder)
    except (av.FFmpegError, ValueError, OSError) as error:
        ok = decoder in av.codecs_available
        found = f"available, not tested (no encoder: {error})" if ok else "not available"
    else:
        try:
            with av.open(clip, "r") as container:
                brightness = [frame.to_ndarray(format="gray").mean() for frame in container.decode(video=0)]
            ok = len(brightness) == FRAMES and bool(np.all(np.diff(brightness) > 0))
            found = "works" if ok else "decodes wrong pixels"
        except (av.FFmpegError, OSError) as error:
            ok, found = False, str(error)
    return Check(f"decoder {codec}", ok, found, f"videos in {codec}", "" if ok else _INSTALL_PYAV)


def _encode_test_clip(encoder: str) -> io.BytesIO:
    """Encode 5 grey frames of increasing brightness to a Matroska file in memory."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        options = {"x265-params": "log-level=none"} if encoder == "libx265" else {}
        stream = container.add_stream(encoder, rate=10, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        for index in range(FRAMES):
            pixels = np.full((SIZE, SIZE, 3), 40 + 40 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    return file


def _check_extra(package: str, extra: str, needed_for: str) -> Check:
    """Check that an optional package is installed, without importing it."""
    try:
        return Check(package, True, version(package), needed_for)
    except PackageNotFoundError:
        return Check(package, False, "not installed", needed_for, _INSTALL_EXTRA.format(extra), optional=True)


def _check_spacy_model() -> Check:
    from crosspair.corpora.titles import load_english_model

    name, needed_for = "spaCy, English model", "crosspair titles clean: verbs and nouns"
    try:
        model = load_english_model(False)
    except TextError as error:
        return Check(name, False, str(error), needed_for, _INSTALL_EXTRA.format("text"), optional=True)
    return Check(name, True, f"{model.meta['name']} {model.meta['version']}", needed_for)
