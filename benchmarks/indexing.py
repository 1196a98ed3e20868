"""Measure how fast videos are indexed from clips and from key frames, compared with FFmpeg's decoder.

    python -m benchmarks.indexing [VIDEOS ...] [--seconds 60] [--rounds 3]

The videos are H.264 with one key frame per second, of 320×240 and 1920×1080 pixels; by default FFmpeg's test pattern
with noise. The model is a CLIP ViT-B/32 with random weights, which takes as long as a trained one. All times are CPU
seconds of one process, without worker processes: wall-clock times would depend on the number of cores. The
implementations of decoding run in turns: `ffmpeg` with the options that decode all frames, or only key frames,
without converting them; and the decoding jobs of `crosspair index`, which also scale the frames and draw thumbnails.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import CLIPConfig, CLIPModel

from benchmarks.measuring import run_in_turns, write_results
from crosspair.config import Clip, HeadConfig, TextConfig, VideoConfig
from crosspair.corpora.inputs import collect_videos, probe_missing
from crosspair.evaluation.encode import InferenceEngine, encode_windows
from crosspair.evaluation.windows import ClipPlan, Sampling, Windows
from crosspair.models import CPD, WordAverage
from crosspair.models.pretrained import PretrainedEncoder
from crosspair.video.decode import probe
from crosspair.video.views import decode_job

RESULTS = Path(__file__).parent / "results" / "indexing.json"
SIZES = ("320x240", "1920x1080")
FFMPEG = {"clips": (), "keyframes": ("-skip_frame", "nokey")}  # by sampling, options of the comparable command
PREPROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": 224, "crop_size": 224}
WINDOWS = Windows()
HOUR = 3600.0  # s


def main() -> None:
    """Run the benchmark, print the results and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("videos", nargs="*", help="H.264 files with dense key frames (default: a test pattern)")
    parser.add_argument("--seconds", type=float, default=60, help="length of the test pattern (default: 60)")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions (default: 3)")
    parser.add_argument("--layers", type=int, default=12, help="layers of the model (default: 12)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = _clip(options.layers)
    with tempfile.TemporaryDirectory() as folder:
        videos = options.videos or [_pattern(Path(folder), size, options.seconds) for size in SIZES]
        results = {}
        for path in map(str, videos):
            info = probe(path)
            results[f"{info.width}×{info.height}"] = {
                "seconds": info.duration,
                "Mbit_a_s": Path(path).stat().st_size * 8e-6 / info.duration,
                "sampling": _compare(model, path, info.duration, options.rounds),
            }
    Console().print(results)
    settings = {"rounds": options.rounds, "layers": options.layers, "corpus": "given" if options.videos else "pattern"}
    content = {"benchmark": "indexing", "settings": settings, "results": results}
    write_results(options.out, content, seed=0, packages=["av", "torch", "transformers"])


def _clip(layers: int) -> CPD:
    """Return CLIP with random weights and no text tower, which indexing does not use."""
    torch.manual_seed(0)
    text = {"num_hidden_layers": 1, "vocab_size": 8, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(vision_config={"num_hidden_layers": layers}, text_config=text)
    encoder = PretrainedEncoder(CLIPModel(config), PREPROCESSOR)
    head = HeadConfig(embedding=encoder.features, projection="none")
    words = WordAverage(["video"], torch.zeros(1, encoder.features))
    return CPD(words, encoder.clip, VideoConfig(encoder="pretrained", source="clip"), TextConfig(), head, encoder)


def _pattern(folder: Path, size: str, seconds: float) -> Path:
    """Write a test pattern with noise, 30 frames per second, a key frame per second."""
    path = folder / f"{size}.mp4"
    source = f"testsrc2=size={size}:rate=30:duration={seconds},noise=alls=4:allf=t"
    coding = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "26", "-g", "30", "-sc_threshold", "0")
    subprocess.run(
        ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, *coding, "-pix_fmt", "yuv420p", path], check=True
    )
    return path


def _compare(model: CPD, path: str, duration: float, rounds: int) -> dict[str, Any]:
    """Measure decoding and the whole of indexing for each sampling, in CPU seconds per hour of video."""
    plans: dict[Sampling, ClipPlan] = {
        "clips": WINDOWS.plan(0, Clip(path), duration, model.clip),
        "keyframes": WINDOWS.key_frame_plan(0, Clip(path), duration, model.clip, "keyframes"),
    }
    manifest = probe_missing(collect_videos([path]))
    engine = InferenceEngine(model, torch.device("cpu"), workers=0)
    ways: dict[str, Callable[[Any], object]] = {}
    for sampling, plan in plans.items():
        ways[f"{sampling}, ffmpeg"] = lambda path, sampling=sampling: _run_ffmpeg(path, sampling)
        ways[f"{sampling}, decoding"] = lambda _, plan=plan: _decode(plan, model)
        ways[f"{sampling}, indexing"] = lambda _, sampling=sampling: _encode(engine, manifest, sampling)
    measured = run_in_turns(ways, [path], rounds, _cpu_seconds)
    seconds = {way: [HOUR / duration * each for (each,) in times] for way, times in measured.items()}
    found = {}
    for sampling in plans:
        ffmpeg, decoding, indexing = (seconds[f"{sampling}, {part}"] for part in ("ffmpeg", "decoding", "indexing"))
        found[sampling] = {
            "ffmpeg_s": statistics.median(ffmpeg),
            "decoding_s": statistics.median(decoding),
            "indexing_s": statistics.median(indexing),
            "times_ffmpeg": statistics.median(one / other for one, other in zip(decoding, ffmpeg, strict=True)),
            "decoding_fraction": statistics.median(one / other for one, other in zip(decoding, indexing, strict=True)),
            "hours_a_core_hour": HOUR / statistics.median(indexing),
        }
    return found


def _cpu_seconds() -> float:
    """Return the CPU time of this process and its children that have ended."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def _run_ffmpeg(path: str, sampling: Sampling) -> None:
    subprocess.run(["ffmpeg", "-v", "error", *FFMPEG[sampling], "-i", path, "-f", "null", "-"], check=True)


def _decode(plan: ClipPlan, model: CPD) -> None:
    for job in plan.jobs(model.clip, crops=1, thumbnails=True):
        failure = decode_job(job).failure
        if failure:
            raise SystemExit(failure)


def _encode(engine: InferenceEngine, manifest: Any, sampling: Sampling) -> None:
    for features in encode_windows(engine, manifest, WINDOWS, sampling=sampling, thumbnails=True):
        if features.failure:
            raise SystemExit(features.failure)


if __name__ == "__main__":
    main()
