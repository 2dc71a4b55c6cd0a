"""The demo in a real browser: headless Chromium against the demo's server with the shipped model.

All waits are on conditions; how long they may take is for slow machines. Colours are told by which channel
stands out, since what exactly the model paints is not the matter here.
"""

import io
import json
import re
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page

from demo.__main__ import main
from streamgen.video.read import read_clip
from tests.forked import Forked, call_forked
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
# Seconds; a machine that has nothing else to do needs a small part of it.
PATIENCE = 240.0
SEED = 3

# Pixels of the shown picture: of 64 x 64, how many stand out as red, as blue, and where the red ones are.
COLOURS = """() => {
  const canvas = document.querySelector("canvas[data-part=video]");
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let red = 0, blue = 0, x = 0, y = 0;
  for (let i = 0; i < data.length; i += 4) {
    const [r, g, b] = [data[i], data[i + 1], data[i + 2]];
    if (r > 120 && r > 2 * g && r > 2 * b) {
      red += 1;
      x += (i / 4) % canvas.width + 0.5;
      y += Math.floor(i / 4 / canvas.width) + 0.5;
    }
    if (b > 120 && b > 1.4 * g && b > 2 * r) blue += 1;
  }
  return { red, blue, x: x / Math.max(red, 1) / canvas.width, y: y / Math.max(red, 1) / canvas.height };
}"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    port = free_port()
    command = typer.Typer()
    command.command()(main)
    server = Forked("--port", port, "--max-sessions", "3", cwd=ROOT, command=command)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/live/health", timeout=5):
                    break
            except OSError:
                assert server.poll() is None, server.stderr.read()
                assert time.monotonic() < deadline, "the demo does not come up"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
        server.send_signal(signal.SIGTERM)
        server.wait(PATIENCE)
    finally:
        server.kill()


@pytest.fixture
def context(address: str, browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(viewport={"width": 1200, "height": 900})
    made.set_default_timeout(PATIENCE * 1000)
    outside: list[str] = []
    made.on("request", lambda r: None if local(r.url, address) else outside.append(r.url))
    yield made
    made.close()
    assert not outside, "the page asks other machines for something"


def local(url: str, address: str) -> bool:
    return url.startswith((address, address.replace("http", "ws"), "data:", "blob:"))


def open_page(context: BrowserContext, address: str) -> Page:
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".sg[data-state=ready]")
    assert not errors
    return page


def start(page: Page, prompt: str, seed: int = SEED) -> None:
    page.fill("[data-part=prompt]", prompt)
    page.fill("[data-part=seed]", str(seed))
    page.click("[data-part=startButton]")
    shown(page, 8)


def shown(page: Page, frame: int) -> None:
    """Wait until this frame, or a later one, is on screen."""
    page.wait_for_function("frame => window.streamgen.player.shown >= frame", arg=frame)


def frame_now(page: Page) -> int:
    return int(page.evaluate("window.streamgen.player.shown"))


def running(address: str) -> int:
    with urllib.request.urlopen(address + "live/health", timeout=60) as answer:
        found = re.search(rb'"running":(\d+)', answer.read())
    assert found
    return int(found[1])


def wait_for_running(address: str, count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while running(address) != count:
        assert time.monotonic() < deadline, f"{running(address)} sessions run, expected {count}"
        time.sleep(0.1)


def wait_colours(page: Page, condition: str) -> None:
    page.wait_for_function(f"() => {{ const c = ({COLOURS})(); return {condition}; }}")


def test_a_stream_from_start_to_download(context: BrowserContext, address: str, tmp_path: Path) -> None:
    """Start, frames move, new words show, pause, rewind, branch, return, save."""
    page = open_page(context, address)
    start(page, "a medium red circle stays over the snow")
    wait_colours(page, "c.red > 60 && c.red > 4 * c.blue")
    before = page.evaluate("document.querySelector('canvas[data-part=video]').toDataURL()")
    shown(page, frame_now(page) + 4)
    assert page.evaluate("document.querySelector('canvas[data-part=video]').toDataURL()") != before
    shown(page, 30)

    page.fill("[data-part=prompt]", "a medium blue circle stays over the snow")
    page.press("[data-part=prompt]", "Enter")
    wait_colours(page, "c.blue > 60 && c.blue > 4 * c.red")
    applied = page.locator("[data-part=log] li[data-kind=prompt]").first
    assert "a medium blue circle" in (applied.text_content() or "")
    switched_at = int(applied.get_attribute("data-frame") or "0")
    assert 30 <= switched_at <= frame_now(page)
    assert page.locator("[data-figure=control]").text_content()

    page.click("[data-part=play]")
    page.wait_for_selector(".sg[data-state=paused]")
    at, count = frame_now(page), page.evaluate("window.streamgen.player.counts.shown")
    page.click("[data-do=step]")
    shown(page, at + 1)
    # one picture: the next one that came, since a slow machine leaves some out for being late
    assert page.evaluate("window.streamgen.player.counts.shown") == count + 1
    assert frame_now(page) <= at + 4

    page.focus("[data-part=scrub]")
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    page.wait_for_selector("[data-part=preview]:not([hidden])")
    page.keyboard.press("Enter")
    page.wait_for_function("window.streamgen.epoch === 2")
    assert frame_now(page) < switched_at
    assert page.input_value("[data-part=prompt]") == "a medium red circle stays over the snow"
    page.wait_for_selector("[data-part=takes] button")

    page.click("[data-part=play]")
    shown(page, switched_at)
    wait_colours(page, "c.red > 60 && c.red > 4 * c.blue")
    page.click("[data-part=takes] button")
    page.wait_for_function("window.streamgen.epoch === 3")
    page.wait_for_selector(".sg[data-state=playing]")
    wait_colours(page, "c.blue > 60 && c.blue > 4 * c.red")
    check_downloads(page, tmp_path)


def check_downloads(page: Page, folder: Path) -> None:
    """The video that was shown, and the record which renders to it bit for bit."""
    page.click("[data-part=play]")
    page.wait_for_selector(".sg[data-state=paused]")
    last = frame_now(page)
    with page.expect_download() as video:
        page.click("[data-part=clip]")
    video.value.save_as(folder / "session.mp4")
    frames = read_clip(folder / "session.mp4", 16, 64, 64, 100_000)
    assert len(frames) == last + 1
    red, _, blue = frames[-1].reshape(-1, 3).astype(int).T
    assert ((blue > 120) & (blue > 1.3 * red)).sum() > 40
    with page.expect_download() as timeline:
        page.click("[data-part=timeline]")
    timeline.value.save_as(folder / "session.json")
    done = call_forked("render", "session.json", "-o", "again.mp4", "--json", cwd=folder)
    assert done.code == 0, done
    made = json.loads((folder / "again.json").read_text())
    assert made["replay"]["equal"] is True
    again = read_clip(folder / "again.mp4", 16, 64, 64, 100_000)[: len(frames)]
    assert np.abs(again.astype(int) - frames.astype(int)).mean() < 2


@pytest.mark.slow
def test_a_drag_takes_the_thing_along(context: BrowserContext, address: str) -> None:
    page = open_page(context, address)
    start(page, "a large red circle stays over the sand", seed=0)
    wait_colours(page, "c.red > 100")
    shown(page, 20)
    at = page.evaluate(COLOURS)
    target = (0.25 if at["x"] > 0.5 else 0.75, 0.25 if at["y"] > 0.5 else 0.75)
    box = page.locator("canvas[data-part=paint]").bounding_box()
    assert box
    place = lambda x, y: (box["x"] + x * box["width"], box["y"] + y * box["height"])  # noqa: E731
    page.mouse.move(*place(at["x"], at["y"]))
    page.mouse.down()
    for step in range(1, 11):
        share = step / 10
        x, y = (at["x"] + share * (target[0] - at["x"]), at["y"] + share * (target[1] - at["y"]))
        page.mouse.move(*place(x, y), steps=2)
        shown(page, frame_now(page) + 2)
    shown(page, frame_now(page) + 24)
    page.mouse.up()
    far = "Math.hypot(c.x - {}, c.y - {})".format(*target)
    began = "Math.hypot({} - {}, {} - {})".format(at["x"], target[0], at["y"], target[1])
    wait_colours(page, f"c.red > 50 && {far} < 0.5 * {began}")
    shown(page, frame_now(page) + 12)
    assert page.locator("[data-part=log] li[data-kind=drag]").count() == 1


@pytest.mark.slow
def test_two_tabs_are_two_streams_and_a_closed_one_makes_room(context: BrowserContext, address: str) -> None:
    wait_for_running(address, 0)
    one, two = open_page(context, address), open_page(context, address)
    start(one, "a large red circle stays over the snow")
    start(two, "a large blue circle stays over the snow")
    wait_colours(one, "c.red > 60 && c.red > 4 * c.blue")
    wait_colours(two, "c.blue > 60 && c.blue > 4 * c.red")
    assert running(address) == 2
    two.close()
    wait_for_running(address, 1)
    here = frame_now(one)
    shown(one, here + 8)

    one.reload()
    one.wait_for_selector(".sg[data-state=playing]")
    shown(one, here + 16)
    assert running(address) == 1, "a page that is loaded again finds its own stream"
    wait_colours(one, "c.red > 60 && c.red > 4 * c.blue")
    one.close()
    wait_for_running(address, 0)


@pytest.mark.slow
def test_the_page_tells_what_became_of_words_and_of_the_past(context: BrowserContext, address: str) -> None:
    page = open_page(context, address)
    start(page, "a large red circle stays over the snow")
    page.fill("[data-part=prompt]", "a large red xylophone stays over the snow")
    page.press("[data-part=prompt]", "Enter")
    line = page.locator("[data-part=words]")
    page.wait_for_function(
        "document.querySelector('[data-part=words]').textContent.includes('In effect from')"
    )
    assert "“xylophone” means nothing" in (line.text_content() or "")

    page.click("[data-part=advanced] > summary")
    for part, told in (("recache", "read again"), ("scene", "forgotten")):
        page.click(f"[data-part={part}]")
        page.wait_for_selector(f"[data-part=log] li[data-kind=cache]:has-text('{told}')")

    # fates that the shipped model's quick words do not have
    for receipt, told in (
        ({"status": "accepted", "waiting": "being encoded"}, "Waiting: being encoded."),
        ({"status": "applied", "superseded": ["prompt"], "frame": 9}, "Replaced by newer words"),
        ({"status": "withdrawn"}, "Taken back."),
        ({"status": "refused", "reason": "no room"}, "Not taken: no room."),
        (
            {"status": "applied", "superseded": [], "frame": 9, "dropped": 2},
            "2 tokens more than the model reads",
        ),
    ):
        page.evaluate(
            """told => {
              const live = window.streamgen;
              live.prompts.last = 99;
              live.emit("receipt", { id: 99, kind: "prompt", label: "x", epoch: live.epoch, ...told });
            }""",
            receipt,
        )
        assert told in (line.text_content() or "")
    undone = {"id": 99, "kind": "prompt", "epoch": 0, "status": "applied", "superseded": [], "frame": 1}
    page.evaluate("told => window.streamgen.emit('receipt', told)", undone)
    assert "frame 1)" not in (line.text_content() or "")
    page.click("[data-part=restart]")
    page.wait_for_function("window.streamgen.epoch === 2")
    page.wait_for_selector("[data-part=words]:has-text('xylophone')")


@pytest.mark.slow
def test_bad_messages_are_refused_and_the_stream_goes_on(context: BrowserContext, address: str) -> None:
    page = open_page(context, address)
    start(page, "a large red circle stays over the snow")
    bad = {"type": "stroke", "id": 1, "epoch": 1, "frame": 0, "phase": "begin", "points": [[0, 9, 9]]}
    page.evaluate("message => window.streamgen.send(message)", bad)
    page.wait_for_selector("[data-part=notice]:not([hidden])")
    assert "points" in (page.locator("[data-part=noticeText]").text_content() or "")
    page.click("[data-do=dismiss]")
    page.evaluate("window.streamgen.connection.socket.send('x'.repeat(70000))")
    page.wait_for_function("window.streamgen.connection.tries > 0 || window.streamgen.state === 'playing'")
    shown(page, frame_now(page) + 8)


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_the_page_fits_a_phone_and_works_by_keyboard(address: str, browser: Browser, scheme: str) -> None:
    made = browser.new_context(viewport={"width": 375, "height": 740}, color_scheme=scheme)  # type: ignore[arg-type]
    made.set_default_timeout(PATIENCE * 1000)
    page = open_page(made, address)
    page.keyboard.press("Space")
    shown(page, 4)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.keyboard.press("Space")
    page.wait_for_selector(".sg[data-state=paused]")
    page.keyboard.press("p")
    assert page.is_checked("[data-part=tools] input[value=path]")
    page.keyboard.press("d")
    page.keyboard.press("Space")
    page.wait_for_selector(".sg[data-state=playing]")
    page.focus("canvas[data-part=paint]")
    page.keyboard.press("Enter")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-part=log] li[data-kind=drag]")
    picture = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))
    corner = picture[2:8, 2:8].mean()
    assert (corner > 200) == (scheme == "light")
    made.close()
