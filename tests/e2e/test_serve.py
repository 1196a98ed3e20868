"""The page of ``crosspair serve``: search, playing, uploads, and protection against attacks."""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx
import numpy as np
import pytest
import torch

from crosspair.cli import main
from crosspair.corpora import manifest_from_rows
from crosspair.library import InferenceEngine, Library, Searcher, remove_videos
from crosspair.serve.answers import MomentStore, PageRenderer, Upload
from tests.e2e.served import (
    ALL,
    EVIL,
    RefusedError,
    Served,
    as_file,
    make_library,
    serving,
    text_of,
)
from tests.e2e.test_use_commands import refused
from tests.evaluation.conftest import tiny_model

pytest.importorskip("gradio", reason="gradio is not installed")
pytest.importorskip("lancedb", reason="lancedb is not installed")


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    make_library(folder, make_video)
    with serving(folder) as server:
        yield server


def keys(html: str) -> dict[str, str]:
    """Map names of videos to keys of moments."""
    found = re.findall(
        r'moments/([0-9a-f]{32})/video.*?class="video-path"[^>]*>([^<]*)<', html, re.S
    )
    return {path.rpartition("/")[2]: key for key, path in found}


def test_moments_are_found_and_filtered(served) -> None:
    everywhere, day = served.search("a dog"), served.search("a dog", "day")
    assert {"2.mp4", "6.mp4", "3.avi"} < set(keys(everywhere))
    assert set(keys(day)) == {"2.mp4", "6.mp4"}
    assert "in day" in text_of(day)
    assert "day/6.mp4" in day
    assert str(served.folder) not in everywhere


@pytest.mark.parametrize(
    ("text", "word"),
    [("zzz", "'zzz'"), (" ", "")],
)
def test_invalid_queries(served, text, word) -> None:
    html = served.search(text)
    assert 'role="alert"' in html
    assert word in text_of(html)


def test_model_without_text_tower(served, tmp_path) -> None:
    from crosspair.serve.app import _render

    engine = InferenceEngine(tiny_model().eval(), torch.device("cpu"), workers=0)
    engine.model.untrained = ("text_encoder", "text_head")
    library = Library(served.folder / "library")
    renderer = PageRenderer(Searcher(library, engine), MomentStore(library, tmp_path))
    upload = Upload("a.mp4", 4.0, [(0.0, 4.0)], np.ones((1, 8), np.float32), b"")
    for render in (
        lambda: renderer.search("a dog", ALL),
        lambda: renderer.classify(upload, "dog, cat"),
    ):
        assert 'role="alert"' in _render(renderer, render)
    assert "moments like a.mp4" in text_of(renderer.search(upload, ALL))


def test_byte_ranges_of_a_file(served) -> None:
    key = keys(served.search("a dog"))["6.mp4"]
    content = (served.folder / "videos" / "day" / "6.mp4").read_bytes()
    url = f"{served.url}/moments/{key}/video"
    part = httpx.get(url, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, content[100:200])
    assert part.headers["content-type"] == "video/mp4"
    assert httpx.get(url).content == content


def test_other_formats_are_converted(served) -> None:
    key = keys(served.search("a dog"))["3.avi"]
    assert httpx.get(f"{served.url}/moments/{key}/video").status_code == 415
    first, second = (
        httpx.get(f"{served.url}/moments/{key}/conversion", timeout=120) for _ in range(2)
    )
    assert first.content[4:8] == b"ftyp"
    assert first.content == second.content


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file={secret}", "/file={secret}", "/gradio_api/file/{secret}",
        "/gradio_api/file={library}", "/gradio_api/proxy={secret}", "/gradio_api/file={url}",
        "/moments/{secret}/video", "/moments/{quoted}/video", "/moments/..%2f..%2fvideo/video",
        "/moments/../../../../../../../../{secret}", "/moments/%2e%2e/%2e%2e/{secret}",
        "/static/../../../../../../../../{secret}", "/static/{quoted}", "/static/{secret}",
        "/assets/../../../../../../../../{secret}", "/assets/..%2f..%2f..%2f{quoted}",
        "/gradio_api/heartbeat/../file={secret}", "/gradio_api/upload_progress?upload_id={secret}",
        "/svelte/{quoted}", "/custom_component/a/b/c/{secret}", "/docs", "/openapi.json",
        "/moments/0123456789abcdef0123456789abcdef/video", "//{secret}",
    ],
)  # fmt: skip
def test_paths_outside_the_library(served, path) -> None:
    secret = served.folder / "titles.tsv"
    target = path.format(
        secret=secret, quoted=quote(str(secret), safe=""), url=served.url,
        library=served.folder / "library" / "library.json",
    )  # fmt: skip
    place = urlsplit(served.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    connection.request("GET", target)  # other clients normalise the path
    answer = connection.getresponse()
    assert answer.status in (400, 403, 404)
    content = answer.read()
    assert b"video_id" not in content
    assert b"embedding" not in content


def test_folders_outside_the_library(served) -> None:
    for folder in ("../..", "/", "day/../..", str(served.folder), "' OR 1=1 --"):
        with pytest.raises(RefusedError):
            served.search("a dog", folder)


def test_uploads_cannot_name_files_of_the_server_or_urls(served) -> None:
    mine = served.folder / "videos" / "day" / "2.mp4"
    elsewhere = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/a.mp4"
    (server,) = served.scratch.glob("*/uploads")
    for path in (str(mine), f"{server}/../../../videos/day/2.mp4", str(server), url):
        for given in (as_file(path), {"a": as_file(path)}, [as_file(path)], {}, 1):
            for name in ("encode_upload", "search_video", "search_text"):
                with pytest.raises(RefusedError):
                    served.ask(name, given, ALL)
    upload = served.upload(served.folder / "videos" / "day" / "6.mp4")
    html = served.ask("search_video", {**upload, "x": as_file(str(mine))}, ALL)[2]
    assert "like 6.mp4" in text_of(html)
    assert mine.exists()
    assert served.uploads() == []
    assert 'role="alert"' in served.ask("encode_upload", None, "dog, cat")[2]
    elsewhere.settimeout(0.5)
    with pytest.raises(TimeoutError):
        elsewhere.accept()


def test_large_upload_is_rejected_before_it_is_sent(served) -> None:
    place = urlsplit(served.url)
    for path, size, headers, status in (
        ("/gradio_api/upload", 5 * 2**30, {}, 413),
        ("/gradio_api/queue/join", 5 * 2**30, {}, 413),
        ("/gradio_api/upload", None, {"Transfer-Encoding": "chunked"}, 411),
    ):
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
        connection.putrequest("POST", path)
        sizes = {} if size is None else {"Content-Length": str(size)}
        for name, value in {**sizes, **headers}.items():
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status == status
        connection.close()
    assert served.uploads() == []


def test_connection_is_closed_after_a_rejection(served) -> None:
    place = urlsplit(served.url)
    length = 5 * 2**30
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Length: {length}"
    with socket.create_connection((place.hostname, place.port), timeout=60) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode())
        with pytest.raises(ConnectionError):
            connection.sendall(bytes(length // 5))
    assert served.uploads() == []


def test_upload_slightly_above_the_limit(served) -> None:
    answer = httpx.post(
        f"{served.url}/gradio_api/upload", files={"files": ("a.mp4", b"x" * 1_500_000)}
    )
    assert answer.status_code == 413
    assert served.uploads() == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.mp4", b"no video", "a.mp4: "),
        ("a.txt", b"no video", "a.txt: "),
        ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "list.mp4: "),
        ("join.mp4", b"ffconcat version 1.0\nfile '/etc/passwd'\n", "join.mp4: "),
        ("empty.mp4", b"", "empty.mp4: "),
    ],
)
def test_invalid_uploads(served, tmp_path, name, content, message) -> None:
    (tmp_path / name).write_bytes(content)
    _, _, html = served.ask("encode_upload", served.upload(tmp_path / name), "dog, cat")
    assert 'role="alert"' in html
    assert message in text_of(html)
    assert str(served.scratch) not in html
    assert "passwd" not in html
    assert served.uploads() == []


def test_uploaded_manifest_is_rejected(served, tmp_path) -> None:
    secret = served.folder / "videos" / "day" / "2.mp4"
    rows = [{"pair_id": "a", "path": str(secret), "title": "a dog"}]
    manifest_from_rows(rows, tmp_path).write(tmp_path / "a.parquet")
    for name, value in (("encode_upload", "dog, cat"), ("search_video", ALL)):
        html = served.ask(name, served.upload(tmp_path / "a.parquet"), value)[2]
        assert 'role="alert"' in html
        assert "a.parquet" in text_of(html)
        assert "base64" not in html
    assert served.uploads() == []


def test_upload_is_classified_searched_and_removed(served) -> None:
    video = served.folder / "videos" / "day" / "6.mp4"
    html = served.ask("encode_upload", served.upload(video), "dog, cat, dog", session="mine")[2]
    assert text_of(html).count("dog") in (1, 2)  # in the list, and in the summary if it is the best
    again = served.ask("classify_upload", None, "cat", session="mine")
    assert "6.mp4, 0:06: cat" in text_of(again[0])
    for classes, word in ((" , ", ""), ("dog, zzz", "'zzz'")):
        (html,) = served.ask("classify_upload", None, classes, session="mine")
        assert 'role="alert"' in html
        assert word in text_of(html)
    assert 'role="alert"' in served.ask("classify_upload", None, "cat", session="another")[0]
    found = served.ask("search_video", served.upload(video), ALL, session="mine")[2]
    assert "like 6.mp4" in text_of(found)
    assert served.uploads() == []


def test_markup_is_escaped(served) -> None:
    html = served.search("a dog <b>x</b> ${alert(5)} {{alert(6)}}")
    assert f"night/{EVIL}.mp4" in text_of(html)
    assert "alert(2)" in text_of(html)
    for forbidden in ("<img", "<script", "<b>", "$", "{", "`"):
        assert forbidden not in html
    fault = served.search("<i>zzz</i> ${q}")
    assert "<i>" not in fault
    assert "${" not in fault


def test_concurrent_searches(served) -> None:
    one = served.search("a dog")
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda i: served.search("a dog", session=f"s{i}"), range(50)))
    assert set(answers) == {one}


def test_other_host_names_are_rejected(served) -> None:
    assert httpx.get(served.url, headers={"Host": "evil.example"}).status_code == 400
    page = httpx.get(served.url)
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    port = urlsplit(served.url).port
    assert httpx.get(served.url, headers={"Host": f"localhost:{port}"}).status_code == 200


def test_removed_video_and_port_in_use(
    tmp_path: Path, make_video: Callable[..., Path], capsys
) -> None:
    make_library(tmp_path, make_video)
    with serving(tmp_path) as server:
        url = f"{server.url}/moments/{keys(server.search('a dog'))['2.mp4']}/video"
        assert httpx.get(url).status_code == 200
        remove_videos(tmp_path / "library", [tmp_path / "videos" / "day" / "2.mp4"])
        assert httpx.get(url).status_code == 404
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
