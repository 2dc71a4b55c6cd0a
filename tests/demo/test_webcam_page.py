"""A camera in the page: Chromium's made one, refused, not there; and pictures that are dropped."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page

from tests.demo_pages import Stage, frame_now, said, shown
from tests.waiting import wait_until

BROWSER_ARGUMENTS = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@pytest.fixture
def page(page: Page) -> Page:
    """With what it hears kept, and the camera's box open."""
    page.evaluate("""() => {
      window.heardRows = [];
      window.streamgen.on("heard", (row) => window.heardRows.push(row));
      window.streamgen.part.webcam.closest("details").open = true;
    }""")
    return page


@pytest.mark.slow
def test_a_made_camera_is_heard_and_turned_off(page: Page, stage: Stage) -> None:
    page.click("[data-part=webcam]")
    page.wait_for_function("window.heardRows.filter((row) => row.frames.length).length > 2")
    said(page, "webcamText", "from camera to picture")
    assert page.text_content("[data-part=webcam]") == "Camera off"
    stream: Any = stage.engine.opened[-1]
    assert stream.listens
    page.click("[data-part=webcam]")
    said(page, "webcamText", "The camera is off.")
    wait_until(lambda: not stream.listens)
    shown(page, frame_now(page) + 8)
    page.fill("[data-part=strength]", "0.9")
    page.wait_for_function("window.streamgen.part.strengthValue.textContent === '0.90'")
    wait_until(lambda: stream.settings.get("strength") == 0.9)


def test_cameras_that_cannot_be_are_told(page: Page) -> None:
    for how, text in (
        ("NotAllowedError", "said no to the camera"),
        ("NotFoundError", "There is no camera."),
        ("NotReadableError", "used by something else"),
    ):
        page.evaluate(
            """(name) => {
              navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("no", name); };
            }""",
            how,
        )
        page.click("[data-part=webcam]")
        said(page, "webcamText", text)
        assert page.text_content("[data-part=webcam]") == "Use my camera"
    # off localhost over http there is none
    page.evaluate("Object.defineProperty(window, 'isSecureContext', { value: false })")
    page.click("[data-part=webcam]")
    said(page, "webcamText", "over https, or on localhost, alone")


@pytest.mark.slow
def test_a_camera_that_is_lost_is_told_and_the_stream_goes_on(page: Page, stage: Stage) -> None:
    page.click("[data-part=webcam]")
    page.wait_for_function("window.heardRows.length > 1")
    page.evaluate("""() => {
      const track = window.streamgen.webcam.camera.getVideoTracks()[0];
      track.dispatchEvent(new Event("ended"));
    }""")
    said(page, "webcamText", "The camera is gone.")
    stream: Any = stage.engine.opened[-1]
    wait_until(lambda: not stream.listens)
    shown(page, frame_now(page) + 8)


def test_a_dropped_picture_is_shown_cropped_and_then_asked_for(page: Page, stage: Stage) -> None:
    out = io.BytesIO()
    Image.fromarray(np.full((40, 90, 3), 77, np.uint8)).save(out, "PNG")
    data = base64.b64encode(out.getvalue()).decode()
    page.evaluate(
        """async (data) => {
          const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
          const moved = new DataTransfer();
          moved.items.add(new File([bytes], "a.png", { type: "image/png" }));
          const { screen } = window.streamgen.part;
          const how = { dataTransfer: moved, bubbles: true, cancelable: true };
          screen.dispatchEvent(new DragEvent("drop", how));
        }""",
        data,
    )
    said(page, "fileHint", "as it is cropped here")
    page.wait_for_selector("[data-part=picture]")
    page.click("[data-do=pictureScene]")
    said(page, "log", "a picture, scene")
    stream: Any = stage.engine.opened[-1]
    events = [entry.event for entry in stream.events if entry.event.picture is not None]
    assert events
    assert events[-1].picture.use == "scene"
