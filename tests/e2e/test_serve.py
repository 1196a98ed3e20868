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

import pytest
import torch

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("lancedb", reason="lancedb is not installed")

from crosspair.cli import main
from crosspair.corpora import manifest_from_rows
from crosspair.errors import ModelError
from crosspair.library import InferenceEngine, Library, Searcher, remove_videos
from crosspair.serve.service import LibraryService, Upload
from tests.e2e.served import EVIL, EVIL_TITLE, Served, make_library, serving
from tests.e2e.test_use_commands import refused
from tests.evaluation.conftest import tiny_model


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
    assert str(served.folder) not in str(everywhere)
    assert served.get("/api/v1/folders").json() == ["day", "night"]
    library = served.get("/api/v1/library").json()
    assert (library["name"], library["videos"], library["max_upload"]) == ("library", 4, 10**6)
    assert served.get("/healthz").status_code == 200


def test_titles_and_names_are_data(served) -> None:
    (moment,) = (each for each in served.search("a dog") if EVIL in each["path"])
    assert (moment["title"], moment["path"]) == (EVIL_TITLE, f"night/{EVIL}.mp4")
    assert served.get("/api/v1/search", text="a dog").headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"text": "zzz"}, "zzz"), ({"text": " "}, ""), ({"text": "a" * 1001}, "text"), ({}, "text"),
        ({"text": "a dog", "limit": 0}, "limit"), ({"text": "a dog", "limit": 101}, "limit"),
        *(({"text": "a dog", "folder": folder}, "folder")
          for folder in ("../..", "/", "day/../..", "day/", "' OR 1=1 --")),
    ],
)  # fmt: skip
def test_invalid_queries(served, params, word) -> None:
    response = served.get("/api/v1/search", **params)
    assert response.status_code == 422
    assert word in str(response.json()["detail"])


def test_model_without_text_tower(served, tmp_path) -> None:
    engine = InferenceEngine(tiny_model().eval(), torch.device("cpu"), workers=0)
    engine.model.untrained = ("text_encoder", "text_head")
    service = LibraryService(Searcher(Library(served.folder / "library"), engine), tmp_path)
    embedding = torch.nn.functional.normalize(torch.ones(1, engine.model.head.embedding)).numpy()
    upload = Upload(4.0, b"", [(0.0, 4.0)], embedding)
    for query in (lambda: service.search("a dog", 24), lambda: service.classify(upload, "dog, cat")):
        with pytest.raises(ModelError):
            query()
    assert len(service.search(upload, 24)) >= 4


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


@pytest.mark.parametrize(
    "path",
    [
        "/{secret}", "//{secret}", "/{quoted}", "/..%2f..%2f{quoted}",
        "/../../../../../../../../{secret}", "/%2e%2e/%2e%2e/%2e%2e/%2e%2e/{secret}",
        "/api/v1/moments/{secret}", "/api/v1/moments/{quoted}", "/api/v1/moments/..%2f..%2fvideo",
        "/api/v1/moments/../../../../../../../../{secret}", "/api/v1/moments/%2e%2e/{secret}",
        "/api/v1/moments/0123456789abcdef0123456789abcdef", "/api/v1/moments/{quoted}/thumbnail",
        "/app.py", "/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "/docs", "/redoc",
    ],
)  # fmt: skip
def test_paths_outside_the_library(served, path) -> None:
    secret = served.folder / "titles.tsv"
    target = path.format(secret=secret, quoted=quote(str(secret), safe=""))
    place = urlsplit(served.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    connection.request("GET", target)  # other clients normalise the path
    answer = connection.getresponse()
    assert answer.status == 404
    content = answer.read()
    assert b"video_id" not in content
    assert b"import" not in content


def test_large_upload_is_rejected_before_it_is_sent(served) -> None:
    place = urlsplit(served.url)
    for path in ("search", "classify"):
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
        connection.putrequest("POST", f"/api/v1/{path}")
        connection.putheader("Content-Type", "multipart/form-data; boundary=x")
        connection.putheader("Content-Length", str(5 * 2**30))
        connection.endheaders()
        assert connection.getresponse().status == 413
        connection.close()
    assert served.uploads() == []


def test_chunked_upload_is_stopped_at_the_limit(served) -> None:
    place = urlsplit(served.url)
    head = (
        f"POST /api/v1/search HTTP/1.1\r\nHost: {place.netloc}\r\nTransfer-Encoding: chunked\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    start = b'--x\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n'
    chunk = b"10000\r\n" + bytes(2**16) + b"\r\n"
    with socket.create_connection((place.hostname, place.port), timeout=60) as connection:
        connection.sendall(head.encode() + f"{len(start):x}\r\n".encode() + start + b"\r\n")
        with pytest.raises(ConnectionError):
            connection.sendall(chunk * 1000)
    assert served.uploads() == []


def test_connection_is_closed_after_a_rejection(served) -> None:
    place = urlsplit(served.url)
    length = 5 * 2**30
    head = f"POST /api/v1/search HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Length: {length}"
    with socket.create_connection((place.hostname, place.port), timeout=60) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode())
        with pytest.raises(ConnectionError):
            connection.sendall(bytes(length // 5))
    assert served.uploads() == []


def test_upload_slightly_above_the_limit(served, tmp_path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x" * 1_200_000)
    assert served.post("search", tmp_path / "a.mp4").status_code == 413
    assert served.uploads() == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.mp4", b"no video"),
        ("a.txt", b"no video"),
        ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"),
        ("join.mp4", b"ffconcat version 1.0\nfile '/etc/passwd'\n"),
        ("empty.mp4", b""),
    ],
)
def test_invalid_uploads(served, tmp_path, name, content) -> None:
    (tmp_path / name).write_bytes(content)
    response = served.post("classify", tmp_path / name, classes="dog, cat")
    detail = response.json()["detail"]
    assert response.status_code == 422
    assert f"{name}: " in detail
    assert str(served.scratch) not in detail
    assert "passwd" not in detail
    assert served.uploads() == []


@pytest.mark.parametrize(("length", "status"), [("00:00:00.000000001", 200), ("00:00:inf", 200), ("00:00:nan", 200)])
def test_uploads_with_a_damaged_length(served, tmp_path, make_video, length, status) -> None:
    content = make_video(tmp_path / "a.mkv", frames=30, fps=10).read_bytes()
    (tag,) = set(re.findall(rb"\d\d:\d\d:\d\d\.\d{9}", content))
    (tmp_path / "b.mkv").write_bytes(content.replace(tag, length.encode().ljust(len(tag), b"\0")))
    response = served.post("search", tmp_path / "b.mkv")
    assert response.status_code == status, response.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_remove_temporary_files(served, tmp_path, number) -> None:
    shutil.copytree(served.folder / "library", tmp_path / "library")
    with serving(tmp_path) as server:
        server.post("search", served.folder / "videos" / "day" / "2.mp4")
        server.process.send_signal(number)
        server.process.wait(timeout=60)
        assert list(server.scratch.glob("tmp*")) == []


def test_errors_of_the_server_are_reported(served, tmp_path) -> None:
    shutil.copytree(served.folder / "library", tmp_path / "library")
    with serving(tmp_path) as server:
        (tmp_path / "library").rename(tmp_path / "moved")
        for path in ("search", "library"):
            response = server.get(f"/api/v1/{path}", text="a dog")
            assert response.status_code in (500, 503)
            assert response.json()["detail"]


def test_uploaded_manifest_is_rejected(served, tmp_path) -> None:
    secret = served.folder / "videos" / "day" / "2.mp4"
    rows = [{"pair_id": "a", "path": str(secret), "title": "a dog"}]
    manifest_from_rows(rows, tmp_path).write(tmp_path / "a.parquet")
    for path in ("classify", "search"):
        response = served.post(path, tmp_path / "a.parquet", classes="dog")
        assert response.status_code == 422
        assert "a.parquet" in response.json()["detail"]
    assert served.uploads() == []


def test_a_path_or_url_is_not_an_upload(served) -> None:
    import httpx2

    for value in (str(served.folder / "videos" / "day" / "2.mp4"), f"{served.url}/a.mp4"):
        response = httpx2.post(f"{served.url}/api/v1/search", data={"video": value})
        assert response.status_code == 422
        assert response.json()["detail"].startswith("video: ")


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
        answers = list(pool.map(lambda _: served.search("a dog"), range(50)))
    assert all(answer == expected for answer in answers)


def test_other_host_names_are_rejected(served) -> None:
    port = urlsplit(served.url).port
    for host, status in (
        ("evil.example", 400), ("127.0.0.1.evil.example", 400), ("[", 400),
        (f"localhost:{port}", 200), ("127.0.0.1", 200), (f"[::1]:{port}", 200),
    ):  # fmt: skip
        assert served.get("/", headers={"Host": host}).status_code == status


def test_removed_video_and_port_in_use(tmp_path: Path, make_video: Callable[..., Path], capsys) -> None:
    make_library(tmp_path, make_video)
    with serving(tmp_path) as server:
        address = f"/api/v1/moments/{keys(server.search('a dog'))['2.mp4']}"
        assert server.get(address).status_code == 200
        remove_videos(tmp_path / "library", [tmp_path / "videos" / "day" / "2.mp4"])
        for path in (address, f"{address}?converted=true", f"{address}/thumbnail"):
            assert server.get(path).status_code == 404
        port = urlsplit(server.url).port
        line = refused(capsys, "serve", "--library", tmp_path / "library", "--port", port)
        assert str(port) in line
    assert server.process.returncode in (0, 130)
    assert list(server.scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (("--host", "no.such.host.invalid"), "no.such.host.invalid"),
        (("--port", "99999"), "99999"),
        (("--library", "nowhere"), "nowhere"),
    ],
)
def test_invalid_options(served, capsys, more, word) -> None:
    assert word in refused(capsys, "serve", "--library", served.folder / "library", *more)


def test_public_host_is_logged(served, monkeypatch, caplog) -> None:
    options = {}
    monkeypatch.setattr("crosspair.serve.app.serve", lambda *_, **choices: options.update(choices))
    library = str(served.folder / "library")
    main(["serve", "--library", library, "--host", "0.0.0.0"])
    assert "0.0.0.0" in caplog.text
    assert options["host"] == "0.0.0.0"
    caplog.clear()
    main(["serve", "--library", library])
    assert caplog.text == ""
