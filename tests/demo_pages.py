"""The demo's page in a real browser over a fake engine, served from a thread of the tests' own process."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page

from demo.app import build_app
from demo.fake_engine import FakeEngine
from demo.lobby import Rules
from demo.server import SERVER_OPTIONS, Options
from tests.ports import free_port

# Seconds; a machine that has nothing else to do needs a small part of it.
PATIENCE = 240.0
RULES = Rules(max_sessions=32, closed_seconds=0.3)


@dataclass
class Stage:
    """A server that can be stopped and started again at the same address."""

    shelf: Path
    rules: Rules = RULES
    engine: FakeEngine = field(default_factory=lambda: FakeEngine(seconds=0.01))
    port: int = field(default_factory=free_port)
    _server: uvicorn.Server | None = None
    _thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def demo(self) -> Any:
        """The application's state."""
        return self.app.state.demo

    def start(self) -> None:
        gate = build_app(self.engine, Options(rules=self.rules, shelf=self.shelf))
        self.app = gate.app.app
        config = uvicorn.Config(gate, host="127.0.0.1", port=self.port, log_level="error", **SERVER_OPTIONS)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + PATIENCE
        while not self._server.started:
            assert time.monotonic() < deadline, "the server does not come up"
            time.sleep(0.02)

    def stop(self) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.should_exit = True
        self._thread.join(PATIENCE)


@contextlib.contextmanager
def served(folder: Path, **rules: Any) -> Iterator[Stage]:
    """A stage that plays."""
    stage = Stage(folder, replace(RULES, **rules))
    stage.start()
    try:
        yield stage
    finally:
        stage.stop()


@contextlib.contextmanager
def context_of(browser: Browser, **options: Any) -> Iterator[BrowserContext]:
    """A browser context with patience."""
    made = browser.new_context(**({"viewport": {"width": 1280, "height": 720}} | options))
    made.set_default_timeout(PATIENCE * 1000)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def no_errors(page: Page) -> Iterator[None]:
    """Fails at its end for an error of the page's scripts meanwhile."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield
    assert not errors


def open_page(context: BrowserContext, stage: Stage, begin: bool = True) -> Page:
    """The page, its stream begun or not."""
    page = context.new_page()
    page.goto(stage.address)
    page.wait_for_selector(".sg[data-state=ready]")
    if begin:
        page.click("[data-part=startButton]")
        shown(page, 4)
    return page


def shown(page: Page, frame: int) -> None:
    """Wait until this frame, or a later one, is on screen."""
    page.wait_for_function("frame => window.streamgen.player.shown >= frame", arg=frame)


def frame_now(page: Page) -> int:
    return int(page.evaluate("window.streamgen.player.shown"))


def said(page: Page, part: str, text: str) -> None:
    """Wait until a part of the page has these words."""
    page.wait_for_function(
        "([part, text]) => window.streamgen.part[part].textContent.includes(text)", arg=[part, text]
    )


def settled(page: Page) -> None:
    """Wait until what was asked for so far has been drawn, and another picture of the browser after it."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def words(page: Page, prompt: str) -> None:
    """Apply a prompt from the field and wait for it."""
    page.fill("[data-part=prompt]", prompt)
    page.press("[data-part=prompt]", "Enter")
    said(page, "now", prompt)
