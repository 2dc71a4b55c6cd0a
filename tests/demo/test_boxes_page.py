"""Boxes, grids and numbered gestures on the page, in a real browser over a fake engine."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

from tests.demo_pages import Stage, said, served, shown


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    # a browser on a busy machine takes its time to come back
    with served(tmp_path_factory.mktemp("shelf"), closed_seconds=20.0) as made:
        yield made


def pull(page: Page, *points: tuple[float, float]) -> None:
    """Press at the first point of the picture, go through the others, let go."""
    box = page.locator("canvas[data-part=paint]").bounding_box()
    assert box
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def listed(page: Page) -> str:
    return page.locator("[data-part=held]").inner_text().replace("\n", " ")


def in_force(stage: Stage) -> set[str]:
    return {gesture.name for gesture in stage.engine.opened[-1].gestures}


# Whether something is drawn over the picture about a point.
PAINTED = """([x, y]) => {
  const canvas = window.streamgen.part.paint, size = 14;
  const [left, top] = [x * canvas.width - size / 2, y * canvas.height - size / 2];
  const data = canvas.getContext("2d").getImageData(left, top, size, size).data;
  return data.some((value, i) => i % 4 === 3 && value > 100);
}"""


@pytest.mark.slow
def test_what_is_placed_while_paused_is_drawn_numbered_and_let_go_of_one_by_one(
    page: Page, stage: Stage
) -> None:
    page.keyboard.press("Space")
    page.wait_for_selector(".sg[data-state=paused]")

    page.keyboard.press("b")
    pull(page, (0.1, 0.1), (0.11, 0.11))
    said(page, "chip", "no size")
    pull(page, (0.1, 0.1), (0.3, 0.3))
    page.fill("[data-part=boxName]", "the ball")
    page.click("[data-do=boxSend]")
    said(page, "chip", "Move the box or pull its corner first")
    pull(page, (0.2, 0.2), (0.6, 0.6))
    pull(page, (0.7, 0.7), (0.8, 0.8))
    page.click("[data-do=boxSend]")
    said(page, "held", "box: the ball, from the upper left to the middle, grows to 200 % (waits)")
    said(page, "chip", "It begins when the stream goes on")

    page.keyboard.press("p")
    page.fill("[data-part=gridSize]", "20")
    pull(page, (0.2, 0.8), (0.8, 0.8))
    said(page, "held", "path: something red, from the lower left to the lower right (waits)")
    page.select_option("[data-part=shape]", "circle")
    assert "Tap a thing" in (page.locator("[data-part=hint]").text_content() or "")
    pull(page, (0.5, 0.2), (0.5, 0.2))
    page.wait_for_function("window.streamgen.held.rows.length === 3")
    page.keyboard.press("i")
    page.fill("[data-part=gridSize]", "0")
    pull(page, (0.9, 0.2), (0.9, 0.2))
    said(page, "held", "pin")
    # a drag has nothing to move while paused: it becomes a path
    page.keyboard.press("d")
    pull(page, (0.1, 0.5), (0.4, 0.5))
    page.wait_for_function("window.streamgen.held.rows.length === 4")
    assert in_force(stage) == set()
    page.wait_for_function(PAINTED, arg=[0.5, 0.8])
    assert not page.evaluate(PAINTED, [0.95, 0.95])

    page.get_by_role("button", name="Let go of path 2").click()
    page.wait_for_function("window.streamgen.held.rows.length === 3")
    page.keyboard.press("Space")
    page.wait_for_selector(".sg[data-state=playing]")
    assert not page.evaluate("window.streamgen.notices.chips.has('waits')"), "nothing waits any more"
    said(page, "log", "box: the ball, from the upper left to the middle, grows to 200 %")
    said(page, "log", "pins: 1 held at the upper right")
    page.wait_for_function("() => !window.streamgen.part.held.textContent.includes('waits')")
    assert {"box 1", "path 3", "path 4", "pins"} >= in_force(stage)
    assert "pins" in in_force(stage)
    page.get_by_role("button", name="Let go of pins p1").click()
    page.wait_for_function("() => window.streamgen.part.held.textContent.includes('Nothing holds')")
    said(page, "log", "let go: pins")


def test_a_drag_stays_drawn_until_it_is_over_and_says_where_it_led(page: Page, stage: Stage) -> None:
    pull(page, (0.2, 0.2), (0.8, 0.8))
    said(page, "log", "something red, from the upper left to the lower right")
    page.wait_for_function("() => window.streamgen.part.held.textContent.includes('Nothing holds')")
    page.reload()
    page.wait_for_selector(".sg[data-state=playing]")
    said(page, "log", "something red, from the upper left to the lower right")


@pytest.mark.slow
def test_a_box_by_keyboard(page: Page, stage: Stage) -> None:
    page.focus("canvas[data-part=paint]")
    page.keyboard.press("b")
    for key in ["Enter", *["Shift+ArrowRight"] * 2, *["Shift+ArrowDown"] * 2, "Enter"]:
        page.keyboard.press(key)
    for key in [*["ArrowLeft"] * 6, *["Shift+ArrowUp"] * 2, "Enter"]:
        page.keyboard.press(key)
    said(page, "log", "box: something red, ")
    (row,) = page.evaluate("window.streamgen.held.rows.map((row) => row.knots)")
    first, last = row[0][1:], row[-1][1:]
    assert last[2] - last[0] == pytest.approx(first[2] - first[0])
    assert last[3] - last[1] == pytest.approx(first[3] - first[1] + 0.1, abs=0.01)
    assert (last[0] + last[2]) / 2 < 0.5
    page.keyboard.press("c")
    said(page, "log", "let go: all")
    shown(page, 8)
