"""Videos that are read from elsewhere: only the ranges that are needed, one line for a fault."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from crosspair.config import Clip
from crosspair.corpora.check import check, probe_videos
from crosspair.corpora.manifest import manifest_from_rows
from crosspair.errors import InvalidVideoError, VideoStatus
from crosspair.video import remote
from crosspair.video.decode import probe, read_frames
from crosspair.video.remote import BLOCK

pytest.importorskip("aiohttp", reason="reading from the web needs the extra 'remote'")


class Server:
    """A web server on this machine that counts what it sends.

    Attributes:
        sent: bytes of content so far.
        mode: "ranges"; "whole" sends whole files and says so; "deaf" sends whole files whatever it
            said; "failing" breaks down after the first bytes; "stalling" answers nothing for missing
            files and half an answer for others; or a status, as "403".
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.sent, self.mode = folder, 0, "ranges"
        self._server = _QuietServer(("127.0.0.1", 0), partial(_Handler, self))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{name}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that hangs up is nothing to tell of."""


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, served: Server, *arguments: Any) -> None:
        self.served = served
        super().__init__(*arguments, directory=str(served.folder))

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def _answer(self, head: bool = False) -> None:
        path, mode = self.served.folder / self.path.lstrip("/"), self.served.mode
        if mode == "stalling" and not path.is_file():
            time.sleep(1.5)
        if mode == "302":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.end_headers()
            return
        if mode.isdigit() or not path.is_file():
            self.send_error(int(mode) if mode.isdigit() else 404)
            return
        content = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and mode in ("ranges", "failing", "stalling"):
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            if mode == "failing" and first > 0:
                self.send_error(500)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "none" if mode == "whole" else "bytes")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not head:
            self.served.sent += len(content)
            self.wfile.write(content[: len(content) // 2] if mode == "stalling" else content)
            if mode == "stalling":
                self.wfile.flush()
                time.sleep(1.5)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def long_videos(tmp_path_factory: pytest.TempPathFactory, make_video: Any) -> dict[str, Path]:
    """Nearly half a minute with noise, so that there are bytes to be spared."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 256, 3), np.uint8)

    def content(index: int, width: int, height: int) -> np.ndarray:
        pixels = make_video.barcode(index % 256, width, height).copy()
        pixels[:64] = np.roll(noise, 7 * index, axis=1)
        return pixels

    folder = tmp_path_factory.mktemp("long")
    make = partial(make_video, frames=800, size=(256, 128), gop=15, content=content)
    made = {name: make(folder / name) for name in ("end.mp4", "a.mkv")}
    made["a.avi"] = make(folder / "a.avi", options={"b": "3M"})
    front = folder / "front.mp4"
    with av.open(str(made["end.mp4"])) as source, av.open(str(front), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    assert b"moov" in front.read_bytes()[:100]
    assert b"moov" not in made["end.mp4"].read_bytes()[:100]
    return {**made, "front.mp4": front}


def frames(path: Path | str) -> np.ndarray:
    """A clip of a second, from the middle."""
    instants = np.arange(8) * 4 / 30
    return read_frames(Clip(str(path), 13.0, 14.0), lambda _: instants, lambda w, h: (w, h))


@pytest.mark.parametrize("name", ["end.mp4", "front.mp4", "a.mkv", "a.avi"])
def test_a_clip_is_read_in_the_ranges_that_it_needs(server: Server, long_videos: dict[str, Path], name: str) -> None:
    (server.folder / name).write_bytes(long_videos[name].read_bytes())
    size = long_videos[name].stat().st_size
    assert size > 8 * BLOCK
    found = frames(server.url(name))
    np.testing.assert_array_equal(found, frames(long_videos[name]))
    assert 0 < server.sent < size / 3
    before = server.sent
    assert probe(server.url(name)) == probe(str(long_videos[name]))
    assert server.sent - before < size / 4


def test_a_video_in_an_archive(tmp_path: Path, long_videos: dict[str, Path]) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(long_videos["end.mp4"], "clip.mp4")
    url = f"zip://clip.mp4::{tmp_path}/a.zip"
    np.testing.assert_array_equal(frames(url), frames(long_videos["end.mp4"]))


def test_a_video_in_an_archive_on_the_web(server: Server, long_videos: dict[str, Path]) -> None:
    with zipfile.ZipFile(server.folder / "a.zip", "w") as archive:
        for name, path in long_videos.items():
            archive.write(path, name)
    url = f"zip://front.mp4::{server.url('a.zip')}"
    np.testing.assert_array_equal(frames(url), frames(long_videos["front.mp4"]))


def fault(url: str, read: Callable[[str], Any] = probe) -> VideoStatus:
    with pytest.raises(InvalidVideoError) as caught:
        read(url)
    assert str(caught.value).startswith(f"{url}: ")
    assert "\n" not in str(caught.value)
    return caught.value.kind


def test_missing_files(server: Server, tmp_path: Path) -> None:
    assert fault(server.url("none.mp4")) is VideoStatus.MISSING
    assert fault(f"zip://a.mp4::{server.url('none.zip')}") is VideoStatus.MISSING
    assert fault("memory://none.mp4") is VideoStatus.MISSING
    (tmp_path / "a.zip").write_text("no archive")
    assert fault(f"zip://a.mp4::{tmp_path}/a.zip") is VideoStatus.UNREADABLE
    for url in ("nowhere://a.mp4", "zip://a.mp4::nowhere://b.zip"):
        assert fault(url) is VideoStatus.UNREADABLE


def test_a_server_that_does_not_answer() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert fault(f"http://127.0.0.1:{port}/a.mp4") is VideoStatus.UNREADABLE


@pytest.mark.parametrize("name", ["none.mp4", "front.mp4"])
def test_a_server_that_stalls(
    server: Server, long_videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(remote, "READ_TIMEOUT", 0.5)
    (server.folder / "front.mp4").write_bytes(long_videos["front.mp4"].read_bytes())
    server.mode = "stalling"
    begun = time.monotonic()
    assert fault(server.url(name), frames) is VideoStatus.UNREADABLE
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("mode", ["whole", "deaf", "302", "403", "500"])
def test_a_server_that_refuses_redirects_to_itself_or_has_no_ranges(server: Server, long_videos, mode: str) -> None:
    (server.folder / "a.mp4").write_bytes(long_videos["end.mp4"].read_bytes())
    server.mode = mode
    assert fault(server.url("a.mp4")) is VideoStatus.UNREADABLE


@pytest.mark.parametrize("name", ["end.mp4", "front.mp4", "a.mkv", "a.avi"])
def test_a_server_that_breaks_down_is_not_the_videos_fault(server: Server, long_videos, name: str) -> None:
    (server.folder / name).write_bytes(long_videos[name].read_bytes())
    server.mode = "failing"
    assert fault(server.url(name), frames) is VideoStatus.UNREADABLE


def test_a_server_that_breaks_down_while_a_file_is_looked_at(server: Server) -> None:
    descriptions = box(b"stsd", bytes(8))  # of no stream, at which FFmpeg gives up
    head = box(b"ftyp", b"isom") + box(b"moov", box(b"trak", descriptions))
    whole = head + box(b"mdat", bytes(2 * BLOCK)) + box(b"free", b"")
    (server.folder / "a.mp4").write_bytes(whole)
    assert fault(server.url("a.mp4")) is VideoStatus.DAMAGED_HEADER
    server.mode = "failing"
    assert fault(server.url("a.mp4")) is VideoStatus.UNREADABLE


def box(name: bytes, content: bytes) -> bytes:
    """Of an mp4."""
    return (8 + len(content)).to_bytes(4, "big") + name + content


def test_remote_videos_are_probed_and_checked(server: Server, tmp_path: Path, make_video) -> None:
    video = make_video(server.folder / "a.mp4", frames=60)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(video, "b.mp4")
    (server.folder / "page.mp4").write_text("<html>")
    (server.folder / "cut.mp4").write_bytes(video.read_bytes()[:3000])
    names = ["a.mp4", "none.mp4", "page.mp4", "cut.mp4"]
    urls = [*map(server.url, names), f"zip://b.mp4::{tmp_path}/b.zip"]
    found = probe_videos(urls)
    (expected,) = probe_videos([str(video)])
    assert found[0] == found[4] == expected
    rows = [{"pair_id": url, "path": url, "title": "t"} for url in urls]
    checked = check(manifest_from_rows(rows, tmp_path / "m.parquet"), decode=True)
    assert [verdict.kind for verdict in checked.results] == [
        VideoStatus.FINE, VideoStatus.MISSING, VideoStatus.NOT_A_VIDEO, VideoStatus.CUT,
        VideoStatus.FINE,
    ]  # fmt: skip
    assert checked.manifest.column("path") == urls
    assert [error and error.split(": ")[0] for error in checked.manifest.column("error")] == [
        None, *urls[1:4], None
    ]  # fmt: skip


@pytest.mark.parametrize("protocol", ["simplecache", "filecache"])
def test_copies_of_caches_are_removed(tmp_path: Path, make_video: Callable[..., Path], protocol: str) -> None:
    make_video(tmp_path / "a.mp4", frames=10)
    temporary = Path(tempfile.mkdtemp())  # short, since sockets are made in it
    # In this process, and in workers.
    script = (
        "import sys; from crosspair.corpora.check import probe_videos; from crosspair.video.decode import probe\n"
        "print(probe(sys.argv[1]).frames, probe_videos([sys.argv[1]])[0]['frames'])\n"
    )
    command = [sys.executable, "-c", script, f"{protocol}::file://{tmp_path}/a.mp4"]
    done = subprocess.run(command, env={**os.environ, "TMPDIR": str(temporary)}, capture_output=True, text=True)
    assert done.stdout.split() == ["10", "10"], done.stderr
    deadline = time.monotonic() + 20  # the server of the workers ends after this process
    while any(temporary.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    temporary.rmdir()  # empty
