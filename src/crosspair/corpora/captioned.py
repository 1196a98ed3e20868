"""Read MSR-VTT, MSVD and VATEX: videos with several captions each, for retrieval.

Invalid input raises a `ManifestError` before anything is written.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

from crosspair.corpora.build import CorpusOptions, ManifestOutput, PairRecord, build_manifests, parse_split
from crosspair.corpora.manifest import SPLITS, Manifest
from crosspair.corpora.tables import index_by_key, read_json, read_json_object, read_lines, read_table
from crosspair.corpora.video_files import video_stem
from crosspair.errors import ManifestError

logger = logging.getLogger(__name__)

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
    source: str | None = None  # of the recording, if several videos may be cut from one


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
        out: the manifest file, or a folder for ``manifest.parquet``.
        split: ``full``: the official 6,513 / 497 / 2,990 videos. ``1k-A``: the 1,000 videos of ``test_pairs``, with
            the one caption listed there, are split test, all others (9,000) train; ``1k-A-7k``: only those of the
            official train and validation splits (7,010) are train.
        test_pairs: ``MSRVTT_JSFUSION_test.csv``, for ``1k-A`` and ``1k-A-7k``.
        **options: see `crosspair.corpora.build.CorpusOptions`. Clips of one web video are held out together.
    """
    if (test_pairs is None) != (split == "full"):
        raise ManifestError(
            f"split {split} {'requires' if test_pairs is None else 'has no'} test pairs; "
            "pass MSRVTT_JSFUSION_test.csv for 1k-A and 1k-A-7k only"
        )
    captions: dict[str, list[Any]] = defaultdict(list)
    videos = []
    for file in files:
        content, where = read_json_object(file, "annotations"), f"annotations {file}"
        for _, sentence in _entries(content.get("sentences"), f"{where}, sentences", video_id=str, caption=str):
            captions[sentence["video_id"]].append(sentence["caption"])
        for place, video in _entries(content.get("videos"), f"{where}, videos", video_id=str, split=str):
            name, number = video["video_id"], video.get("category")
            label = MSRVTT_CATEGORIES[number] if isinstance(number, int) and 0 <= number < 20 else None
            official = parse_split(video["split"], place)
            videos.append(CaptionedVideo(name, place, official, captions[name], label, video.get("url")))
    if test_pairs is not None:
        lines = read_table(test_pairs, "test pairs").rows("video_id", "sentence")
        tests = index_by_key(lines, lines["video_id"])
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
        out: the manifest file, or a folder for ``manifest.parquet``.
        lists: the folder of ``train_list.txt``, ``val_list.txt`` and ``test_list.txt``.
        **options: see `crosspair.corpora.build.CorpusOptions`. Clips of one web video are held out together.
    """
    captions_of: dict[str, list[Any]] = defaultdict(list)
    invalid = []
    for where, line in read_lines(captions, "captions").items():
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
        for where, line in read_lines(lists / f"{split}_list.txt", "split list").items()
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
        out: the manifest file, or a folder for ``manifest.parquet``.
        language: of the captions, English or Chinese.
        **options: see `crosspair.corpora.build.CorpusOptions`.
    """
    key, videos = f"{language}Cap", []
    for file in files:
        splits = [name for name in _VATEX_SPLITS if name in file.name.lower()]
        if len(splits) != 1:
            raise ManifestError(f"annotations {file}: the name must contain one of {', '.join(_VATEX_SPLITS)}")
        where = f"annotations {file}"
        for place, video in _entries(read_json(file, "annotations"), where, videoID=str, **{key: list}):
            videos.append(CaptionedVideo(video["videoID"], place, parse_split(splits[0], place), video[key]))
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
    return build_manifests(
        folder, lists, {"titles": None, **options},
        what="listed videos", needs_title=True, group=lambda row: sources[row["pair_id"]],
    )[0]  # fmt: skip
