"""Any folder of videos with a title file becomes a manifest."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from crosspair.corpora.build import (
    NO_TITLE,
    CorpusOptions,
    ManifestOutput,
    PairRecord,
    SkippedPair,
    TitledCorpusOptions,
    match_videos,
    official_corpus,
    parse_split,
    probe_rows,
    rename_classes,
    split_validation,
)
from crosspair.corpora.manifest import SPLITS, Manifest
from crosspair.corpora.tables import (
    TableLine,
    index_by_key,
    read_json_object,
    read_lines,
    read_table,
    read_titles,
    summarize_names,
)
from crosspair.corpora.video_files import VideoFiles, strip_video_suffix, to_nfc, video_stem
from crosspair.errors import ManifestError

logger = logging.getLogger(__name__)


def folder_corpus(
    folder: Path,
    titles: Path,
    out: Path,
    *,
    label_by_folder: bool = False,
    split_lists: Mapping[str, Path] | None = None,
    skip_broken: bool = False,
    **choices: Unpack[CorpusOptions],
) -> Manifest:
    """Join a folder of videos with a title file, and write the manifest.

    Args:
        folder: searched for videos, with all its subfolders.
        titles: a file as `titlefile.read_titles` takes it. ``video_id`` is a file's name without
            its suffix, ``path`` that within ``folder``; ``start`` and ``end`` in s.
        out: the manifest; in a folder, ``manifest.parquet``.
        label_by_folder: take the name of the folder that holds a video as its label.
        split_lists: split to a text file that names its videos, one a line, as UCF101's.
        skip_broken: write the manifest although videos are broken; they are marked and left out.
        **choices: see `official.Choices`.

    Raises:
        ManifestError: an input does not do, no title belongs to a video, or videos are broken and
            ``skip_broken`` is not set. Nothing is written then.
    """
    output = ManifestOutput(out)
    listed = _listed(read_titles(titles, choices.get("title_columns")))
    videos, left_out = VideoFiles(folder), list[SkippedPair]()
    rows = match_videos(listed, videos, left_out, what=f"titles of {titles}", needs_title=True)
    _refuse_doubles(rows, titles)
    _list_unnamed(videos, rows, left_out)
    if label_by_folder:
        for row in rows:
            row["label"] = Path(row["path"]).parent.name
    rename_classes(rows, choices.get("class_names"), str)
    for split, file in (split_lists or {}).items():
        _assign_split(rows, videos, split, file)
    split_validation(
        rows, choices.get("val_share", 0.0), choices.get("seed", 0), lambda row: str(row["path"])
    )
    probe_rows(rows, choices.get("progress", lambda *_: None))
    if not skip_broken:
        _refuse_broken(rows)
    return output.write(rows, left_out)


def _listed(titles: list[TableLine]) -> list[PairRecord]:
    named = index_by_key((row["video_id"] or to_nfc(row["path"]), row) for row in titles)
    return [_pair(name, row) for name, row in named.items()]


def _pair(name: str, row: TableLine) -> PairRecord:
    start, end = row.part("start", "end")
    says = {
        "title": row["title"] or None,
        "title_clean": row.values.get("title_clean"),
        "label": row["label"] or None,
        "split": parse_split(row["split"], row.where),
        "start": start,
        "end": end,
    }
    return PairRecord(name, row.where, {row["path"] or name: {}}, says)


def _refuse_doubles(rows: list[dict[str, Any]], titles: Path) -> None:
    """A video has names with and without suffix and folder; training would take it for two."""
    first: dict[tuple[Any, ...], str] = {}
    for row in rows:
        named = first.setdefault((row["path"], row["start"] or 0.0, row["end"]), row["pair_id"])
        if named != row["pair_id"]:
            raise ManifestError(
                f"title file {titles}: {named!r} and {row['pair_id']!r} are the same part of "
                f"{row['path']}; leave one of them"
            )


def _list_unnamed(
    videos: VideoFiles, rows: list[dict[str, Any]], left_out: list[SkippedPair]
) -> None:
    known = {row["path"] for row in rows} | {pair.detail for pair in left_out}
    for path in videos.paths:
        if videos.whole(path) not in known:
            left_out.append(SkippedPair(video_stem(path), NO_TITLE, videos.whole(path)))


def _assign_split(rows: list[dict[str, Any]], videos: VideoFiles, split: str, file: Path) -> None:
    if split not in SPLITS:
        raise ManifestError(f"split {split!r} is unknown; the splits are {', '.join(SPLITS)}")
    of_video: dict[str | None, list[dict[str, Any]]] = {}
    for row in rows:
        of_video.setdefault(row["path"], []).append(row)
    lines = read_lines(file, "split list")
    strange = []
    for line in lines:
        name = _without_number(line["line"])
        members = of_video.get(_video_named(name, videos, line.where), [])
        for row in members:
            row["split"] = split
        if not members:
            strange.append(name)
    if len(strange) == len(lines):
        named = f"; it names {summarize_names(strange)}" if strange else ""
        raise ManifestError(f"split list {file} names none of the {len(rows)} videos{named}")
    if strange:
        logger.warning(
            "split list %s: %d of %d lines name no video with a title (%s)",
            file, len(strange), len(lines), summarize_names(strange),
        )  # fmt: skip


def _without_number(line: str) -> str:
    """UCF101's train lists have the class's number behind the file."""
    cut = re.sub(r"\s+\d+$", "", line)
    return line if strip_video_suffix(cut) == cut else cut


def _video_named(line: str, videos: VideoFiles, where: str) -> str | None:
    """The video of a list's line, which may have another suffix and other folders on disk."""
    for name in (line, strip_video_suffix(line), video_stem(line)):
        path = videos.named(name, where)
        if path is not None:
            return videos.whole(path)
    return None


def _refuse_broken(rows: list[dict[str, Any]]) -> None:
    broken = [row["error"] for row in rows if row.get("error")]
    for error in broken:
        logger.warning("broken: %s", error)
    if broken:
        raise ManifestError(
            f"{len(broken)} of {len(rows)} videos cannot be read (the first: {broken[0]}); "
            "mend or remove them, or mark and leave them out by --skip-broken"
        )


COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")

TRIMMED_WITHIN = 1.0  # s by which a cut at key frames may be longer than its segment


def kinetics_corpus(
    folder: Path, lists: Sequence[Path], out: Path, **choices: Unpack[TitledCorpusOptions]
) -> Manifest:
    """Write the manifest of Kinetics.

    A video named ``ID_000417_000427``, of any video suffix and in any subfolder, is the segment of
    417 s to 427 s, already trimmed. One named ``ID`` is taken as trimmed if it is at most 1 s
    longer than its segment; else it is the whole video, and the manifest's ``start`` and ``end``
    say which part to look at.

    Args:
        folder: of videos.
        lists: official csv files, for instance of train and of validation.
        out: the manifest; in a folder, ``manifest.parquet``.
        **choices: with ``titles``, pairs without a title are left out.

    Raises:
        ManifestError: an input does not do; nothing is written then.
    """
    output = ManifestOutput(out)
    rows = [row for file in lists for row in read_table(file, "Kinetics list").rows(*COLUMNS)]
    segments = index_by_key((row["youtube_id"], row) for row in rows)
    listed = [_listed_kinetics(row) for row in segments.values()]
    (manifest,) = official_corpus(
        folder, [(output, listed)], choices, what="segments", when_probed=_trim,
        needs_title=choices.get("titles") is not None,
    )  # fmt: skip
    return manifest


def _listed_kinetics(row: TableLine) -> PairRecord:
    name, (start, end) = row["youtube_id"], row.part("time_start", "time_end")
    if not name or start is None or end is None:
        raise ManifestError(f"{row.where}: youtube_id, time_start or time_end is empty")
    trimmed = f"{name}_{round(start):06d}_{round(end):06d}"
    return PairRecord(
        name,
        row.where,
        {trimmed: {}, name: {"start": start, "end": end}},
        {"label": row["label"] or None, "split": parse_split(row["split"], row.where)},
    )


def _trim(row: dict[str, Any]) -> None:
    if row.get("start") is None or row.get("error"):
        return
    start, end, duration = row["start"], row["end"], row["duration"]
    if duration <= end - start + TRIMMED_WITHIN:
        row["start"] = row["end"] = None
    elif duration <= start:
        row["error"] = (
            f"{row['path']}: ends at {duration:.2f} s, before its segment, "
            f"{start:g} s to {end:g} s, begins"
        )


TEMPLATE = "trimmed_resize_{id}.mp4"


def instagram_corpus(
    folder: Path,
    captions: Path,
    out: Path,
    *,
    template: str = TEMPLATE,
    **choices: Unpack[CorpusOptions],
) -> Manifest:
    """Write the manifest of Instagram-300k; pairs without a caption are left out.

    Args:
        folder: of videos.
        captions: a json file, ``{id: {"subset": …, "caption": …}}``.
        out: the manifest; in a folder, ``manifest.parquet``.
        template: of a file's name, or of its path in the folder; ``{id}`` stands for the id.
        **choices: see `official.Choices`.

    Raises:
        ManifestError: an input does not do; nothing is written then.
    """
    if "{id}" not in template:
        raise ManifestError(
            f"template {template!r} holds no {{id}}: all videos would have one name; "
            f"the usual one is {TEMPLATE!r}"
        )
    output = ManifestOutput(out)
    listed = list(_listed_instagram(captions, template))
    (manifest,) = official_corpus(
        folder, [(output, listed)], {"titles": None, **choices}, what="captions", needs_title=True
    )
    return manifest


def _listed_instagram(file: Path, template: str) -> Iterator[PairRecord]:
    for name, entry in read_json_object(file, "captions").items():
        where = f"captions {file}, {name!r}"
        if not isinstance(entry, dict) or not {"subset", "caption"} <= set(entry):
            raise ManifestError(f"{where}: not an object with 'subset' and 'caption'")
        caption = entry["caption"] or ""
        if not isinstance(caption, str):
            raise ManifestError(f"{where}: the caption is {caption!r}, not a text")
        # A caption that was cut within an emoji holds half of one.
        caption = caption.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        row = {
            "title": caption.strip() or None,
            "split": parse_split(str(entry["subset"] or "").strip(), where),
        }
        yield PairRecord(name, where, {template.replace("{id}", name): {}}, row)
