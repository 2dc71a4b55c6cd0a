"""The page in a real browser when its server is gone for a while: the stream waits, and nothing is lost."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.demo_pages import Stage, context_of, frame_now, open_page, said, served, shown, words
from tests.waiting import wait_until


def dead(page: Page) -> list[str]:
    """Controls that can still be used although they need the server."""
    return page.evaluate(
        """() => [...document.querySelectorAll("[data-needs]")].filter((control) => !control.disabled)
          .map((control) => control.outerHTML)"""
    )


def test_a_lost_connection_is_told_and_the_stream_waits(page: Page, stage: Stage) -> None:
    at = frame_now(page)
    page.evaluate("window.streamgen.connection.open = () => {}")
    page.evaluate("window.streamgen.connection.socket.close()")
    page.wait_for_selector(".sg[data-state=retry]")
    said(page, "coverText", "The connection is lost. Your stream waits. Trying again")
    assert dead(page) == []
    page.evaluate("window.streamgen.prompts.apply('a blue ball', true)")
    page.evaluate("window.streamgen.prompts.ask({ prompt: 'a blue ball' })")
    said(page, "noticeText", "Not sent")
    assert "akes effect" not in (page.locator("[data-part=words]").text_content() or "")
    # the page's own seat is the newest one
    seat = stage.demo.lobby.running[-1]
    wait_until(lambda: seat.left is not None, "the server does not know that the page is gone")
    counters = seat.session.counters

    def rests() -> bool:
        made = counters.generated
        page.wait_for_timeout(700)
        return counters.generated == made

    # once the chunk that was under way is made
    wait_until(rests, "something is made for nobody")
    page.evaluate("delete window.streamgen.connection.open; window.streamgen.connection.open()")
    page.wait_for_selector(".sg[data-state=playing]")
    shown(page, at + 4)
    assert dead(page) != []


@pytest.mark.slow
def test_a_stream_goes_on_when_the_server_has_begun_anew(browser: Browser, tmp_path: Path) -> None:
    with served(tmp_path) as stage, context_of(browser) as context:
        page = open_page(context, stage)
        words(page, "a blue ball")
        shown(page, frame_now(page) + 20)
        stage.stop()
        page.wait_for_selector(".sg[data-state=retry]")
        said(page, "coverText", "The connection is lost. Your stream waits. Trying again")
        assert dead(page) == []
        at = frame_now(page)
        stage.start()
        page.wait_for_selector(".sg[data-state=playing]")
        said(page, "noticeText", "Your stream goes on from")
        said(page, "now", "a blue ball")
        shown(page, at)
        assert page.evaluate("window.streamgen.strip.rows.length") == 2
        with page.expect_download() as saved:
            page.click("[data-do=timeline]")
        record = saved.value.path().read_text()
        assert "a blue ball" in record
        assert int(re.findall(r'"frames": (\d+)', record)[0]) >= at


@pytest.mark.slow
def test_a_session_that_ended_can_be_saved_and_gone_on_with(browser: Browser, tmp_path: Path) -> None:
    with served(tmp_path, idle_seconds=600.0) as stage, context_of(browser) as context:
        page = open_page(context, stage)
        words(page, "a blue ball")
        seat = stage.demo.lobby.running[0]
        seat.heard -= 560
        page.wait_for_selector("[data-part=notice]:not([hidden])")
        counts = [page.locator("[data-part=noticeText]").text_content()]
        page.wait_for_function("text => window.streamgen.part.noticeText.textContent !== text", arg=counts[0])
        seat.heard -= 600
        page.wait_for_selector(".sg[data-state=lost]")
        said(page, "coverText", "The session was idle")
        at = frame_now(page)
        for what in ("clip", "timeline"):
            with page.expect_download() as saved:
                page.click(f"[data-do={what}]")
            assert saved.value.path().stat().st_size > 200
        page.click("[data-part=startButton]")
        page.wait_for_selector(".sg[data-state=playing]")
        shown(page, at)
        said(page, "now", "a blue ball")


@pytest.mark.slow
def test_a_stream_that_nobody_kept_is_said_to_be_gone(browser: Browser, tmp_path: Path) -> None:
    with served(tmp_path, grace_seconds=0.1) as stage, context_of(browser) as context:
        page = open_page(context, stage)
        page.evaluate("window.streamgen.connection.open = () => {}")
        page.evaluate("window.streamgen.connection.socket.close()")
        page.wait_for_selector(".sg[data-state=retry]")
        wait_until(lambda: not stage.demo.lobby.running)
        stage.demo.shelf.find = lambda token: None
        page.evaluate("delete window.streamgen.connection.open; window.streamgen.connection.open()")
        page.wait_for_selector(".sg[data-state=ready]")
        said(page, "coverText", "The server has not kept your stream")
