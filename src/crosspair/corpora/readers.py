"""Read a folder with a title file, Kinetics, Instagram-300k, MSR-VTT, MSVD, or VATEX into a manifest.

Each reader takes the folder of the videos, which may be in subfolders, the corpus's own lists, ``out``, which is the
manifest file or a folder for ``manifest.parquet``, and options, see `crosspair.corpora.build.CorpusOptions`. Invalid
input raises a `ManifestError` before anything is written.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

import pandas as pd

from crosspair.corpora import build, tables
from crosspair.corpora.build import (
    NO_TITLE,
    CorpusOptions,
    ManifestOutput,
    PairRecord,
    Row,
    SkippedPair,
    TitledCorpusOptions,
)
from crosspair.corpora.manifest import SPLITS, Manifest
from crosspair.corpora.video_files import VideoFiles, normalize_name, strip_video_suffix, summarize_names, video_stem
from crosspair.errors import ManifestError

logger = logging.getLogger(__name__)

KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
TRIM_TOLERANCE = 1.0  # s by which a video cut at key frames may be longer than its segment
INSTAGRAM_TEMPLATE = "trimmed_resize_{id}.mp4"


def folder_corpus(
    folder: Path,
    titles: Path,
    out: Path,
    *,
    label_by_folder: bool = False,
    split_lists: Mapping[str, Path] | None = None,
    skip_broken: bool = False,
    captions: tables.Captions = "error",
    **options: Unpack[CorpusOptions],
) -> Manifest:
    """Join a folder of videos with a title file, and write the manifest.

    Args:
        folder: searched for videos, including subfolders.
        titles: a title file, see `crosspair.corpora.tables.read_titles`. ``video_id`` is a file
            name without suffix, ``path`` a path relative to ``folder``; ``start`` and ``end`` in s.
        label_by_folder: use the name of a video's folder as its label.
        split_lists: from split to a text file with one video per line, as UCF101's lists.
        skip_broken: mark unreadable videos in the manifest instead of raising.
        captions: what to do with several titles of one video, see `crosspair.corpora.tables.merge_captions`.

    Raises:
        ManifestError: an input is invalid, no title belongs to a video, or a video is unreadable
            and ``skip_broken`` is not set; nothing has been written.
    """
    output = ManifestOutput(out)
    lines = tables.read_titles(titles, options.get("title_columns"))
    videos = VideoFiles(folder)
    if captions != "error":
        names = lines["path"].where(lines["path"] != "", lines["video_id"])
        found = [videos.find(name, where) or name for where, name in names.items()]
        lines = tables.merge_captions(lines, found, captions)
    advice = "remove one of them, or use --captions join or first if both have the same label, split, start and end"
    named = tables.index_by_key(lines, _pair_ids(lines), advice)
    pairs = [_titled_pair(name, line) for name, line in named.items()]
    rows, skipped = build.match_videos(pairs, videos, what=f"titles of {titles}", needs_title=True)
    _check_duplicates(rows, titles)
    known = {row["path"] for row in rows} | {pair.detail for pair in skipped}
    untitled = [path for path in videos.paths if videos.full_path(path) not in known]
    skipped += [SkippedPair(video_stem(path), NO_TITLE, videos.full_path(path)) for path in untitled]
    if label_by_folder:
        for row in rows:
            row["label"] = Path(row["path"]).parent.name
    build.rename_classes(rows, options.get("class_names"), str)
    for split, file in (split_lists or {}).items():
        _assign_split(rows, videos, split, file)
    build.split_validation(rows, options.get("val_fraction", 0.0), options.get("seed", 0), lambda row: str(row["path"]))
    build.probe_rows(rows, options.get("progress", lambda *_: None))
    broken = [row["error"] for row in rows if row.get("error")]
    if broken and not skip_broken:
        for error in broken:
            logger.warning("broken: %s", error)
        raise ManifestError(
            f"{len(broken)} of {len(rows)} videos cannot be read, the first: {broken[0]}. "
            "Fix or remove them, or pass --skip-broken to mark and skip them."
        )
    return output.write(rows, skipped)


def _pair_ids(lines: pd.DataFrame) -> pd.Series:
    return lines["video_id"].where(lines["video_id"] != "", lines["path"].map(normalize_name))


def _titled_pair(name: str, line: Mapping[str, Any]) -> PairRecord:
    """Convert a line of a title file to a pair with the id ``name``."""
    start, end = tables.parse_interval(line, "start", "end")
    row = {
        "title": line["title"] or None,
        "title_clean": line["title_clean"],
        "label": line["label"] or None,
        "split": build.parse_split(line["split"], line["where"]),
        "start": start,
        "end": end,
    }
    return PairRecord(name, line["where"], {line["path"] or name: {}}, row)


def _check_duplicates(rows: list[Row], titles: Path) -> None:
    """Raise ManifestError if two rows have the same path, start (None is 0) and end."""
    first: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        other = first.setdefault((row["path"], row["start"] or 0.0, row["end"]), row)
        if other is not row:
            raise ManifestError(
                f"title file {titles}: {other['pair_id']!r} and {row['pair_id']!r} are the same part of "
                f"{row['path']}; remove one of them"
            )


def _assign_split(rows: list[Row], videos: VideoFiles, split: str, file: Path) -> None:
    """Set the split of the rows, in place, whose videos a list names; lines without a video are logged."""
    if split not in SPLITS:
        raise ManifestError(f"split {split!r} is unknown; it must be one of {', '.join(SPLITS)}")
    by_video: dict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        by_video[row["path"]].append(row)
    lines = tables.read_lines(file, "split list")
    unknown = []
    for where, line in lines.items():
        name = _strip_class_number(line)
        members = by_video.get(_find_listed_video(name, videos, where), [])
        for row in members:
            row["split"] = split
        if not members:
            unknown.append(name)
    if len(unknown) == len(lines):
        listed = f"; it lists {summarize_names(unknown)}" if unknown else ""
        raise ManifestError(f"split list {file} matches no video of {len(rows)}{listed}")
    if unknown:
        message = "split list %s: %d of %d lines match no video with a title (%s)"
        logger.warning(message, file, len(unknown), len(lines), summarize_names(unknown))


def _strip_class_number(line: str) -> str:
    """Remove the class number that follows the file name in UCF101's train lists."""
    name = re.sub(r"\s+\d+$", "", line)
    return line if strip_video_suffix(name) == name else name


def _find_listed_video(line: str, videos: VideoFiles, where: str) -> str | None:
    """Return the full path of a listed video or None; without a match, ignore suffix, then also folder."""
    for name in (line, strip_video_suffix(line), video_stem(line)):
        path = videos.find(name, where)
        if path is not None:
            return videos.full_path(path)
    return None


def kinetics_corpus(folder: Path, lists: Sequence[Path], out: Path, **options: Unpack[TitledCorpusOptions]) -> Manifest:
    """Write the manifest of Kinetics.

    A video named ``ID_000417_000427``, with any video suffix and in any subfolder, is the trimmed
    segment from 417 s to 427 s. A video named ``ID`` counts as trimmed if it is at most 1 s longer
    than its segment; otherwise the manifest's ``start`` and ``end`` select the segment.

    Args:
        lists: official csv files, for example of training and validation.
        **options: see `crosspair.corpora.build.TitledCorpusOptions`; with ``titles``, pairs without
            a title are skipped.
    """
    output = ManifestOutput(out)
    lines = pd.concat([tables.read_table(file, "Kinetics list").rows(*KINETICS_COLUMNS) for file in lists])
    pairs = [_kinetics_pair(line) for line in tables.index_by_key(lines, lines["youtube_id"]).values()]
    needs_title = options.get("titles") is not None
    return build.build_manifests(
        folder, [(output, pairs)], options, what="segments", after_probe=_trim, needs_title=needs_title
    )[0]


def _kinetics_pair(line: Mapping[str, str]) -> PairRecord:
    """Convert a line of a Kinetics list; the video is named ``ID_START_END``, or ``ID`` with an interval."""
    name, (start, end) = line["youtube_id"], tables.parse_interval(line, "time_start", "time_end")
    if not name or start is None or end is None:
        raise ManifestError(f"{line['where']}: youtube_id, time_start or time_end is empty")
    files = {f"{name}_{round(start):06d}_{round(end):06d}": {}, name: {"start": start, "end": end}}
    row = {"label": line["label"] or None, "split": build.parse_split(line["split"], line["where"])}
    return PairRecord(name, line["where"], files, row)


def _trim(row: Row) -> None:
    """Set start and end to None if the video is at most 1 s longer than that; ``error`` if it ends before start."""
    if row.get("start") is None or row.get("error"):
        return
    start, end, duration = row["start"], row["end"], row["duration"]
    if duration <= end - start + TRIM_TOLERANCE:
        row["start"] = row["end"] = None
    elif duration <= start:
        row["error"] = f"{row['path']}: ends at {duration:.2f} s, before its segment, {start:g} s to {end:g} s, begins"


def instagram_corpus(
    folder: Path, captions: Path, out: Path, *, template: str = INSTAGRAM_TEMPLATE, **options: Unpack[CorpusOptions]
) -> Manifest:
    """Write the manifest of Instagram-300k; pairs without a caption are skipped.

    Args:
        captions: a JSON file, ``{id: {"subset": …, "caption": …}}``.
        template: file name, or path relative to ``folder``, of the video with id ``{id}``.
    """
    if "{id}" not in template:
        raise ManifestError(f"template {template!r} must contain {{id}}, for example {INSTAGRAM_TEMPLATE!r}")
    lists = [(ManifestOutput(out), list(_read_captions(captions, template)))]
    return build.build_manifests(folder, lists, {"titles": None, **options}, what="captions", needs_title=True)[0]


def _read_captions(file: Path, template: str) -> Iterator[PairRecord]:
    """Yield a pair for each entry of Instagram-300k's JSON file; the caption becomes the title."""
    for name, entry in tables.read_json_object(file, "captions").items():
        where = f"captions {file}, {name!r}"
        if not isinstance(entry, dict) or not {"subset", "caption"} <= set(entry):
            raise ManifestError(f"{where}: must be an object with 'subset' and 'caption'")
        caption = entry["caption"] or ""
        if not isinstance(caption, str):
            raise ManifestError(f"{where}: caption is {caption!r}; it must be a string")
        # A caption that was cut within an emoji ends with half a surrogate pair.
        caption = caption.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        row = {"title": caption.strip() or None, "split": build.parse_split(str(entry["subset"] or "").strip(), where)}
        yield PairRecord(name, where, {template.replace("{id}", name): {}}, row)


# --- several captions for each video, for retrieval --------------------------------------------

MsrvttSplit = Literal["full", "1k-A", "1k-A-7k"]
MSRVTT_CATEGORIES = (
    "music", "people", "gaming", "sports/actions", "news/events/politics", "education", "tv shows", "movie/comedy",
    "animation", "vehicles/autos", "howto", "travel", "science/technology", "animals/pets", "kids/family",
    "documentary", "food/drink", "cooking", "beauty/fashion", "advertisement",
)  # fmt: skip
"""Names of the 20 categories by number, as in the official ``category.txt``."""

_MSVD_CAPTION = re.compile(r"(?P<name>\S+_\d+_\d+)(?:\s+(?P<caption>.*))?")
_VATEX_SPLITS = ("training", "validation", "test")


class CaptionedVideo(NamedTuple):
    """A video as a corpus lists it."""

    name: str  # of the file, without suffix
    where: str  # file and place of the entry, for messages
    split: str | None
    captions: list[Any]  # blank ones are dropped
    label: str | None = None
    source: str | None = None  # recording that several videos may be cut from; they are held out together


def msrvtt_corpus(
    folder: Path,
    files: Sequence[Path],
    out: Path,
    *,
    split: MsrvttSplit = "full",
    test_pairs: Path | None = None,
    **options: Unpack[CorpusOptions],
) -> Manifest:
    """Write the manifest of MSR-VTT: 10,000 videos with 20 captions each; labels are the categories.

    Args:
        folder: the videos, ``video0.mp4`` etc., in any subfolders.
        files: ``train_val_videodatainfo.json`` and ``test_videodatainfo.json``.
        split: ``full``: the official 6,513 / 497 / 2,990 videos. ``1k-A``: the 1,000 videos of ``test_pairs``, with
            the one caption listed there, are split test, all others (9,000) train; ``1k-A-7k``: only those of the
            official train and validation splits (7,010) are train.
        test_pairs: ``MSRVTT_JSFUSION_test.csv``, for ``1k-A`` and ``1k-A-7k``.
    """
    if (test_pairs is None) != (split == "full"):
        raise ManifestError(
            f"split {split} {'requires' if test_pairs is None else 'has no'} test pairs; "
            "pass MSRVTT_JSFUSION_test.csv for 1k-A and 1k-A-7k only"
        )
    captions: dict[str, list[Any]] = defaultdict(list)
    videos = []
    for file in files:
        content, where = tables.read_json_object(file, "annotations"), f"annotations {file}"
        for _, sentence in _entries(content.get("sentences"), f"{where}, sentences", video_id=str, caption=str):
            captions[sentence["video_id"]].append(sentence["caption"])
        for place, video in _entries(content.get("videos"), f"{where}, videos", video_id=str, split=str):
            name, number = video["video_id"], video.get("category")
            label = MSRVTT_CATEGORIES[number] if isinstance(number, int) and 0 <= number < 20 else None
            official = build.parse_split(video["split"], place)
            videos.append(CaptionedVideo(name, place, official, captions[name], label, video.get("url")))
    if test_pairs is not None:
        lines = tables.read_table(test_pairs, "test pairs").rows("video_id", "sentence")
        tests = tables.index_by_key(lines, lines["video_id"])
        labels = {video.name: video.label for video in videos}
        unused = "test" if split == "1k-A-7k" else ""
        train = [video for video in videos if video.name not in tests and video.split != unused]
        videos = [video._replace(split="train") for video in train]
        videos += [
            CaptionedVideo(name, line["where"], "test", [line["sentence"]], labels.get(name))
            for name, line in tests.items()
        ]
    return _write_manifest(folder, out, videos, options)


def msvd_corpus(folder: Path, captions: Path, out: Path, *, lists: Path, **options: Unpack[CorpusOptions]) -> Manifest:
    """Write the manifest of MSVD: 1,970 videos (1,200 / 100 / 670) with about 41 English captions each.

    Args:
        folder: the videos, such as ``mv89psg6zh4_33_46.avi``, in any subfolders.
        captions: ``AllVideoDescriptions.txt``: a video and a caption per line, below a heading.
        lists: the folder of ``train_list.txt``, ``val_list.txt`` and ``test_list.txt``.
    """
    captions_of: dict[str, list[Any]] = defaultdict(list)
    invalid = []
    for where, line in tables.read_lines(captions, "captions").items():
        if found := _MSVD_CAPTION.fullmatch(line):
            captions_of[found["name"]].append(found["caption"] or "")
        elif captions_of:  # below the heading
            invalid.append(where)
    if not captions_of:
        raise ManifestError(f"captions {captions}: no line is a video, such as mv89psg6zh4_33_46, and a caption")
    if invalid:
        logger.warning("%s: %d lines that do not begin with a video are skipped", invalid[0], len(invalid))
    videos = [
        CaptionedVideo(name, where, split, captions_of[name], source=name.rsplit("_", 2)[0])
        for split in SPLITS
        for where, line in tables.read_lines(lists / f"{split}_list.txt", "split list").items()
        for name in [video_stem(line)]
    ]
    return _write_manifest(folder, out, videos, options)


def vatex_corpus(
    folder: Path,
    files: Sequence[Path],
    out: Path,
    *,
    language: Literal["en", "ch"] = "en",
    **options: Unpack[CorpusOptions],
) -> Manifest:
    """Write the manifest of VATEX: 10 English and 10 Chinese captions for each video.

    Args:
        folder: the videos, such as ``Ptf_2VRj-V0_000122_000132.mp4``, in any subfolders.
        files: ``vatex_training_v1.0.json`` (25,991 videos), ``vatex_validation_v1.0.json`` (3,000) and
            ``vatex_public_test_english_v1.1.json`` (6,000), or some of them; their names determine the split.
        language: of the captions, English or Chinese.
    """
    key, videos = f"{language}Cap", []
    for file in files:
        splits = [name for name in _VATEX_SPLITS if name in file.name.lower()]
        if len(splits) != 1:
            raise ManifestError(f"annotations {file}: the name must contain one of {', '.join(_VATEX_SPLITS)}")
        where = f"annotations {file}"
        for place, video in _entries(tables.read_json(file, "annotations"), where, videoID=str, **{key: list}):
            videos.append(CaptionedVideo(video["videoID"], place, build.parse_split(splits[0], place), video[key]))
    return _write_manifest(folder, out, videos, options)


def _entries(entries: Any, where: str, **types: type) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield place and content of each object of a JSON array; ManifestError if a key is missing or of another type."""
    if not isinstance(entries, list):
        raise ManifestError(f"{where} must be a list, not {type(entries).__name__}")
    for number, entry in enumerate(entries, start=1):
        place = f"{where}, entry {number}"
        for key, kind in types.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                raise ManifestError(f"{place} must be an object with {key!r} of type {kind.__name__}")
        yield place, entry


def _write_manifest(folder: Path, out: Path, videos: Iterable[CaptionedVideo], options: CorpusOptions) -> Manifest:
    """Find the files of the videos and write the manifest; videos without a file or caption are skipped."""
    pairs: dict[str, PairRecord] = {}
    sources = {}
    for video in videos:
        if video.name in pairs:
            raise ManifestError(f"{video.where}: {video.name!r} is duplicated, first in {pairs[video.name].where}")
        if not all(isinstance(caption, str) for caption in video.captions):
            raise ManifestError(f"{video.where}: a caption of {video.name!r} is not text")
        captions = [caption.strip() for caption in video.captions if caption.strip()]
        row = {
            "title": captions[0] if captions else None,
            "titles": captions if len(captions) > 1 else None,
            "label": video.label,
            "split": video.split,
        }
        pairs[video.name] = PairRecord(video.name, video.where, {video.name: {}}, row)
        sources[video.name] = str(video.source or video.name)
    lists = [(ManifestOutput(out), list(pairs.values()))]
    return build.build_manifests(
        folder, lists, {"titles": None, **options},
        what="listed videos", needs_title=True, group=lambda row: sources[row["pair_id"]],
    )[0]  # fmt: skip
