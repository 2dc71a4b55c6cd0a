"""The page behind a front: told when its worker dies, and by itself again when the last one has."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import sync_playwright

from demo.cluster.front import Front, FrontOptions, front_app
from demo.fake_engine import FakeEngine
from demo.server import SERVER_OPTIONS
from tests.demo_hall import Hall
from tests.demo_pages import PATIENCE, context_of, frame_now, open_page, said, shown
from tests.ports import free_port


@dataclass
class Door:
    """Where a front is served."""

    address: str


@contextlib.contextmanager
def served(hall: Hall) -> Iterator[Door]:
    port = free_port()
    app = front_app(Front(hall, FrontOptions()), FakeEngine().info)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", **SERVER_OPTIONS)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + PATIENCE
    while not server.started and time.monotonic() < end:
        time.sleep(0.02)
    yield Door(f"http://127.0.0.1:{port}/")
    server.should_exit = True
    thread.join(PATIENCE)


@pytest.mark.slow
def test_a_page_outlives_its_worker_and_the_last_worker(chromium: str, tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.add("0")
    hall.add("1")
    with served(hall) as door, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        with context_of(browser) as context:
            page = open_page(context, door)  # type: ignore[arg-type]
            shown(page, 12)
            hall.kill(page.evaluate("window.streamgen.connection.token").rpartition(".")[2])
            said(page, "noticeText", "The machine that made your stream is gone. Your stream goes on from")
            page.wait_for_selector(".sg[data-state=playing]")
            shown(page, frame_now(page) + 12)
            hall.kill(hall.names()[0])
            said(page, "coverText", "No machine is there to make your stream. Your stream waits.")
            hall.add("2")
            page.wait_for_selector(".sg[data-state=playing]")
            shown(page, frame_now(page) + 8)
        browser.close()
    hall.kill("2")
