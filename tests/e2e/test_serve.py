"""serve, attacked: it gives away what the library holds, and nothing else."""

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
from crosspair.serve.answers import Answers, Moments, Seen
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
    """Keys of moments by the names of their videos."""
    found = re.findall(r'moments/([0-9a-f]{32})/video.*?class="place"[^>]*>([^<]*)<', html, re.S)
    return {place.rpartition("/")[2]: key for key, place in found}


def test_moments_are_found_and_filtered(served) -> None:
    everywhere, day = served.search("a dog"), served.search("a dog", "day")
    assert "6 moments for “a dog”, best first" not in text_of(day)
    assert {"2.mp4", "6.mp4", "3.avi"} < set(keys(everywhere))
    assert set(keys(day)) == {"2.mp4", "6.mp4"}
    assert "in day" in text_of(day)
    assert "day/6.mp4" in day
    assert str(served.folder) not in everywhere


@pytest.mark.parametrize(
    ("text", "message"),
    [("zzz", "The model knows no word of 'zzz'"), (" ", "Say what is to be seen")],
)
def test_what_nobody_can_search_for(served, text, message) -> None:
    html = served.search(text)
    assert 'role="alert"' in html
    assert message in text_of(html)


def test_a_model_that_reads_no_text_is_told_of(served, tmp_path) -> None:
    from crosspair.serve.app import _html

    of = InferenceEngine(tiny_model().eval(), torch.device("cpu"), workers=0)
    of.model.untrained = ("text_encoder", "text_head")
    library = Library(served.folder / "library")
    answers = Answers(Searcher(library, of), Moments(library, tmp_path))
    seen = Seen("a.mp4", 4.0, [(0.0, 4.0)], np.ones((1, 8), np.float32), b"")
    for ask in (lambda: answers.search("a dog", ALL), lambda: answers.classify(seen, "dog, cat")):
        assert "This model reads no text, as its" in text_of(_html(answers, ask))
    assert "moments like a.mp4" in text_of(answers.search(seen, ALL))


def test_a_whole_file_is_played_from_any_byte(served) -> None:
    key = keys(served.search("a dog"))["6.mp4"]
    content = (served.folder / "videos" / "day" / "6.mp4").read_bytes()
    url = f"{served.url}/moments/{key}/video"
    part = httpx.get(url, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, content[100:200])
    assert part.headers["content-type"] == "video/mp4"
    assert httpx.get(url).content == content


def test_what_browsers_do_not_play_is_converted(served) -> None:
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
def test_no_path_leads_out(served, path) -> None:
    secret = served.folder / "titles.tsv"
    asked = path.format(
        secret=secret, quoted=quote(str(secret), safe=""), url=served.url,
        library=served.folder / "library" / "library.json",
    )  # fmt: skip
    place = urlsplit(served.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    connection.request("GET", asked)  # as it stands: other clients tidy paths up
    answer = connection.getresponse()
    assert answer.status in (400, 403, 404)
    said = answer.read()
    assert b"video_id" not in said
    assert b"embedding" not in said


def test_no_folder_leads_out(served) -> None:
    for folder in ("../..", "/", "day/../..", str(served.folder), "' OR 1=1 --"):
        with pytest.raises(RefusedError):
            served.search("a dog", folder)


def test_no_upload_is_a_file_of_the_server_or_another_host(served) -> None:
    mine = served.folder / "videos" / "day" / "2.mp4"
    elsewhere = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/a.mp4"
    (server,) = served.scratch.glob("*/uploads")
    for path in (str(mine), f"{server}/../../../videos/day/2.mp4", str(server), url):
        for given in (as_file(path), {"a": as_file(path)}, [as_file(path)], {}, 1):
            for name in ("looked", "by_video", "by_text"):
                with pytest.raises(RefusedError, match="no such question"):
                    served.ask(name, given, ALL)
    upload = served.upload(served.folder / "videos" / "day" / "6.mp4")
    html = served.ask("by_video", {**upload, "x": as_file(str(mine))}, ALL)[2]
    assert "like 6.mp4" in text_of(html)
    assert mine.exists()
    assert served.uploads() == []
    assert "Give a video first" in served.ask("looked", None, "dog, cat")[2]
    elsewhere.settimeout(0.5)
    with pytest.raises(TimeoutError):
        elsewhere.accept()


def test_a_large_upload_is_refused_before_it_is_sent(served) -> None:
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


def test_who_sends_all_the_same_is_cut_off(served) -> None:
    place = urlsplit(served.url)
    length = 5 * 2**30
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Length: {length}"
    with socket.create_connection((place.hostname, place.port), timeout=60) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode())
        with pytest.raises(ConnectionError):
            connection.sendall(bytes(length // 5))
    assert served.uploads() == []


def test_an_upload_that_is_a_little_too_large_leaves_nothing(served) -> None:
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
def test_what_only_says_that_it_is_a_video(served, tmp_path, name, content, message) -> None:
    (tmp_path / name).write_bytes(content)
    _, _, html = served.ask("looked", served.upload(tmp_path / name), "dog, cat")
    assert 'role="alert"' in html
    assert message in text_of(html)
    assert str(served.scratch) not in html
    assert "passwd" not in html
    assert served.uploads() == []


def test_an_upload_lists_no_files_of_the_server(served, tmp_path) -> None:
    secret = served.folder / "videos" / "day" / "2.mp4"
    rows = [{"pair_id": "a", "path": str(secret), "title": "a dog"}]
    manifest_from_rows(rows, tmp_path).write(tmp_path / "a.parquet")
    for name, asked in (("looked", "dog, cat"), ("by_video", ALL)):
        html = served.ask(name, served.upload(tmp_path / "a.parquet"), asked)[2]
        assert "a.parquet: not a readable video" in text_of(html)
        assert "base64" not in html
    assert served.uploads() == []


def test_an_upload_is_classified_searched_for_and_removed(served) -> None:
    video = served.folder / "videos" / "day" / "6.mp4"
    html = served.ask("looked", served.upload(video), "dog, cat, dog", session="mine")[2]
    assert text_of(html).count("dog") in (1, 2)  # in the list, and above it where it is the best
    again = served.ask("classified", None, "cat", session="mine")
    assert "6.mp4, 0:06: cat" in text_of(again[0])
    for classes, message in ((" , ", "Name the classes"), ("dog, zzz", "knows no word of 'zzz'")):
        assert message in text_of(served.ask("classified", None, classes, session="mine")[0])
    nobody = served.ask("classified", None, "cat", session="another")[0]
    assert "Give a video first" in text_of(nobody)
    found = served.ask("by_video", served.upload(video), ALL, session="mine")[2]
    assert "like 6.mp4" in text_of(found)
    assert served.uploads() == []


def test_markup_in_names_titles_and_queries_stays_text(served) -> None:
    html = served.search("a dog <b>x</b> ${alert(5)} {{alert(6)}}")
    assert f"night/{EVIL}.mp4" in text_of(html)
    assert "alert(2)" in text_of(html)
    for forbidden in ("<img", "<script", "<b>", "$", "{", "`"):
        assert forbidden not in html
    fault = served.search("<i>zzz</i> ${q}")
    assert "<i>" not in fault
    assert "${" not in fault


def test_many_search_at_once(served) -> None:
    one = served.search("a dog")
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda i: served.search("a dog", session=f"s{i}"), range(50)))
    assert set(answers) == {one}


def test_it_is_called_by_no_other_name(served) -> None:
    assert httpx.get(served.url, headers={"Host": "evil.example"}).status_code == 400
    page = httpx.get(served.url)
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    port = urlsplit(served.url).port
    assert httpx.get(served.url, headers={"Host": f"localhost:{port}"}).status_code == 200


def test_a_forgotten_video_is_played_no_more(
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
        assert f"no page can be served at 127.0.0.1, port {port} (Address already in use)" in line
    assert server.process.returncode in (0, 130)
    assert list(server.scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--host", "no.such.host.invalid"), "no page can be served at no.such.host.invalid"),
        (("--port", "99999"), "no page can be served at 127.0.0.1, port 99999"),
        (("--library", "nowhere"), "nowhere"),
    ],
)
def test_what_does_not_do(served, capsys, more, message) -> None:
    assert message in refused(capsys, "serve", "--library", served.folder / "library", *more)


def test_others_are_let_in_with_a_warning(served, monkeypatch, caplog) -> None:
    asked = {}
    monkeypatch.setattr("crosspair.serve.serve", lambda *_, **choices: asked.update(choices))
    library = str(served.folder / "library")
    main(["serve", "--library", library, "--host", "0.0.0.0"])
    assert "can see all videos of this library: there is no password" in caplog.text
    assert asked["host"] == "0.0.0.0"
    caplog.clear()
    main(["serve", "--library", library])
    assert caplog.text == ""
