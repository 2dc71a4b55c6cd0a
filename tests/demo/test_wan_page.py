"""What a large model needs of the demo, in a real browser: a page before the model is there, words that take
long, refusals for want of memory, other picture sizes, and a model of the Wan family that knows no tracks.
"""

import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page

from demo.app import build_app
from demo.engine import Engine
from demo.fake_engine import FakeEngine
from demo.loading import LateEngine, Tell
from demo.server import SERVER_OPTIONS, Options
from streamgen.errors import CheckpointError
from tests.demo.test_browser import PATIENCE, frame_now, open_page, shown
from tests.ports import free_port
from tests.tiny_wan import SMALL
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
MEMORY = "memory: a stream of 832x480 needs 9.8 GiB on cuda:0, 4.1 are free; would fit: window_frames 3"


@contextmanager
def served(engine: Engine) -> Iterator[str]:
    """The demo with an engine, in a thread of this process."""
    stopped = threading.Event()
    app = build_app(engine, Options(on_failure=stopped.set))
    port = free_port()
    options = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", **SERVER_OPTIONS)
    server = uvicorn.Server(options)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


def new_context(browser: Browser) -> BrowserContext:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(PATIENCE * 1000)
    return context


def new_page(browser: Browser, address: str) -> Page:
    page = new_context(browser).new_page()
    page.goto(address)
    return page


def expect(page: Page, part: str, text: str) -> None:
    page.wait_for_selector(f"[data-part={part}]:has-text('{text}')")


class SlowLoad:
    """A load that goes on when it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.go_on, self.told = error, threading.Event(), threading.Event()
        self.engine = FakeEngine(size=(120, 208), seconds=0.01)

    def __call__(self, tell: Tell) -> Engine:
        tell("placing weights", 0.437)
        self.told.set()
        assert self.go_on.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return self.engine


def test_a_page_waits_for_its_model_and_starts_by_hand(browser: Browser) -> None:
    load = SlowLoad()
    engine = LateEngine(load.engine.info, load)
    engine.start()
    with served(engine) as address:
        page = new_page(browser, address)
        expect(page, "coverText", "placing weights 43 %")
        assert not page.is_visible("[data-part=startButton]")
        load.go_on.set()
        page.wait_for_selector(".sg[data-state=ready]")
        page.click("[data-part=startButton]")
        shown(page, 8)
        box = page.locator("[data-part=screen]").bounding_box()
        assert box
        assert box["width"] / box["height"] == pytest.approx(208 / 120, rel=0.01)
        page.close()


@pytest.mark.slow
def test_why_a_model_could_not_be_loaded_stands_on_the_page(browser: Browser) -> None:
    load = SlowLoad(CheckpointError(MEMORY))
    engine = LateEngine(load.engine.info, load)
    engine.start()
    with served(engine) as address:
        page = new_page(browser, address)
        expect(page, "coverText", "placing weights")
        load.go_on.set()
        expect(page, "coverText", "would fit: window_frames 3")
        page.click("[data-part=startButton]")
        expect(page, "coverText", "The model cannot be loaded")
        page.close()


@pytest.mark.slow
def test_words_that_take_long_and_streams_that_do_not_fit(browser: Browser) -> None:
    engine = FakeEngine(size=(240, 416), seconds=0.01)
    engine._info = replace(engine.info, loras={"style": 0.5})
    with served(engine) as address:
        page = open_page(new_context(browser), address)
        assert not page.is_checked("[data-part=pixelated]")
        engine.refuse_open = CheckpointError(MEMORY)
        page.click("[data-part=startButton]")
        expect(page, "coverText", "Not started: memory: a stream of 832x480 needs 9.8 GiB")
        assert page.is_visible("[data-part=startButton]")

        engine.refuse_open, engine.slow_words = None, True
        page.click("[data-part=startButton]")
        expect(page, "chip", "encoding the words")
        assert not engine.opened
        # other words meanwhile are the next ones, and not lost
        page.fill("[data-part=prompt]", "a blue ball")
        page.press("[data-part=prompt]", "Enter")
        expect(page, "words", "Takes effect once the stream has begun")
        engine.finish_encoding()
        wait_until(lambda: bool(engine.opened and engine._encoding))
        engine.finish_encoding()
        expect(page, "now", "a blue ball")
        shown(page, 8)

        slider = page.locator("[data-lora=style]")
        assert slider.input_value() == "0.5"
        slider.fill("0.9")
        page.wait_for_selector("[data-part=log] li[data-kind=settings]:has-text('lora style:0.9')")

        # what plays is stopped by a start that cannot be, and goes on
        engine.slow_words, engine.refuse_open = False, CheckpointError(MEMORY)
        page.click("[data-part=restart]")
        expect(page, "noticeText", "would fit: window_frames 3")
        page.click("[data-part=noticeDo]")
        shown(page, frame_now(page) + 8)
        page.close()


@contextmanager
def wan_demo(*more: str) -> Iterator[str]:
    """`python -m demo` with a model of the Wan family on random weights, in small."""
    changes = [value for pair in (*SMALL, "height=112", "width=176") for value in ("--model-set", pair)]
    command = [sys.executable, "-m", "demo", "--model", "wan-1.3b-longlive", "--random-weights", *changes]
    port = free_port()
    command += ["--port", str(port), *more]
    address = f"http://127.0.0.1:{port}/"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as server:

        def there() -> bool:
            assert server.poll() is None, server.stderr and server.stderr.read().decode()
            try:
                with urllib.request.urlopen(f"{address}live/health", timeout=5):
                    return True
            except OSError:
                return False

        try:
            wait_until(there)
            yield address
        finally:
            server.terminate()
            server.wait(PATIENCE)


@pytest.mark.slow
def test_a_wan_model_streams_and_turns_to_new_words(browser: Browser) -> None:
    with wan_demo() as address:
        page = open_page(new_context(browser), address)
        assert "176×112" in (page.text_content("[data-part=model]") or "")
        assert "follows tracks" not in (page.text_content("#card") or "")
        # nothing of what this model does not have
        assert not page.is_visible("[data-part=motion]")
        assert not page.is_visible("[data-setting=motion_guidance]")
        page.evaluate("window.kinds = []; window.streamgen.on('frame', f => window.kinds.push(f.encoding))")
        page.click("[data-part=startButton]")
        shown(page, 20)
        assert set(page.evaluate("window.kinds")) == {1}, "JPEG"
        assert page.evaluate("document.querySelector('canvas[data-part=video]').width") == 176
        page.fill("[data-part=prompt]", "a lighthouse in a snow storm")
        page.press("[data-part=prompt]", "Enter")
        page.wait_for_selector("[data-part=log] li[data-kind=prompt]:has-text('lighthouse')")
        shown(page, frame_now(page) + 12)
        page.close()
