"""Write the pictures of docs/page.md with Chromium and playwright.

    python -m benchmarks.page_pictures QUICKSTART

QUICKSTART is the output folder of ``crosspair quickstart``: 90 of its videos are indexed and served.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from crosspair.corpora import Manifest
from crosspair.library import index_videos, load_engine

DOCS = Path(__file__).parents[1] / "docs"
COMMAND = [sys.executable, "-m", "crosspair", "serve", "--port", "0", "--library"]


def main() -> None:
    """Index videos, serve them, and take the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("quickstart", type=Path, metavar="QUICKSTART")
    quickstart = parser.parse_args().quickstart
    with tempfile.TemporaryDirectory() as folder:
        videos, titles, library = (Path(folder, name) for name in ("rendered", "titles.tsv", "library"))
        for place, file in enumerate(sorted((quickstart / "corpus" / "videos").iterdir())[:90]):
            copy = videos / ("morning", "noon", "evening")[place % 3] / file.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
        corpus = Manifest.read(quickstart / "corpus")
        lines = zip(corpus.column("pair_id"), corpus.column("title"), strict=True)
        titles.write_text("video_id\ttitle\n" + "".join(f"{name}\t{title}\n" for name, title in lines))
        index_videos(library, load_engine(quickstart / "run" / "model"), [videos], titles=titles)
        with subprocess.Popen([*COMMAND, str(library)], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            take_pictures(server.stdout.readline().split()[0], next(videos.glob("noon/*.mp4")))
            server.send_signal(signal.SIGINT)


def take_pictures(url: str, upload: Path) -> None:
    """Search, classify and fail on the page, and write a picture of each."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width, name in ((1200, "page-search.png"), (390, "page-narrow.png")):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.goto(url)
            page.locator("#size", has_text="videos").wait_for()
            page.locator("#search [name=text]").fill("something moving right")
            page.keyboard.press("Enter")
            page.locator("#search .summary", has_text="moving").wait_for()
            page.wait_for_load_state("networkidle")  # thumbnails
            if width == 1200:
                playing = page.locator("video").first
                playing.evaluate("video => void video.play()")
                page.wait_for_function("video => video.currentTime > 0.3", arg=playing.element_handle())
            page.screenshot(path=DOCS / name)
        page = browser.contexts[0].pages[0]
        page.locator("#search [name=text]").fill("zzz")
        page.keyboard.press("Enter")
        page.get_by_role("alert").first.wait_for()
        page.screenshot(path=DOCS / "page-fault.png", clip={"x": 0, "y": 0, "width": 1200, "height": 420})
        page.get_by_role("tab", name="Classify").click()
        page.locator("#classify [name=video]").set_input_files(upload)
        page.locator("#classify [name=classes]").fill("moving right, bouncing, spinning, rising, shrinking")
        page.keyboard.press("Enter")
        page.locator("#classify .classes li").nth(1).wait_for()
        page.screenshot(path=DOCS / "page-classify.png", full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
