"""Time the loading of a training clip, in the common way and ours, before and after preparing.

    python -m benchmarks.loading [VIDEOS]

A clip is a random view of 8 frames, 4/30 s apart. Untouched files are like those of the paper's
corpora: ten seconds of 340×256 at 30 frames per second (each video is repeated until it is that
long), with a key frame at least every 12 frames, or every 250 (x264's default). The common way
reads the file from its beginning to the end of the clip, converts each frame of the clip's span to
full-size RGB, and scales in float. "The common way with seeking" starts at the key frame before the
span. Ours is `crosspair.video.load_view`. Times are CPU times of one core with the files in memory;
the throughput of several worker processes is wall-clock.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from rich.console import Console
from torch.nn.functional import interpolate

from benchmarks.joined import write_looped
from benchmarks.measuring import compare_times, print_comparison, run_in_turns, write_results
from crosspair.config import Clip, ClipConfig
from crosspair.corpora import manifest_from_rows
from crosspair.corpora.prepare import plan_preparation, prepare_corpus, transcode_locally
from crosspair.corpora.rendered import render_corpus
from crosspair.corpora.transcode import TranscodeSettings
from crosspair.corpora.video_files import SUFFIXES
from crosspair.video.container import open_video
from crosspair.video.decode import clip_times, decode_from, frames_on_screen, probe
from crosspair.video.loader import TrainingOrder, training_loader
from crosspair.video.views import View, load_frames, load_view, training_view
from crosspair.workers import cpu_count

RESULTS = Path(__file__).parent / "results" / "loading.json"
BASE = "common way, untouched"
GOPS = {"key frame every 12": 12, "every 250": 250}
SIZES = (112, 64)
WORKERS = (1, 2, 4)
BATCH, WARM_UP, BATCHES = 16, 4, 24  # for the throughput of worker processes


@dataclass(frozen=True)
class Job:
    """A clip, untouched and prepared, and the view to load."""

    untouched: Clip
    prepared: Clip
    view: View
    config: ClipConfig


def main() -> None:
    """Run the benchmark, print tables and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("videos", nargs="?", type=Path, help="folder of videos (default: render some)")
    parser.add_argument("--rounds", type=int, default=8, help="default: 8")
    parser.add_argument("--most", type=int, default=20, help="maximum number of videos (default: 20)")
    parser.add_argument("--views", type=int, default=2, help="views per video (default: 2)")
    parser.add_argument("--seconds", type=float, default=10, help="length of a video (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the views (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker of the loader
    results: dict[str, dict[str, Any]] = {"ways": {}, "parts": {}, "workers": {}}
    with tempfile.TemporaryDirectory() as folder:
        videos = options.videos or _render(Path(folder) / "rendered")
        files = [path for path in sorted(videos.rglob("*")) if path.suffix.lower() in SUFFIXES]
        files = files[:: max(1, len(files) // options.most)][: options.most]
        for name, gop in GOPS.items():
            pairs = _pairs(files, Path(folder) / str(gop), gop, options.seconds)
            for size in SIZES:
                jobs = _jobs(pairs, ClipConfig(size=size), options)
                results["ways"][f"{name}, {size}x{size}"] = _compare_ways(jobs, options.rounds)
            jobs = _jobs(pairs, ClipConfig(size=SIZES[0]), options)
            for index, state in enumerate(("untouched", "prepared")):
                results["parts"][f"{name}, {state}"] = _time_parts(jobs, state, options.rounds)
                results["workers"][f"{name}, {state}"] = _clips_per_second([pair[index] for pair in pairs])
    Console().print({"parts, ms": results["parts"], "clips/s": results["workers"]})
    settings = {"clip": "8 frames, 4/30 s apart", "videos": len(files), "seconds": options.seconds,
                "views": options.views, "rounds": options.rounds,
                "prepared": vars(TranscodeSettings())}  # fmt: skip
    corpus = "rendered" if options.videos is None else "given"
    content = {
        "benchmark": "loading", "corpus": corpus, "settings": settings, "results": results,
    }  # fmt: skip
    write_results(options.out, content, seed=options.seed, packages=["av", "numpy", "torch"])


def _render(out: Path) -> Path:
    return render_corpus(out, pairs=24).path.parent / "videos"


def _pairs(files: list[Path], out: Path, gop: int, seconds: float) -> list[tuple[Clip, Clip]]:
    """Write untouched and prepared versions of the videos."""
    out.mkdir()
    rows = []
    for number, path in enumerate(files):
        path_out = out / f"{number}.mp4"
        write_looped(str(path), path_out, size=(340, 256), gop=gop, seconds=seconds)
        rows.append({"pair_id": str(number), "path": str(path_out)})
    untouched = manifest_from_rows(rows, out / "untouched.parquet")
    plan = plan_preparation(untouched, out / "small", TranscodeSettings())
    small = prepare_corpus(plan, partial(transcode_locally, workers=cpu_count()))
    assert small is not None  # None only for shards
    return list(zip(untouched.clips(), small.clips(), strict=True))


def _jobs(pairs: list[tuple[Clip, Clip]], config: ClipConfig, options: argparse.Namespace) -> list[Job]:
    return [
        Job(*pair, training_view(np.random.default_rng((options.seed, number, n)), config), config)
        for number, pair in enumerate(pairs)
        for n in range(options.views)
    ]


def _compare_ways(jobs: list[Job], rounds: int) -> dict[str, Any]:
    ways: dict[str, Callable[[Job], np.ndarray]] = {
        BASE: lambda job: common_way(job.untouched, job.view, job.config),
        "common way with seeking, untouched": lambda job: common_way(job.untouched, job.view, job.config, seek=True),
        "ours, untouched": lambda job: load_view(job.untouched, job.view, job.config),
        "common way, prepared": lambda job: common_way(job.prepared, job.view, job.config),
        "ours, prepared": lambda job: load_view(job.prepared, job.view, job.config),
    }
    results = compare_times(run_in_turns(ways, jobs, rounds), BASE)
    for name, way in ways.items():
        # Mean absolute pixel difference (0 to 255), to check that all ways load the same frames.
        differences = [
            np.abs(np.asarray(way(job), np.float32) - load_view(job.untouched, job.view, job.config)) for job in jobs
        ]
        results[name]["difference"] = float(np.mean(differences))
    print_comparison(f"one clip, 8 × {jobs[0].config.size}²", results)
    return results


def _time_parts(jobs: list[Job], state: str, rounds: int) -> dict[str, float]:
    """Time the parts of our implementation in ms per clip, by omitting later parts."""
    config = jobs[0].config
    clips = [getattr(job, state) for job in jobs]
    instants = [
        clip_times(job.view.position, probe(clip.path).duration, config.frames, config.stride)
        for job, clip in zip(jobs, clips, strict=True)
    ]

    def open_only(number: int) -> None:
        with open_video(clips[number].path):
            pass

    def seek_only(number: int) -> None:
        with open_video(clips[number].path) as video:
            next(decode_from(video, instants[number][0]))

    def decode_only(number: int) -> None:
        with open_video(clips[number].path) as video:
            list(frames_on_screen(video, instants[number]))

    ways: dict[str, Callable[[int], object]] = {
        "open": open_only,
        "seek, first frame": seek_only,
        "decode": decode_only,
        "scale": lambda number: load_frames(clips[number], jobs[number].view, config),
        "crop and copy": lambda number: load_view(clips[number], jobs[number].view, config),
    }
    times = run_in_turns(ways, range(len(jobs)), rounds)
    upto = [1e3 * statistics.median(map(statistics.mean, times[name])) for name in ways]
    return {name: b - a for name, (a, b) in zip(ways, itertools.pairwise([0.0, *upto]), strict=True)}


def _clips_per_second(clips: list[Clip]) -> dict[int, float]:
    """Measure the throughput of worker processes in clips/s, without a network."""
    config = ClipConfig(size=SIZES[0])
    throughput = {}
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more than cores
    for workers in WORKERS:
        size = min(BATCH, len(clips))
        epochs = (WARM_UP + BATCHES) // (len(clips) // size) + 2  # enough batches for the timing
        order = TrainingOrder(len(clips), size, epochs, seed=0)
        batches = iter(training_loader(clips, order, config, seed=0, workers=workers))
        for batch in itertools.islice(batches, WARM_UP):
            assert not batch.failures
        start, count = time.perf_counter(), 0
        for batch in itertools.islice(batches, BATCHES):
            count += len(batch.rows)
        throughput[workers] = count / (time.perf_counter() - start)
    return throughput


def common_way(clip: Clip, view: View, config: ClipConfig, *, seek: bool = False) -> np.ndarray:
    """Load a view like common implementations.

    Returns:
        (frames, size, size, 3) float32, 0 to 255.
    """
    times = clip_times(view.position, probe(clip.path).duration, config.frames, config.stride)
    frames: list[np.ndarray] = []
    instants: list[float] = []
    with av.open(clip.path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type = "NONE"
        if seek:
            container.seek(int(times[0] * av.time_base))
        step = 1 / float(stream.average_rate or 30)
        for frame in container.decode(stream):
            instant = frame.time or 0.0
            if instant > times[0] - step:
                frames.append(frame.to_ndarray(format="rgb24"))
                instants.append(instant)
            if instant >= times[-1]:
                break
    wanted = np.maximum(np.searchsorted(instants, times + 1e-3, side="right") - 1, 0)
    pixels = torch.from_numpy(np.stack(frames))[wanted].permute(0, 3, 1, 2).float()
    height, width = pixels.shape[-2:]
    factor = view.short_side / min(height, width)
    high, wide = (max(view.short_side, round(side * factor)) for side in (height, width))
    pixels = interpolate(pixels, (high, wide), mode="bilinear")
    top, left = round(view.down * (high - config.size)), round(view.across * (wide - config.size))
    crop = pixels[:, :, top : top + config.size, left : left + config.size]
    if view.flip:
        crop = crop.flip(-1)
    return crop.permute(0, 2, 3, 1).contiguous().numpy()


if __name__ == "__main__":
    main()
