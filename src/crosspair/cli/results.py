"""Results of verbs, printed as lines, tables and JSON."""

from __future__ import annotations

import datetime
import logging
import shlex
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosspair.errors import VideoError, escape_controls

if TYPE_CHECKING:
    from crosspair.ablation.plan import AblationPlan
    from crosspair.corpora.check import CheckedManifest
    from crosspair.corpora.manifest import Manifest
    from crosspair.corpora.prepare import PreparationPlan
    from crosspair.evaluation.windows import Windows
    from crosspair.inference import Model
    from crosspair.library.search import SearchHit

logger = logging.getLogger(__name__)

LONG_VIDEO = 30.0  # s; longer videos are classified window by window


def print_line(text: str) -> None:
    """Print a text on one line, whatever names and titles it contains."""
    print(escape_controls(text), flush=True)


def print_manifests(manifests: Iterable[Manifest]) -> None:
    """Print the size of each manifest, and the list of skipped pairs."""
    from crosspair.corpora.build import skipped_list_path
    from crosspair.corpora.manifest import SPLITS

    for manifest in manifests:
        counts = ", ".join(f"{len(manifest.split(name))} {name}" for name in SPLITS)
        print_line(f"{manifest.path}: {len(manifest)} pairs ({counts})")
        if skipped_list_path(manifest.path).exists():
            print_line(f"{skipped_list_path(manifest.path)}: skipped pairs, with reasons")


def print_checked(checked: CheckedManifest, listed: Path | None) -> None:
    """Print the number of videos and pairs of each kind, and the list of problems."""
    from rich.table import Table

    from crosspair.progress import Terminal

    table = Table("kind", box=None, header_style="bold", pad_edge=False)
    table.add_column("videos", justify="right")
    table.add_column("pairs", justify="right")
    table.add_column("in training")
    for kind, (videos, pairs) in checked.count_statuses().items():
        use = "[red]skipped[/red]" if kind.broken else "used"
        table.add_row(kind.value, f"{videos:,}", f"{pairs:,}", use)
    Terminal().print(table)
    total = len(checked.manifest)
    print_line(f"{checked.manifest.path}: {total - checked.broken} of {total} pairs can be used")
    if listed:
        print_line(f"{listed}: all problems")
    elif any(result.reason for result in checked.results):
        print("Use --list FILE.csv to list all problems.")


def print_preparation(plan: PreparationPlan, workers: int) -> None:
    """Transcode a sample of the missing videos, and print the estimated time and disk space of all of them."""
    from crosspair.corpora.prepare import estimate_cost, transcode_locally
    from crosspair.progress import progress

    print_line(
        f"{len(plan.manifest)} pairs, {len(plan.requests)} videos: "
        f"{len(plan.done)} prepared, {len(plan.missing)} missing"
    )
    if not plan.missing:
        return
    size = min(20, len(plan.missing))
    with progress("measuring", size, "videos") as bar:
        backend = partial(transcode_locally, workers=workers)
        estimate = estimate_cost(plan, backend, size, lambda done, broken: bar.advance(done, f"{broken} broken"))
    folder = next(each for each in [plan.out, *plan.out.absolute().parents] if each.is_dir())
    total = datetime.timedelta(seconds=round(estimate.work))
    elapsed = datetime.timedelta(seconds=round(estimate.work / workers))
    print_line(
        f"estimate from {estimate.sampled} videos ({estimate.broken} broken): {elapsed} with "
        f"{workers} processes ({total} with one), {estimate.size / 1e6:.1f} MB of disk space "
        f"({shutil.disk_usage(folder).free / 1e6:.0f} MB free)"
    )


def print_cells(
    plan: AblationPlan, out: Path, manifest: str | None, only: list[str], jobs: int, *, commands: bool
) -> None:
    """Print state and clips of the cells, or write the jobs of those not done and print their commands."""
    from crosspair.ablation.cells import plan_cells, select, status, write_jobs
    from crosspair.ablation.run import LOG, cell_command

    every = plan_cells(plan, out, manifest)
    cells = select(plan, every, only)
    waiting = sum(cell.waiting for cell in cells)
    if commands:
        for i, cell in enumerate(write_jobs(out, plan, cells)):
            folder = out.absolute() / cell.folder
            print_line(f"{shlex.join(cell_command(folder, i % jobs))} >> {shlex.quote(str(folder / LOG))} 2>&1")
        if waiting:
            logger.warning("run these commands, then --print again: %d cells wait for the tuning", waiting)
        return
    print_line(f"{plan.title}: {len(cells)} cells; all {len(every)} take about {plan.minutes:g} minutes")
    for cell in cells:
        state = status(out, cell)
        print_line(f"{cell.hash}  {state:7}  {cell.count_clips():,} clips of {cell.pairs:,} pairs  {cell.name}")


def split_by_length(manifest: Manifest, windows: Windows | None) -> Iterator[tuple[Manifest, Windows | None]]:
    """Yield the readable videos up to 30 s with None, and the longer ones (all, if ``windows``) with windows."""
    from crosspair.evaluation.windows import Windows

    short, long = list[int](), list[int]()
    for index, row in enumerate(manifest.table.to_pylist()):
        if not row["error"]:
            end = row["duration"] if row["end"] is None else row["end"]
            cut = windows is not None or end - (row["start"] or 0.0) > LONG_VIDEO
            (long if cut else short).append(index)
    if short:
        yield manifest.take(short), None
    if long:
        yield manifest.take(long), windows or Windows()


def classify_videos(model: Model, videos: Manifest, **options: Any) -> list[dict[str, Any]]:
    """Return the classes or the error of each video, as JSON values."""
    try:
        classified = model.classify(videos, **options)
    except VideoError as error:
        if len(videos) == 1:
            # The message may begin with a count of videos; the part from the path on is kept.
            message, path = str(error), videos.clips()[0].path
            return [{"video": videos.column("pair_id")[0], "error": message[max(0, message.find(path)) :]}]
        # One by one: each has its own reason, and one of them may have stopped the decoding of all.
        singles = (videos.take([row]) for row in range(len(videos)))
        return [result for single in singles for result in classify_videos(model, single, **options)]
    results: list[dict[str, Any]] = [{"video": name, "error": error} for name, error in classified.failures]
    for name, ranked, timeline in classified.videos():
        result = {"video": name, "classes": [{"class": label, "score": round(score, 4)} for label, score in ranked]}
        if timeline:
            result["timeline"] = [
                {"start": part.start, "end": part.end, "class": part.label, "score": round(part.score, 4)}
                for part in timeline
            ]
        results.append(result)
    return results


def print_classes(results: Sequence[dict[str, Any]], top: int) -> None:
    """Print the best classes and the timeline of each video."""
    from rich.table import Table
    from rich.text import Text

    from crosspair.library.search import format_time
    from crosspair.progress import Terminal

    console = Terminal()
    for result in results:
        # Outside the table, which would break long paths.
        console.print(Text(escape_controls(result["video"]), style="bold"), soft_wrap=True)
        if "error" in result:
            console.print(Text(escape_controls(f"  error: {result['error']}"), style="red"), soft_wrap=True)
            continue
        table = Table(box=None, show_header=False, padding=(0, 2))
        for ranked in result["classes"][:top]:
            table.add_row(f"{ranked['score']:.2f}", Text(escape_controls(ranked["class"])))
        for segment in result.get("timeline", ()):
            time = f"{format_time(segment['start'])}–{format_time(segment['end'])}"
            table.add_row(f"{segment['score']:.2f}", Text(escape_controls(segment["class"])), time)
        console.print(table)


def print_hits(hits: Sequence[SearchHit]) -> None:
    """Print one search result per line."""
    from rich.text import Text

    from crosspair.library.search import format_time
    from crosspair.progress import Terminal

    if not hits:
        print("nothing found")
    console = Terminal()
    for hit in hits:
        time = f"{format_time(hit.start)}–{format_time(hit.end)}"
        # Not a table, which would break long paths.
        line = Text(f"{hit.score:5.2f}  {time:13}  {escape_controls(hit.path)}")
        line.append(escape_controls(f"  {hit.title}") if hit.title else "", style="dim")
        console.print(line, soft_wrap=True)
