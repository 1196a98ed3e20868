"""Damaged files of every sort: a check tells what each is, and comes to its end.

``CROSSPAIR_DAMAGED=1000`` makes so many of them instead of a few.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from crosspair.corpora.check import check
from crosspair.corpora.manifest import manifest_from_rows
from crosspair.errors import VideoStatus
from tests.corpora.damage import Damaged, damaged_files

COUNT = int(os.environ.get("CROSSPAIR_DAMAGED", "120"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> list[Path]:
    folder = tmp_path_factory.mktemp("sound")
    suffixes = (".mp4", ".mkv", ".webm", ".avi")
    return [make_video(folder / f"{i}{s}", frames=90 + 20 * i) for i, s in enumerate(suffixes)]


def every_file_is_told(sources: Sequence[Path], make_audio: Callable[[Path], Path], folder: Path, seed: int) -> None:
    audio = make_audio(folder / "audio.mp4")
    damaged = damaged_files(sources, audio, folder, COUNT // 2, seed)
    rows = [{"pair_id": each.path.name, "path": each.path.name, "title": "t"} for each in damaged]
    manifest = manifest_from_rows(rows, folder / "manifest.parquet")
    checked = check(manifest, decode=True, seconds=60)
    for each, verdict, error in zip(damaged, checked.results, checked.manifest.column("error"), strict=True):
        assert verdict.kind in each.kinds, (each, verdict)
        assert (error is not None) == verdict.kind.broken
        assert verdict.kind is VideoStatus.FINE or (verdict.reason and "\n" not in verdict.reason)
    _most_damage_is_found(damaged, [verdict.kind for verdict in checked.results])


def _most_damage_is_found(damaged: Sequence[Damaged], kinds: Sequence[VideoStatus]) -> None:
    """A changed byte may change nothing that is seen, but most changes are."""
    worn = [
        kind for each, kind in zip(damaged, kinds, strict=True) if each.damage.startswith(("cut", "flipped", "zeroed"))
    ]
    assert sum(kind is not VideoStatus.FINE for kind in worn) > 0.6 * len(worn)


def test_damaged_files_of_every_container(tmp_path: Path, made, make_audio) -> None:
    every_file_is_told(made, make_audio, tmp_path, seed=1)


def test_damaged_files_of_real_corpora(tmp_path: Path, shared_data: Path, make_audio) -> None:
    sources = [
        *sorted((shared_data / "originals").glob("*.avi"))[::4],
        *sorted((shared_data / "ucf10" / "videos").rglob("*.mp4"))[::200],
    ]
    every_file_is_told(sources, make_audio, tmp_path, seed=2)


def broken_at(path: Path, share: float) -> None:
    """Overwrite a tenth of a file, from a share of it on."""
    content = bytearray(path.read_bytes())
    begin, length = int(share * len(content)), len(content) // 10
    content[begin : begin + length] = b"\xa5" * length
    path.write_bytes(content)


def test_only_damaged_segments_are_broken(tmp_path: Path, make_video) -> None:
    path = make_video(tmp_path / "a.mkv", frames=600, gop=15)
    broken_at(path, 0.5)
    parts = [(0.0, 5.0), (17.0, 20.0), (5.0, 17.0), (None, None), (4.0, 12.0)]
    rows = [
        {"pair_id": str(i), "path": "a.mkv", "title": "t", "start": start, "end": end}
        for i, (start, end) in enumerate(parts)
    ]
    manifest = manifest_from_rows(rows, tmp_path / "m.parquet")
    assert not check(manifest).broken
    checked = check(manifest, decode=True)
    assert [verdict.kind.broken for verdict in checked.results] == [
        False, False, True, True, True
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi"])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_cut_file_is_called_cut(tmp_path: Path, make_video, suffix: str, share: float) -> None:
    path = make_video(tmp_path / f"a{suffix}", frames=250)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    manifest = manifest_from_rows([{"pair_id": "a", "path": path.name, "title": "t"}], tmp_path / "m")
    (verdict,) = check(manifest, tmp_path / "out", decode=True).results
    assert verdict.kind is VideoStatus.CUT
    assert "cut" in verdict.reason


def test_wrong_length_in_header(tmp_path: Path, make_video) -> None:
    path = make_video(tmp_path / "a.avi", frames=100)
    content = path.read_bytes()
    # The stream header's length in frames, and the number of frames of the whole file.
    claimed, real = (70).to_bytes(4, "little"), (100).to_bytes(4, "little")
    path.write_bytes(content[:160].replace(real, claimed) + content[160:])
    manifest = manifest_from_rows([{"pair_id": "a", "path": path.name, "title": "t"}], tmp_path / "m")
    by_header = check(manifest, tmp_path / "a.parquet")
    assert by_header.results[0].kind is VideoStatus.FINE
    checked = check(manifest, tmp_path / "b.parquet", decode=True)
    assert checked.results[0].kind is VideoStatus.FINE  # the length was measured
    assert checked.manifest.column("duration") == [pytest.approx(100 / 30)]
    assert checked.manifest.column("frames") == [100]
    assert checked.manifest.column("error") == [None]
