"""``crosspair prepare``: every clip as a small file that is quick to read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from crosspair.cli.verbs import Verbs, add_cluster, add_seed, add_workers, on_cluster
from crosspair.errors import CrosspairError

if TYPE_CHECKING:
    from crosspair.corpora.prepare import Engine, Plan, Settings


def add_prepare(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "prepare",
        help="trim and scale a corpus's videos to small files that load fast",
        description="Make of every row's video a trimmed, scaled H.264 file with key frames close "
        "together, and a manifest of these files. Run again, it does only what is missing. "
        "Status: 0 all done, 1 some sources are broken (their rows say how), 2 not done.",
    )
    verb.add_argument("manifest", metavar="MANIFEST")
    verb.add_argument("--out", type=Path, required=True, help="folder for manifest and videos")
    verb.add_argument(
        "--short-side", type=int, default=128, metavar="PX",
        help="of the frames, never enlarged (default: 128, for crops of 112; take 256 for 224)",
    )  # fmt: skip
    verb.add_argument("--gop", type=int, default=16, help="frames a key frame (default: 16)")
    verb.add_argument(
        "--fps", default="own", metavar="own|N", help="each video's own (default), or a constant N"
    )
    verb.add_argument(
        "--middle", type=float, metavar="S", help="keep only the middle S seconds of longer videos"
    )
    verb.add_argument("--crf", type=float, default=20, help="x264's quality (default: 20)")
    add_workers(verb)
    verb.add_argument(
        "--dry-run", action="store_true", help="only tell what there is to do, and what it costs"
    )
    verb.add_argument(
        "--sample", type=int, default=20, help="videos that --dry-run tries out (default: 20)"
    )
    add_seed(verb, "that sample")
    add_cluster(verb)
    verb.set_defaults(verb=_prepare)


def _prepare(options: argparse.Namespace) -> None:
    settings = _settings(options)

    from crosspair.corpora import Manifest
    from crosspair.corpora.prepare import plan_preparation, prepare_corpus
    from crosspair.isolation import cores
    from crosspair.progress import progress

    workers = options.workers or cores()
    plan = plan_preparation(Manifest.read(options.manifest), options.out, settings)
    if options.dry_run:
        _estimate(plan, options, workers)
        return
    engine = _engine(options, workers)
    with progress("preparing", len(plan.requests), "videos") as bar:
        manifest = prepare_corpus(
            plan, engine, lambda done, broken: bar.advance(done, f"{broken} broken")
        )
    broken = sum(error is not None for error in manifest.column("error"))
    print(
        f"{manifest.path}: {len(manifest)} pairs, {broken} broken; "
        f"{len(plan.requests)} videos, {len(plan.done)} of them prepared before"
    )
    if broken:
        sys.exit(1)


def _settings(options: argparse.Namespace) -> Settings:
    from crosspair.corpora.prepare import Settings

    try:
        fps = None if options.fps == "own" else float(options.fps)
    except ValueError as error:
        raise CrosspairError(f"--fps {options.fps!r} is neither own nor a number") from error
    return Settings(options.short_side, options.gop, fps, options.middle, options.crf)


def _engine(options: argparse.Namespace, workers: int) -> Engine:
    from functools import partial

    from crosspair.corpora.prepare import on_processes, on_ray

    if on_cluster(options):
        return partial(on_ray, workers=workers, address=options.address)
    return partial(on_processes, workers=workers)


def _estimate(plan: Plan, options: argparse.Namespace, workers: int) -> None:
    import datetime
    import shutil
    from functools import partial

    from crosspair.corpora.prepare import estimate, on_processes
    from crosspair.progress import progress

    print(
        f"{len(plan.manifest)} pairs, {len(plan.requests)} videos: "
        f"{len(plan.done)} are prepared, {len(plan.missing)} are to do"
    )
    if not plan.missing:
        return
    size = min(options.sample, len(plan.missing))
    with progress("trying out", size, "videos") as bar:
        found = estimate(
            plan, partial(on_processes, workers=workers), options.sample, options.seed,
            lambda done, broken: bar.advance(done, f"{broken} broken"),
        )  # fmt: skip
    place = next(each for each in [plan.out, *plan.out.absolute().parents] if each.is_dir())
    work, wall = (datetime.timedelta(seconds=round(s)) for s in (found.work, found.work / workers))
    print(
        f"from {found.sampled} of them ({found.broken} broken): about {wall} with {workers} "
        f"processes ({work} of one), {found.size / 1e6:.1f} MB of disk "
        f"({shutil.disk_usage(place).free / 1e6:.0f} MB are free)"
    )
