"""All video containers are opened; playlists, which would open other files, are not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from crosspair.corpora.video_files import SUFFIXES, VideoFiles
from crosspair.errors import InvalidVideoError, VideoStatus
from crosspair.video.decode import probe
from tests import conftest

CODECS = {
    ".webm": "libvpx-vp9", ".ogv": "libvpx", ".flv": "libx264", ".f4v": "libx264", ".dv": "dvvideo", ".gif": "gif",
    ".m1v": "mpeg1video", ".m2v": "mpeg2video", ".mxf": "mpeg2video", ".rm": "rv10", ".rmvb": "rv10",
}  # fmt: skip
FORMATS = {
    ".ogv": "ogg", ".rmvb": "rm", ".3gpp": "3gp", ".divx": "avi", ".qt": "mov", ".m1v": "mpeg1video",
    ".m2v": "mpeg2video", **dict.fromkeys((".m2ts", ".mts", ".m2t", ".tod", ".tp", ".trp"), "mpegts"),
    **dict.fromkeys((".vob", ".mod", ".m2p", ".mpe"), "mpeg"),
}  # fmt: skip
PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nother.ts\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile 'other.ts'\nduration 2\n",
    "dash": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" mediaPresentationDuration="PT2S">'
    '<Period><AdaptationSet mimeType="video/mp4"><Representation id="0" bandwidth="1">'
    "<BaseURL>other.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    made = tmp_path_factory.mktemp("formats")
    for suffix in (".ts", ".mp4"):
        make_video(made / f"other{suffix}", codec="mpeg4", options={})
    return made


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_known_suffix_can_be_probed(tmp_path: Path, make_video, monkeypatch, suffix: str) -> None:
    for codec in CODECS.values():
        monkeypatch.setitem(conftest.OPTIONS, codec, conftest.OPTIONS.get(codec, {}))
    path, settings = tmp_path / f"a{suffix}", {"size": (720, 576), "fps": 25} if suffix == ".dv" else {"fps": 25}
    if suffix == ".gif":
        images = [Image.fromarray(conftest.barcode(index, 128, 64)) for index in range(60)]
        images[0].save(path, save_all=True, append_images=images[1:], duration=40)
    else:
        make_video(path, codec=CODECS.get(suffix, "mpeg4"), container_format=FORMATS.get(suffix), **settings)
    info = probe(str(path))
    assert info.height == settings.get("size", (128, 64))[1]
    assert info.fps == pytest.approx(25, abs=0.1)
    assert VideoFiles(tmp_path).paths == [path.name]


@pytest.mark.parametrize("suffix", [".m3u8", ".mpd", ".ffconcat", ".mp4", ".ts"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlists_are_rejected(folder: Path, kind: str, suffix: str) -> None:
    path = folder / f"{kind}{suffix}"
    path.write_text(PLAYLISTS[kind])
    with pytest.raises(InvalidVideoError, match=re.escape(path.name)) as caught:
        probe(str(path))
    assert caught.value.kind is VideoStatus.NOT_A_VIDEO


def test_a_number_pattern_in_a_name_is_literal(folder: Path) -> None:
    path = folder / "a%01d.jpg"
    for name in (path.name, "a1.jpg", "a2.jpg"):
        (folder / name).write_bytes(b"\xff\xd8\xff")
    with pytest.raises(InvalidVideoError, match=re.escape(path.name)) as caught:
        probe(str(path))
    assert caught.value.kind is VideoStatus.NOT_A_VIDEO
