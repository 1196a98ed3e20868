"""Tiny files under the names that the docs use: videos, lists, titles, a model, its results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from crosspair.cli import main

TITLES = ("a tennis swing playing the cello", "surfing and push ups at home")
LABELS = ("tennis swing", "push ups")
VIDEOS = 36
TINY = [
    "clip.size=32", "clip.frames=4", "video.depth=10", "video.width=4", "training.batch_size=4",
    "training.epochs=1", "training.workers=0",
]  # fmt: skip
TINY_PAIRS = [*TINY, "head.embedding=8", "head.hidden=8", "objective.noise_samples=8"]
KINETICS = "label,youtube_id,time_start,time_end,split"


def make_world(root: Path, make_video: Callable[..., Path]) -> None:
    """Fill the empty folder ``root``, which must be the current directory."""
    sources = [make_video(root / f"{name}.mp4", frames=24) for name in ("holiday", "match")]
    for name in ("a", "more", "example"):
        shutil.copy(sources[0], root / f"{name}.mp4")
    Image.new("RGB", (64, 48), "green").save("court.jpg")
    _own(root, sources)
    _web(root, sources)
    _ucf101(root, sources, "UCF-101", "ucfTrainTestlist")
    _ucf101(root, sources, "ucf10/videos", "ucf10/splits")
    _hmdb51(root, sources)
    _captioned(root, sources)
    _words(root / "words-300d.bin")
    shutil.copy(_plans() / "table-1a.yaml", root / "my-plan.yaml")
    for out in ("pairs.parquet", "prepared"):
        _run(f"corpus folder videos --titles titles.tsv --out {out}")
    shutil.copy("pairs.parquet", "k210k.parquet")
    _run("pretrain --recipe laptop --manifest prepared --run runs/mine", *TINY_PAIRS)
    _run("evaluate --protocols knn --model runs/mine/model --manifest prepared --out results.json",
         "--clips", "1", "knn.k=3", "--workers", "0")  # fmt: skip
    shutil.copytree("runs/mine", "run")
    for name in ("tuned", "scratch"):
        Path("runs", name).mkdir()
        shutil.copy("results.json", f"runs/{name}/results.json")


def _run(command: str, *more: str) -> None:
    main([*command.split(), *more])


def _own(root: Path, sources: list[Path]) -> None:
    (root / "videos/concerts").mkdir(parents=True)
    lines = ["video_id\ttitle\tlabel\tsplit"]
    for row in range(VIDEOS):
        shutil.copy(sources[row % 2], root / f"videos/own{row}.mp4")
        split = "test" if row < 4 else "val" if row < 8 else "train"
        lines.append(f"own{row}\t{TITLES[row % 2]}\t{LABELS[row % 2]}\t{split}")
    shutil.copy(sources[0], root / "videos/concerts/concert.mp4")
    (root / "titles.tsv").write_text("\n".join(lines) + "\n")
    (root / "titles.csv").write_text("\n".join(lines).replace("\t", ",") + "\n")


def _web(root: Path, sources: list[Path]) -> None:
    """Kinetics and Instagram, among the other videos."""
    rows, titles, captions = {"train": [], "val": []}, [], {}
    for row in range(8):
        name, split = f"kinetics{row:03d}", "val" if row < 2 else "train"
        shutil.copy(sources[row % 2], root / f"videos/{name}_000000_000010.mp4")
        rows[split].append(f"{LABELS[row % 2]},{name},0,10,{split}")
        titles.append(f"{name}\t{TITLES[row % 2]}\t{TITLES[row % 2]}!!!")
        shutil.copy(sources[row % 2], root / f"videos/trimmed_resize_web{row}.mp4")
        captions[f"web{row}"] = {"subset": "train", "caption": TITLES[row % 2]}
    for split, lines in rows.items():
        (root / f"{split}.csv").write_text("\n".join([KINETICS, *lines]) + "\n")
    (root / "kinetics_titles.tsv").write_text("\n".join(titles) + "\n")
    (root / "captions.json").write_text(json.dumps(captions))


def _ucf101(root: Path, sources: list[Path], videos: str, lists: str) -> None:
    classes = ("PushUps", "TennisSwing")
    (root / lists).mkdir(parents=True)
    members = []
    for number, name in enumerate(classes):
        (root / videos / name).mkdir(parents=True)
        for group in range(1, 9):
            clip = f"{name}/v_{name}_g{group:02d}_c01"
            shutil.copy(sources[number], root / videos / f"{clip}.mp4")
            members.append((clip, number + 1, group))
    (root / lists / "classInd.txt").write_text("1 PushUps\n2 TennisSwing\n")
    for split in (1, 2, 3):
        train = [f"{clip}.avi {number}\n" for clip, number, group in members if group != split]
        test = [f"{clip}.avi\n" for clip, _, group in members if group == split]
        (root / lists / f"trainlist0{split}.txt").write_text("".join(train))
        (root / lists / f"testlist0{split}.txt").write_text("".join(test))
    if lists.startswith("ucf10/"):
        titles = [f"{Path(clip).name}\t{TITLES[2 - number]}\n" for clip, number, _ in members]
        (root / "ucf10/titles.tsv").write_text("video_id\ttitle\n" + "".join(titles))


def _hmdb51(root: Path, sources: list[Path]) -> None:
    (root / "testTrainMulti_7030_splits").mkdir()
    for label in ("clap", "wave"):
        names = [f"film{i}_{label}_f_nm_np1_fr_bad_{i}" for i in range(6)]
        for name in names:
            (root / "hmdb51_org" / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(sources[0], root / "hmdb51_org" / label / f"{name}.mp4")
        for split in (1, 2, 3):
            uses = [2 if i == split else 1 for i in range(6)]
            lines = [f"{name}.avi {use} \n" for name, use in zip(names, uses, strict=True)]
            file = root / "testTrainMulti_7030_splits" / f"{label}_test_split{split}.txt"
            file.write_text("".join(lines))


def _captioned(root: Path, sources: list[Path]) -> None:
    """MSR-VTT, MSVD and VATEX."""
    for folder in ("MSRVTT", "YouTubeClips", "VATEX", "msvd_lists"):
        (root / folder).mkdir()
    videos = [{"video_id": f"video{i}", "category": i, "split": "test" if i > 7 else "train"} for i in range(10)]
    for video in videos:
        shutil.copy(sources[0], root / f"MSRVTT/{video['video_id']}.mp4")
    for file, part in {"train_val": videos[:8], "test": videos[8:]}.items():
        sentences = [{"video_id": video["video_id"], "caption": title} for video in part for title in TITLES]
        (root / f"{file}_videodatainfo.json").write_text(json.dumps({"videos": part, "sentences": sentences}))
    (root / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\nret0,msr9,video9,a person swims\n")
    shutil.copy(sources[0], root / "YouTubeClips/abcdefghijk_1_5.avi")
    (root / "AllVideoDescriptions.txt").write_text("".join(f"abcdefghijk_1_5 {title}\n" for title in TITLES))
    for split in ("train", "val", "test"):
        (root / f"msvd_lists/{split}_list.txt").write_text("abcdefghijk_1_5\n" if split == "test" else "")
    for split in ("training", "validation"):
        shutil.copy(sources[0], root / f"VATEX/{split}00_000000_000010.mp4")
        entry = {"videoID": f"{split}00_000000_000010", "enCap": TITLES, "chCap": TITLES}
        (root / f"vatex_{split}_v1.0.json").write_text(json.dumps([entry]))


def _words(file: Path) -> None:
    """Word vectors in word2vec's binary format."""
    words = sorted({word for title in TITLES for word in title.split()})
    vectors = np.random.default_rng(0).normal(size=(len(words), 300)).astype(np.float32)
    rows = [f"{w} ".encode() + v.tobytes() + b"\n" for w, v in zip(words, vectors, strict=True)]
    file.write_bytes(f"{len(words)} 300\n".encode() + b"".join(rows))


def _plans() -> Path:
    return Path(__file__).parents[2] / "src/crosspair/ablation/plans"
