"""How long one training clip takes to load: the common way and ours, untouched and prepared files.

    python -m benchmarks.loading [VIDEOS]

A clip is 8 frames, 4/30 s apart, of which a random view is wanted. The common way reads the file
from its beginning up to the clip's end, turns each frame of the clip's span into full-size RGB,
and scales floats. "The common way, with seeking" begins at the key frame before the span. Ours is
`crosspair.video.load_view`. The time is that of one processor core, files being in memory.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch.nn.functional import interpolate

from benchmarks.measuring import compared, print_comparison, rounds_of_turns, write_results
from crosspair.clip import Clip
from crosspair.config import ClipConfig
from crosspair.corpora import manifest_of
from crosspair.corpora.prepare import Settings, on_processes, plan_preparation, prepare_corpus
from crosspair.corpora.rendered import render_corpus
from crosspair.corpora.videofiles import SUFFIXES
from crosspair.isolation import cores
from crosspair.video import View, clip_times, load_view, probe, training_view

RESULTS = Path(__file__).parent / "results" / "loading.json"
BASE = "common way, untouched"
SIZES = (112, 64)


@dataclass(frozen=True)
class Job:
    """One clip: where it is, before and after preparing, and the view of it."""

    untouched: Clip
    prepared: Clip
    view: View
    config: ClipConfig


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("videos", nargs="?", type=Path, help="a folder (default: render one)")
    parser.add_argument("--rounds", type=int, default=10, help="default: 10")
    parser.add_argument("--views", type=int, default=3, help="of each video (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the views (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker of the loader
    with tempfile.TemporaryDirectory() as folder:
        videos = options.videos or _rendered(Path(folder) / "rendered")
        pairs = _prepared(videos, Path(folder) / "prepared")
        results = {
            f"{size}x{size}": _measured(pairs, ClipConfig(size=size), options) for size in SIZES
        }
    settings = {"clip": "8 frames, 4/30 s apart", "videos": len(pairs), "views": options.views,
                "rounds": options.rounds, "prepared": vars(Settings())}  # fmt: skip
    corpus = "rendered" if options.videos is None else "given"
    content = {"benchmark": "loading", "corpus": corpus, "settings": settings, "results": results}
    write_results(options.out, content, seed=options.seed, packages=["av", "numpy", "torch"])


def _rendered(out: Path) -> Path:
    return render_corpus(out, pairs=24).path.parent / "videos"


def _prepared(videos: Path, out: Path) -> list[tuple[Clip, Clip]]:
    files = [path for path in sorted(videos.rglob("*")) if path.suffix.lower() in SUFFIXES]
    rows = [{"pair_id": str(n), "path": str(p.resolve())} for n, p in enumerate(files)]
    untouched = manifest_of(rows, out / "untouched.parquet")
    plan = plan_preparation(untouched, out / "small", Settings())
    small = prepare_corpus(plan, partial(on_processes, workers=cores()))
    whole = [n for n, error in enumerate(small.column("error")) if error is None]
    return list(zip(untouched.take(whole).clips(), small.take(whole).clips(), strict=True))


def _measured(
    pairs: list[tuple[Clip, Clip]], config: ClipConfig, options: argparse.Namespace
) -> dict[str, Any]:
    jobs = [
        Job(*pair, training_view(np.random.default_rng((options.seed, number, n)), config), config)
        for number, pair in enumerate(pairs)
        for n in range(options.views)
    ]
    ways: dict[str, Callable[[Job], np.ndarray]] = {
        BASE: lambda job: common_way(job.untouched, job.view, job.config),
        "common way with seeking, untouched": lambda job: common_way(
            job.untouched, job.view, job.config, seek=True
        ),
        "ours, untouched": lambda job: load_view(job.untouched, job.view, job.config),
        "common way, prepared": lambda job: common_way(job.prepared, job.view, job.config),
        "ours, prepared": lambda job: load_view(job.prepared, job.view, job.config),
    }
    results = compared(rounds_of_turns(ways, jobs, options.rounds), BASE)
    for name, way in ways.items():
        # That all ways see the same: mean absolute difference of pixels, of 255.
        differences = [
            np.abs(np.asarray(way(job), np.float32) - load_view(job.untouched, job.view, config))
            for job in jobs
        ]
        results[name]["difference"] = float(np.mean(differences))
    print_comparison(f"one clip, 8 × {config.size}²", results)
    return results


def common_way(clip: Clip, view: View, config: ClipConfig, *, seek: bool = False) -> np.ndarray:
    """Load a view as most code does.

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
