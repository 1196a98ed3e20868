"""The page in Chromium: search, play, filter, upload, and errors; with mouse and keyboard, and in a narrow window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.served import EVIL, EVIL_TITLE, MINUTES, Served, make_library, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("lancedb", reason="lancedb is not installed")

TEXT = "#search [name=text]"
WIDTH = "document.documentElement.scrollWidth"


@pytest.fixture(scope="module")
def served(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    make_library(folder, make_video)
    with serving(folder) as server:
        yield server


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """The page of a library; checks that there were no errors and no third-party requests."""
    opened, faults = open_page(browser, served.url, 1200)
    yield opened
    opened.close()
    assert faults == []


def open_page(browser: Browser, url: str, width: int) -> tuple[Page, list[str]]:
    """Open the page; return it with a list of its errors and third-party requests."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(1000 * MINUTES)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
    page.on(
        "request",
        lambda request: request.url.startswith((url, "data:", "blob:")) or faults.append(f"request: {request.url}"),
    )
    page.on("console", lambda message: "Content Security Policy" not in message.text or faults.append(message.text))
    page.goto(url)
    page.locator("#size", has_text="videos").wait_for()
    return page, faults


def search(page: Page, text: str) -> None:
    page.locator(TEXT).fill(text)
    page.keyboard.press("Enter")
    page.locator("#search .summary", has_text=text).wait_for()


def names(page: Page) -> set[str]:
    return {text.rpartition("/")[2] for text in page.locator(".path").all_inner_texts()}


def classify(page: Page, file: Path, classes: str) -> None:
    page.get_by_role("tab", name="Classify").click()
    page.locator("#classify [name=video]").set_input_files(file)
    page.locator("#classify [name=classes]").fill(classes)
    page.keyboard.press("Enter")


def test_moment_is_played_from_start_to_end(page: Page) -> None:
    search(page, "a dog")
    late = page.locator("li", has_text="6.mp4").filter(has_not_text="0:00").first
    begin = late.locator(".times span").first.inner_text()
    second = int(begin.split("–")[0].split(":")[1])
    assert second > 0
    video = late.locator("video")
    assert not video.evaluate("video => video.controls")
    late.get_by_role("button", name="play").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("video => video.currentTime > 0", arg=video.element_handle())
    assert second <= video.evaluate("video => video.currentTime")
    assert video.evaluate("video => video.controls && video === document.activeElement")
    page.wait_for_function("video => video.paused", arg=video.element_handle())
    end = int(begin.split("–")[1].split(":")[1])
    assert video.evaluate("video => video.currentTime") == pytest.approx(end, abs=0.5)


def test_converted_moment_has_a_note(page: Page) -> None:
    search(page, "a dog")
    item = page.locator("li", has_text="3.avi").first
    assert not item.locator(".converted").is_visible()
    item.locator(".frame button").click()
    item.locator(".converted").wait_for()
    page.wait_for_function("video => video.currentTime > 0", arg=item.locator("video").element_handle())


def test_folder_and_error_with_the_keyboard(page: Page) -> None:
    assert page.evaluate("document.activeElement.name") == "text"
    page.keyboard.type("a dog")
    page.keyboard.press("Enter")
    page.locator("#search .summary", has_text="a dog").wait_for()
    assert {"2.mp4", "6.mp4", "3.avi", f"{EVIL}.mp4"} == names(page)
    assert page.get_by_text(EVIL_TITLE).count() > 0
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.locator("#search .summary", has_text="in day").wait_for()
    assert names(page) == {"2.mp4", "6.mp4"}
    page.locator(TEXT).fill(f"zzz{EVIL}")
    page.keyboard.press("Enter")
    page.get_by_role("alert").filter(has_text="zzz").wait_for()
    assert page.locator("img, .results script").count() == 0
    page.get_by_role("tab", name="Search").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#classify form").wait_for()
    assert not page.locator("#search").is_visible()


def test_search_with_a_video(page: Page, served: Served) -> None:
    page.get_by_text("Search with a similar video").click()
    page.locator("#search [name=video]").set_input_files(served.folder / "videos/day/6.mp4")
    page.locator("#search .summary", has_text="like 6.mp4").wait_for()
    page.locator("#search [name=folder]").select_option("night")
    page.locator("#search .summary", has_text="in night").wait_for()
    assert names(page) == {"3.avi", f"{EVIL}.mp4"}


def test_classify(page: Page, served: Served, tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("no video")
    (tmp_path / "large.mp4").write_bytes(b"x" * 3_000_000)
    for name, word in (("notes.mp4", "notes.mp4"), ("large.mp4", "1 MB")):
        classify(page, tmp_path / name, "dog, cat")
        page.get_by_role("alert").filter(has_text=word).wait_for()
    classify(page, served.folder / "videos" / "day" / "6.mp4", "dog, cat")
    page.locator("#classify .classes li").nth(1).wait_for()
    assert sorted(page.locator("#classify .name").all_inner_texts()) == ["cat", "dog"]
    image = page.locator("#classify img")
    page.wait_for_function("image => image.naturalWidth > 0", arg=image.element_handle())
    scores = [float(text) for text in page.locator("#classify .score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    assert served.uploads() == []


def test_narrow_window_has_no_horizontal_scrolling(browser: Browser, served: Served) -> None:
    page, faults = open_page(browser, served.url, 320)
    search(page, "a dog")
    assert page.evaluate(WIDTH) <= 320
    classify(page, served.folder / "videos" / "day" / "6.mp4", "dog, cat")
    page.locator("#classify .classes li").first.wait_for()
    assert page.evaluate(WIDTH) <= 320
    page.get_by_role("link", name="REST API").click()
    page.get_by_role("heading", name="REST API").wait_for()
    assert page.evaluate(WIDTH) <= 320
    page.locator("a[href$='api/v1/folders']").click()
    page.get_by_text("night").first.wait_for()
    page.close()
    assert faults == []
