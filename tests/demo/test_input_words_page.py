"""The words of the page's camera, the setting `input_prompt`: sent, refused, kept as other settings are."""

from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.demo_pages import Stage, context_of, open_page, said, shown
from tests.waiting import wait_until

FIELD = "[data-part=inputPrompt]"
SHOWS = "a red xball"


def holds(page: Page, words: str) -> None:
    """Wait until the field has these words."""
    page.wait_for_function("words => window.streamgen.part.inputPrompt.value === words", arg=words)


@pytest.mark.slow
def test_what_the_camera_shows_is_told_in_words(browser: Browser, stage: Stage) -> None:
    with context_of(browser) as context:
        page = open_page(context, stage)
        page.evaluate("""() => {
          const { part, wordList } = window.streamgen;
          part.webcam.closest("details").open = true;
          wordList.words = new Set(["a", "red", "ball"]);
          part.inputUnknown.hidden = false;
        }""")
        page.fill(FIELD, SHOWS)
        said(page, "inputUnknown", "“xball” nearest: ball")
        page.press(FIELD, "Enter")
        stream: Any = stage.engine.opened[-1]
        wait_until(lambda: stream.settings.get("input_prompt") == SHOWS)
        said(page, "log", f"settings: input_prompt {SHOWS}")
        assert any(row.get("settings") == {"input_prompt": SHOWS} for row in stream.timeline()["events"])

        # the fake engine takes no 13
        page.fill(FIELD, "13")
        page.press(FIELD, "Enter")
        said(page, "noticeText", "13 is unlucky")
        holds(page, SHOWS)

        page.reload()
        page.wait_for_selector(".sg[data-state=playing]")
        holds(page, SHOWS)
        shown(page, stream.next_frame)
        page.click("[data-do=share]")
        page.click("[data-do=linkSettings]")
        other = context.new_page()
        other.goto(page.input_value("[data-part=shareLink]"))
        other.wait_for_selector(".sg[data-state=ready]")
        holds(other, SHOWS)
        other.click("[data-part=startButton]")
        shown(other, 4)
        assert stage.engine.opened[-1] is not stream
        assert stage.engine.opened[-1].settings["input_prompt"] == SHOWS
