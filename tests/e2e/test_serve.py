"""``crosspair serve``: search, playing, uploads, and protection against attacks."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("lancedb", reason="lancedb is not installed")

from crosspair.cli import main
from crosspair.corpora import manifest_from_rows
from crosspair.errors import CrosspairError
from crosspair.library import remove_videos
from crosspair.serve import app
from tests.e2e.served import EVIL, EVIL_TITLE, Served, make_library, serving


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    make_library(folder, make_video)
    with serving(folder) as server:
        yield server


def keys(moments: list[dict[str, Any]]) -> dict[str, str]:
    """Map names of videos to keys of moments."""
    return {Path(moment["path"]).name: moment["key"] for moment in moments}


def test_moments_are_found_and_filtered(served) -> None:
    everywhere, day = served.search("a dog"), served.search("a dog", folder="day")
    assert {"2.mp4", "6.mp4", "3.avi"} < set(keys(everywhere))
    assert {moment["path"] for moment in day} == {"day/2.mp4", "day/6.mp4"}
    scores = [moment["score"] for moment in everywhere]
    assert scores == sorted(scores, reverse=True)
    assert served.search("a dog", limit=2) == everywhere[:2]
    (evil,) = (moment for moment in everywhere if EVIL in moment["path"])
    assert (evil["title"], evil["path"]) == (EVIL_TITLE, f"night/{EVIL}.mp4")
    assert served.get("/api/v1/search", text="a dog").headers["content-type"] == "application/json"
    assert str(served.folder) not in str(everywhere)
    assert served.get("/api/v1/folders").json() == ["day", "night"]
    library = served.get("/api/v1/library").json()
    assert (library["name"], library["videos"], library["max_upload"]) == ("library", 4, 10**6)
    assert served.get("/healthz").status_code == 200


def test_invalid_queries(served) -> None:
    for params, word in (
        ({"text": "zzz"}, "zzz"), ({"text": " "}, ""), ({"text": "a" * 1001}, "text"), ({}, "text"),
        ({"text": "a dog", "limit": 0}, "limit"), ({"text": "a dog", "limit": 101}, "limit"),
        *(({"text": "a dog", "folder": folder}, "folder")
          for folder in ("../..", "/", "day/../..", "day/", "' OR 1=1 --")),
    ):  # fmt: skip
        response = served.get("/api/v1/search", **params)
        assert response.status_code == 422
        assert word in str(response.json()["detail"])


def test_byte_ranges_of_a_file(served) -> None:
    key = keys(served.search("a dog"))["6.mp4"]
    content = (served.folder / "videos" / "day" / "6.mp4").read_bytes()
    address = f"/api/v1/moments/{key}"
    part = served.get(address, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, content[100:200])
    assert part.headers["content-type"] == "video/mp4"
    assert part.headers["cache-control"] == "private, no-cache"
    assert served.get(address).content == content
    thumbnail = served.get(f"{address}/thumbnail")
    assert thumbnail.headers["content-type"] == "image/jpeg"
    assert thumbnail.content.startswith(b"\xff\xd8")


def test_other_formats_are_converted(served) -> None:
    address = f"/api/v1/moments/{keys(served.search('a dog'))['3.avi']}"
    assert served.get(address).status_code == 415
    first, second = (served.get(address, converted=True) for _ in range(2))
    assert first.content[4:8] == b"ftyp"
    assert first.content == second.content


def test_paths_outside_the_library(served) -> None:
    secret = served.folder / "titles.tsv"
    quoted = quote(str(secret), safe="")
    place = urlsplit(served.url)
    for path in (
        f"/{secret}", f"//{secret}", f"/{quoted}", f"/..%2f..%2f{quoted}",
        f"/../../../../../../../../{secret}", f"/%2e%2e/%2e%2e/%2e%2e/%2e%2e/{secret}",
        f"/api/v1/moments/{secret}", f"/api/v1/moments/{quoted}", "/api/v1/moments/..%2f..%2fvideo",
        f"/api/v1/moments/../../../../../../../../{secret}", f"/api/v1/moments/%2e%2e/{secret}",
        "/api/v1/moments/0123456789abcdef0123456789abcdef", f"/api/v1/moments/{quoted}/thumbnail",
        "/app.py", "/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "/docs.html", "/redoc",
    ):  # fmt: skip
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
        connection.request("GET", path)  # other clients normalise the path
        answer = connection.getresponse()
        assert answer.status == 404, path
        content = answer.read()
        assert b"video_id" not in content
        assert b"import" not in content


def connect(served: Served, head: str) -> socket.socket:
    """Send the head of a POST request, without ``Host``, and return the connection."""
    place = urlsplit(served.url)
    connection = socket.create_connection((place.hostname, place.port), timeout=60)
    connection.sendall(f"{head}\r\nHost: {place.netloc}\r\n\r\n".encode())
    return connection


@pytest.mark.parametrize("path", ["search", "classify"])
def test_large_upload_is_rejected_before_it_is_sent(served, path) -> None:
    form = "Content-Type: multipart/form-data; boundary=x"
    with connect(served, f"POST /api/v1/{path} HTTP/1.1\r\nContent-Length: {5 * 2**30}\r\n{form}") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
        with pytest.raises(ConnectionError):  # the connection is closed
            connection.sendall(bytes(2**30))
    assert served.uploads() == []


def test_chunked_upload_is_stopped_at_the_limit(served, tmp_path) -> None:
    form = "Content-Type: multipart/form-data; boundary=x"
    start = b'--x\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n'
    chunk = b"10000\r\n" + bytes(2**16) + b"\r\n"
    with connect(served, f"POST /api/v1/search HTTP/1.1\r\nTransfer-Encoding: chunked\r\n{form}") as connection:
        connection.sendall(f"{len(start):x}\r\n".encode() + start + b"\r\n")
        with pytest.raises(ConnectionError):
            connection.sendall(chunk * 1000)
    (tmp_path / "a.mp4").write_bytes(b"x" * 1_200_000)
    assert served.post("search", tmp_path / "a.mp4").status_code == 413
    assert served.uploads() == []


def test_invalid_uploads(served, tmp_path) -> None:
    secret = served.folder / "videos" / "day" / "2.mp4"
    manifest_from_rows([{"pair_id": "a", "path": str(secret), "title": "a dog"}], tmp_path).write(
        tmp_path / "a.parquet"
    )
    for name, content in (
        ("a.parquet", (tmp_path / "a.parquet").read_bytes()),
        ("a.mp4", b"no video"), ("a.txt", b"no video"), ("empty.mp4", b""),
        ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"),
        ("join.mp4", b"ffconcat version 1.0\nfile '/etc/passwd'\n"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        response = served.post("classify", tmp_path / name, classes="dog, cat")
        detail = response.json()["detail"]
        assert response.status_code == 422
        assert f"{name}: " in detail
        assert str(served.scratch) not in detail
        assert "passwd" not in detail
        assert served.uploads() == []
    for value in (str(secret), f"{served.url}/a.mp4"):  # a path or a URL is not an upload
        response = httpx2.post(f"{served.url}/api/v1/search", data={"video": value})
        assert response.status_code == 422
        assert response.json()["detail"].startswith("video: ")


def test_uploads_with_a_damaged_length(served, tmp_path, make_video) -> None:
    content = make_video(tmp_path / "a.mkv", frames=30, fps=10).read_bytes()
    (tag,) = set(re.findall(rb"\d\d:\d\d:\d\d\.\d{9}", content))
    for length in (b"00:00:00.000000001", b"00:00:inf", b"00:00:nan"):
        (tmp_path / "b.mkv").write_bytes(content.replace(tag, length.ljust(len(tag), b"\0")))
        assert served.post("search", tmp_path / "b.mkv").status_code == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_remove_temporary_files(served, tmp_path, number) -> None:
    shutil.copytree(served.folder / "library", tmp_path / "library")
    with serving(tmp_path) as server:
        server.post("search", served.folder / "videos" / "day" / "2.mp4")
        if number == signal.SIGINT:  # also report errors of the library
            key = server.search("a dog")[0]["key"]
            (tmp_path / "library").rename(tmp_path / "moved")
            moment = f"moments/{key}"
            for path in ("search?text=a+dog", "library", moment, f"{moment}/thumbnail", f"{moment}?converted=true"):
                response = httpx2.get(f"{server.url}/api/v1/{path}")
                assert response.status_code == 503, path
                assert not re.search("/|lance", response.json()["detail"])
        server.process.send_signal(number)
        assert server.process.wait(timeout=60) in (0, 130)
        assert list(server.scratch.glob("tmp*")) == []
        assert "Traceback" not in (tmp_path / "log").read_text()


def test_upload_is_classified_searched_and_removed(served) -> None:
    video = served.folder / "videos" / "day" / "6.mp4"
    answer = served.post("classify", video, classes="dog, cat, dog").json()
    assert set(answer["classes"]) == {"dog", "cat"}
    assert sum(answer["classes"].values()) == pytest.approx(1)
    assert answer["length"] == pytest.approx(6)
    assert answer["timeline"][0]["label"] == next(iter(answer["classes"]))
    for classes, word in ((" , ", ""), ("dog, zzz", "zzz")):
        response = served.post("classify", video, classes=classes)
        assert response.status_code == 422
        assert word in response.json()["detail"]
    moments = served.post("search?folder=day&limit=1", video).json()
    assert len(moments) == 1
    assert moments[0]["path"] in ("day/2.mp4", "day/6.mp4")
    assert served.uploads() == []


def test_concurrent_searches(served) -> None:
    expected = served.search("a dog")
    with ThreadPoolExecutor(50) as pool:
        assert all(answer == expected for answer in pool.map(lambda _: served.search("a dog"), range(50)))


def test_removed_video_and_address_in_use(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    make_library(tmp_path, make_video)
    with serving(tmp_path) as server:
        address = f"/api/v1/moments/{keys(server.search('a dog'))['2.mp4']}"
        assert server.get(address).status_code == 200
        remove_videos(tmp_path / "library", [tmp_path / "videos" / "day" / "2.mp4"])
        for path in (address, f"{address}?converted=true", f"{address}/thumbnail"):
            assert server.get(path).status_code == 404
        port = urlsplit(server.url).port
        for host, number, word in (
            ("127.0.0.1", port, str(port)), ("no.such.host.invalid", 0, "invalid"), ("127.0.0.1", 99999, "99999"),
        ):  # fmt: skip
            with pytest.raises(CrosspairError, match=word):
                app._listen(host, number)
    assert server.process.returncode in (0, 130)
    assert list(server.scratch.iterdir()) == []


def test_public_host_is_logged(served, monkeypatch, caplog) -> None:
    options = {}
    monkeypatch.setattr("crosspair.serve.app.serve", lambda *_, **choices: options.update(choices))
    library = str(served.folder / "library")
    main(["serve", "--library", library, "--host", "0.0.0.0", "--allowed-host", "videos.example", "videos"])
    assert "0.0.0.0" in caplog.text
    assert (options["host"], options["allowed_hosts"]) == ("0.0.0.0", ["videos.example", "videos"])
    caplog.clear()
    main(["serve", "--library", library])
    assert caplog.text == ""
