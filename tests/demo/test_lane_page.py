"""Blocks that are added to the lane by hand: settings, moves of the camera, what is drawn on the picture; and
motion that a timeline brought, on the picture.
"""

import json

import pytest
from playwright.sync_api import Page

from streamgen import StreamEvent
from streamgen.motion.tracks import path
from streamgen.stream.timeline import Timeline
from tests.demo_pages import frame_now, said, settled

# What was added and is not sent yet, as the server is told it.
ADDED = """() => Object.fromEntries([...window.streamgen.lane.changes.values()].map(
  (change) => [change.motion?.type || (change.settings ? "settings" : "prompt"), change]))"""
BLOCKS = """() => window.streamgen.lane.changes.size ? [] : window.streamgen.lane.blocks.slice(1)
  .map(({ kind, label, frame, end }) => [kind, label, frame, end]).sort()"""


def add(page: Page, what: str) -> None:
    page.select_option("[data-part=laneKind]", what)
    page.click("[data-do=laneAdd]")


def draw(page: Page) -> None:
    """A line on the picture, from left to right."""
    page.locator("canvas[data-part=paint]").scroll_into_view_if_needed()
    box = page.locator("canvas[data-part=paint]").bounding_box()
    assert box
    y = box["y"] + 0.5 * box["height"]
    page.mouse.move(box["x"] + 0.2 * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], y, steps=12)
    page.mouse.up()


@pytest.mark.slow
def test_settings_camera_and_drawn_paths_are_added_and_played(page: Page) -> None:
    page.click("[data-part=lane] summary")
    page.wait_for_function("window.streamgen.lane.blocks.length > 0")
    # so that what is ahead stays ahead, however long the hands take
    page.click("[data-part=play]")
    page.wait_for_selector(".sg[data-state=paused]")

    add(page, "settings")
    assert page.is_hidden("[data-part=laneWords]")
    page.select_option("[data-part=laneSetting]", "steps")
    page.fill("[data-part=laneValue]", "7")
    page.press("[data-part=laneValue]", "Enter")
    said(page, "laneText", "1 edit. From 0:")
    said(page, "laneText", "without going back")

    add(page, "drift")
    assert page.locator("[data-part=laneBlocks] [data-kind=camera]").text_content() == "Drift right"
    page.fill("[data-part=laneLong]", "1")
    page.press("[data-part=laneLong]", "Enter")

    add(page, "drawn")
    said(page, "laneText", "Draw a path or a box on the picture")
    draw(page)
    said(page, "laneText", "3 edits.")
    assert page.evaluate("window.streamgen.held.rows.length") == 0, "nothing of it is sent yet"

    added = page.evaluate(ADDED)
    assert added["settings"]["settings"] == {"steps": 7}
    assert added["camera"]["frames"] == 16
    assert added["path"]["motion"]["points"][-1][1] == pytest.approx(0.7, abs=0.02)
    assert min(change["frame"] for change in added.values()) > frame_now(page)

    page.click("[data-part=lanePlay]")
    page.click("[data-part=play]")
    kinds = [["camera", "camera"], ["path", "path"], ["settings", "settings"]]
    page.wait_for_function(f"() => ({BLOCKS})().length === {len(kinds)}")
    blocks = {kind: (label, frame, end) for kind, label, frame, end in page.evaluate(BLOCKS)}
    assert blocks["settings"][0] == "steps 7"
    assert blocks["camera"][2] - blocks["camera"][1] == 16
    page.wait_for_function("window.streamgen.settings.holds.steps === 7")

    # in the log, as it is soon over
    draw(page)
    page.wait_for_selector("[data-part=log] li[data-kind=drag]")


# By the frame on screen, the numbers of what is drawn; and a colour of what is drawn over the picture.
KEEP = """() => {
  const { held, epoch } = window.streamgen;
  window.drawn = [];
  window.streamgen.on("shown", (frame) => {
    if (frame.epoch > epoch) window.drawn.push([frame.frame, held.visible().map((row) => row.number)]);
  });
}"""
COLOUR = """([x, y]) => {
  const { paint } = window.streamgen.part;
  return [...paint.getContext("2d").getImageData(x * paint.width, y * paint.height, 1, 1).data];
}"""
BLUE, NOTHING = [0x60, 0xA5, 0xFA], [0, 0, 0, 0]


@pytest.mark.slow
def test_motion_of_an_opened_timeline_is_drawn_while_it_is_in_force(page: Page) -> None:
    timeline = Timeline(16.0, 3)
    timeline.record(0, 0, StreamEvent("a red ball"))
    short = path([(0, 0.2, 0.2), (1, 0.8, 0.2)], 16.0)
    timeline.record(3, 9, StreamEvent(gestures={"path 1": short}))
    timeline.record(9, 33, StreamEvent(gestures={"path 2": path([(0, 0.2, 0.5), (99, 0.8, 0.5)], 16.0)}))
    page.evaluate(KEEP)
    page.evaluate(
        "body => fetch(window.streamgen.connection.url('open'), { method: 'POST', body })",
        json.dumps(timeline.to_json()),
    )
    page.wait_for_function("window.drawn.length > 0 && window.streamgen.player.shown >= 37")
    page.click("[data-part=play]")
    page.wait_for_selector(".sg[data-state=paused]")
    settled(page)
    assert page.evaluate(COLOUR, [0.5, 0.5])[:3] == pytest.approx(BLUE, abs=20)
    assert page.evaluate(COLOUR, [0.5, 0.2]) == NOTHING, "it is over"
    assert "path: from the timeline" in (page.text_content("[data-part=held]") or "")
    for frame, numbers in page.evaluate("window.drawn"):
        assert numbers == ([1] if 9 <= frame < 9 + short.num_frames else [2] if frame >= 33 else []), frame

    # before it there is nothing of it
    page.evaluate("window.streamgen.send({ type: 'rewind', mark: window.streamgen.strip.marks[0].id })")
    page.wait_for_function("window.streamgen.player.shown < 33")
    settled(page)
    assert page.evaluate("window.streamgen.held.rows.length") == 0
    assert page.evaluate(COLOUR, [0.5, 0.5]) == NOTHING
