"""Verbs that use a trained model on videos: embed, classify, index, search, serve."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from crosspair.cli.results import classify_videos, print_classes, print_hits, print_line, split_by_length
from crosspair.errors import CrosspairError, VideoError

if TYPE_CHECKING:
    from jsonargparse.typing import NonNegativeInt, PositiveInt

    from crosspair.cli.parser import InferenceOptions

logger = logging.getLogger(__name__)


def run_embed(
    videos: list[str],
    *,
    model: str,
    out: Path,
    clips: PositiveInt = 10,
    window: float | None = None,
    stride: float | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    **options: Unpack[InferenceOptions],
) -> None:
    """Write features of videos to a Parquet file, or of a manifest to a folder.

    A file has one row per video or window: video, start, end, visual, embedding, error. A folder
    has the features of one manifest for evaluate: features.safetensors and index.parquet. It can
    be resumed by the same command, and runs under torchrun and on Ray.

    Args:
        model: a model folder or Hub name; for a folder also imagenet:FILE
        out: FILE.parquet, or a folder
        clips: clips per video, without --window
        window: length of a window in s; one row per window (default: one per video)
        engine: for a folder: run on processes of this machine, or on a Ray cluster with a shared
            file system
    """
    from crosspair import api
    from crosspair.cli.parser import check_engine
    from crosspair.files import check_output
    from crosspair.inference import load, write_embeddings

    check_engine(engine, address)
    windows = _parse_windows(window, stride)
    if out.suffix != ".parquet":
        if out.is_file():
            raise CrosspairError(f"--out {out} is a file; give FILE.parquet or a folder")
        if len(videos) > 1 or windows:
            raise CrosspairError(f"--out {out} is a folder: give one manifest, and no --window")
        ray = (address or "") if engine == "ray" else None
        features = api.write_features(model, videos[0], out, clips=clips, ray=ray, **options)
        if api.is_main_process():
            print_line(f"{out}: features of {len(features.rows)} videos, {len(features.failures)} skipped")
        return
    if engine == "ray":
        raise CrosspairError("--engine ray requires a folder as --out")
    check_output(out, "a file of embeddings")
    loaded = load(model, **options)
    metadata = {
        "model": loaded.engine.model.hash,
        "clips": None if windows else clips,
        "window": windows and windows.length,
        "stride": windows and windows.stride,
    }
    rows, failures = write_embeddings(out, loaded.encode(videos, clips=clips, windows=windows), metadata)
    failed = f"; {len(failures)} videos could not be read (column error)" if failures else ""
    print_line(f"{out}: {rows} rows{failed}")


def _parse_windows(window: float | None, stride: float | None) -> Any:
    """Return the windows of ``--window`` and ``--stride`` (default: half a window); None without ``--window``."""
    from crosspair.evaluation.windows import Windows

    if window is None:
        if stride is not None:
            raise CrosspairError("--stride requires --window")
        return None
    return Windows(window, window / 2 if stride is None else stride)


def run_classify(
    videos: list[str],
    *,
    model: str,
    classes: str = "",
    classes_file: Path | None = None,
    templates: Path | None = None,
    window: float | None = None,
    stride: float | None = None,
    top: PositiveInt = 5,
    json: bool = False,
    **options: Unpack[InferenceOptions],
) -> None:
    """Classify videos among given class names (zero-shot).

    Videos longer than 30 s get a timeline of 4 s windows every 2 s.

    Args:
        classes: "A, B, C": names, separated by commas
        classes_file: names, one per line, instead of --classes
        window: length of a window in s; prints a timeline for every video
        top: number of classes to print
        json: print all scores as JSON
    """
    from crosspair.cli.parser import print_json
    from crosspair.corpora.inputs import collect_videos, probe_missing
    from crosspair.evaluation.zeroshot import read_templates
    from crosspair.inference import load

    prompts: dict[str, Any] = {
        "classes": _read_classes(classes, classes_file),
        "templates": read_templates(templates) if templates else ("{}",),
    }
    windows = _parse_windows(window, stride)
    loaded = load(model, **options)
    manifest = probe_missing(collect_videos(videos))
    results = [
        {"video": name, "error": error}
        for name, error in zip(manifest.column("pair_id"), manifest.column("error"), strict=True)
        if error
    ]
    for members, cut in split_by_length(manifest, windows):
        results += classify_videos(loaded, members, windows=cut, **prompts)
    if all("classes" not in result for result in results):
        raise VideoError(f"0 of {len(manifest)} videos can be read; first error: {results[0]['error']}")
    if json:
        print_json(results)
    else:
        print_classes(results, top)


def _read_classes(names: str, file: Path | None) -> list[str]:
    if bool(names) == bool(file):
        raise CrosspairError('either --classes "A, B, C" or --classes-file FILE is required')
    listed = names.split(",")
    if file:
        from crosspair.corpora.tables import read_lines

        listed = list(read_lines(file, "class file").values())
    classes = list(dict.fromkeys(filter(None, map(str.strip, listed))))
    if not classes:
        raise CrosspairError(f"{file or '--classes'} contains no class name")
    return classes


def run_index(
    videos: list[str],
    *,
    library: Path,
    model: str | None = None,
    titles: Path | None = None,
    window: float | None = None,
    stride: float | None = None,
    sampling: Literal["auto", "clips", "keyframes"] | None = None,
    forget: bool = False,
    **options: Unpack[InferenceOptions],
) -> None:
    """Create a searchable library of videos, or update it.

    Only new and changed files are encoded; videos deleted from the folders are removed. If
    interrupted, run the same command again to resume. The library contains a copy of its model, so
    --model and --window are needed only once.

    Args:
        videos: folders, files, URLs or manifests (.parquet)
        titles: csv or tsv: video_id or path, title
        window: length of a window in s (default: 4)
        sampling: what to decode, with image encoders only: clips, the key frames, or auto, the key
            frames where they are dense (default: auto)
        forget: remove these videos from the library instead, even if the files do not exist
    """
    from crosspair.evaluation.encode import load_engine
    from crosspair.library.index import index_videos, remove_videos
    from crosspair.library.store import BROKEN_FILE, MODEL_FOLDER, is_library
    from crosspair.progress import delayed_progress

    if forget:
        removed = remove_videos(library, videos)
        if not removed:
            raise CrosspairError(f"{library} has no video {' or '.join(videos)}")
        print_line(f"{library}: videos removed: {removed}")
        return
    windows = _parse_windows(window, stride)
    if model is None and not is_library(library):
        raise CrosspairError(f"{library} is not a library yet; add --model M to create it")
    engine = load_engine(model or library / MODEL_FOLDER, **options)
    with delayed_progress("indexing", "videos") as progress:
        summary = index_videos(
            library, engine, videos, windows=windows, sampling=sampling, titles=titles, progress=progress
        )
    print_line(
        f"{library}: {summary.added} videos added, {summary.changed} changed, {summary.removed} "
        f"removed, {summary.unchanged} unchanged; {summary.windows} windows written"
    )
    if summary.broken:
        print_line(f"{library / BROKEN_FILE}: {len(summary.broken)} unreadable videos, with reasons")


def run_search(
    text: tuple[str, ...],
    *,
    library: Path,
    and_: tuple[str, ...] = (),
    image: tuple[str, ...] = (),
    video: tuple[str, ...] = (),
    not_: tuple[str, ...] = (),
    by: Literal["picture", "title", "both"] | None = None,
    limit: PositiveInt = 10,
    where: str = "",
    folder: str | None = None,
    per_video: PositiveInt | None = None,
    dedupe: float | None = None,
    exact: bool = False,
    json: bool = False,
    sheet: Path | None = None,
    export_clips: Path | None = None,
    precise: bool = False,
    edl: Path | None = None,
    fcpxml: Path | None = None,
    csv: Path | None = None,
    **options: Unpack[InferenceOptions],
) -> None:
    """Search moments in a library by texts, images and videos.

    TEXT, --and, --image, --video and --not are combined and can have weights: "2:a dog" counts twice. All but TEXT can
    be repeated.

    Args:
        text: what to search for
        and_: a further text
        image: search for moments that look like this image
        video: search for moments that look like this video
        not_: a text that results should not match
        by: what to rank by (default: both for texts, if there are titles)
        limit: number of results
        where: SQL on path, title, start, end, size: title LIKE '%guitar%'
        folder: search only videos in this folder
        per_video: maximum number of results per video
        dedupe: suppress results with this cosine, such as 0.95, to another
        exact: compare with every window, without the vector index
        json: print results as JSON
        sheet: also draw an image (.png) with frames of each result
        export_clips: also copy each result to a video file in this folder
        precise: re-encode these files, exact to a frame
        edl: also write an edit decision list (CMX 3600)
        fcpxml: also write a project for Final Cut Pro or Resolve
        csv: also write rank, path, times, score and title
    """
    from crosspair.cli.parser import print_json
    from crosspair.evaluation.encode import load_engine
    from crosspair.files import check_output, write_atomically
    from crosspair.library.export import HitOutputs
    from crosspair.library.query import QueryPart
    from crosspair.library.search import Searcher, contact_sheet
    from crosspair.library.store import Library

    parts = [
        *(QueryPart.parse(word) for word in [*filter(None, [" ".join(text)]), *and_]),
        *(QueryPart.parse(word, "image") for word in image),
        *(QueryPart.parse(word, "video") for word in video),
        *(QueryPart.parse(word, sign=-1) for word in not_),
    ]
    if not parts:
        raise CrosspairError("a text, --image FILE or --video FILE is required")
    if sheet:
        if sheet.suffix.lower() != ".png":
            raise CrosspairError(f"--sheet {sheet} must be a .png file")
        check_output(sheet, "a contact sheet")
    outputs = HitOutputs(export_clips, precise, edl, fcpxml, csv)
    opened = Library(library)
    searcher = Searcher(opened, load_engine(opened.model_folder, **options))
    settings: Any = {
        "by": by, "limit": limit, "where": where, "folder": folder,
        "per_video": per_video, "dedupe": dedupe, "exact": exact,
    }  # fmt: skip
    hits = searcher.combined(parts, **settings)
    if sheet:
        write_atomically(sheet, contact_sheet(hits))
    exported = outputs.write(hits)
    if json:
        print_json([
            {
                "path": hit.path, "start": hit.start, "end": hit.end,
                "score": round(hit.score, 4), "title": hit.title,
            }
            for hit in hits
        ])  # fmt: skip
        return
    print_hits(hits)
    if sheet:
        print_line(f"{sheet}: frames of each result")
    for line in exported:
        print_line(line)


def run_serve(
    *,
    library: Path,
    host: str = "127.0.0.1",
    port: NonNegativeInt = 7860,
    allowed_host: list[str] = [],  # noqa: B006
    max_upload: PositiveInt = 200,
    **options: Unpack[InferenceOptions],
) -> None:
    """Serve a web page to search a library, play results, and classify a video.

    Only videos of the library are served. Uploads are deleted after processing. Press Ctrl-C to
    stop.

    Args:
        host: address to listen on; 0.0.0.0 allows access from other machines
        port: 0: any free port
        allowed_host: names of this server in addresses of the page
        max_upload: maximum size of an upload in MB
    """
    from crosspair.evaluation.encode import load_engine
    from crosspair.library.store import Library
    from crosspair.serve.app import serve
    from crosspair.serve.guard import is_loopback

    opened = Library(library)
    if not is_loopback(host):
        logger.warning("no password is required: everyone who can reach %s can see all videos of this library", host)
    serve(
        opened, load_engine(opened.model_folder, **options),
        host=host, port=port, allowed_hosts=allowed_host, max_upload=max_upload,
        ready=lambda address: print_line(f"{address}  (press Ctrl-C to stop)"),
    )  # fmt: skip
