"""The first seconds on the page: what it shows before a start, words by kind, presets, one figure."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page
from typer.testing import CliRunner

import demo.loop
from demo.assets import STATIC
from demo.bench_page import WATCH_SHIFT
from demo.fake_engine import FakeEngine
from demo.loop import red_thing, write
from demo.word_kinds import KINDS, drawn_by, kinds_of
from distill.scenes.vocabulary import BACKGROUND_PHRASES, BACKGROUNDS, COLOURS, MOTION_PHRASES, SHAPES, SIZES
from streamgen.errors import InputError
from tests.demo_pages import Stage, context_of, no_errors, said, settled, shown

WORDS = (STATIC.parents[1] / "streamgen/weights/tiny/vocabulary.txt").read_text(encoding="utf-8").split()


# -- words by kind


def test_the_words_by_kind_are_those_of_the_world_the_shipped_models_know() -> None:
    assert KINDS["size"] == SIZES
    assert KINDS["colour"] == COLOURS
    assert KINDS["shape"] == SHAPES
    assert set(KINDS["motion"]) == {phrases[0][0] for phrases in MOTION_PHRASES.values()}
    assert KINDS["place"] == tuple(BACKGROUND_PHRASES[name][0] for name in BACKGROUNDS)
    assert kinds_of(WORDS) == dict(KINDS), "the shipped model knows all of them"
    assert kinds_of(["red", "circle"]) == {}, "of another world"


def test_a_line_says_what_a_model_draws() -> None:
    assert drawn_by(WORDS, True) == (
        "Draws 6 shapes in 8 colours that move over 6 grounds, "
        "and follows drags, paths, boxes, pins and the camera."
    )
    assert drawn_by(None, False) == "Draws what you describe, in any words, and follows words alone."
    assert drawn_by(["one", "two"], False).startswith("Draws what its 2 words say")


# -- the recording


def test_in_the_recording_the_thing_follows_the_line_that_is_drawn_over_it() -> None:
    about = json.loads((STATIC / "loop.json").read_text())
    sheet = np.asarray(Image.open(STATIC / "loop.webp").convert("RGB"))
    height, width, columns = about["height"], about["width"], about["columns"]
    assert sheet.shape[1] == columns * width
    line = about["line"]
    away = []
    for frame in range(round(line[0][0]), round(line[-1][0])):
        top, left = frame // columns * height, frame % columns * width
        x, y = red_thing(sheet[top : top + height, left : left + width])
        at = [np.interp(frame, [knot[0] for knot in line], [knot[axis] for knot in line]) for axis in (1, 2)]
        away.append(np.hypot(x - at[0], y - at[1]))
    assert max(away) < 0.16
    assert float(np.mean(away)) < 0.1
    assert about["frames"] <= sheet.shape[0] // height * columns


def test_a_recording_is_written_as_one_picture_and_what_happens_in_it(tmp_path: Path) -> None:
    frames = np.zeros((13, 8, 16, 3), np.uint8)
    frames[11] = 255
    write(frames, {"fps": 16.0, "frames": 13}, tmp_path / "loop.webp", 90)
    sheet = np.asarray(Image.open(tmp_path / "loop.webp").convert("RGB"))
    assert sheet.shape == (2 * 8, demo.loop.COLUMNS * 16, 3)
    assert sheet[8:, 16:32].min() > 240
    assert json.loads((tmp_path / "loop.json").read_text()) == {
        "fps": 16.0, "frames": 13, "width": 16, "height": 8,
    }  # fmt: skip
    with pytest.raises(InputError, match="nothing red"):
        red_thing(frames[0])


def test_a_model_that_is_not_there_is_told_in_a_line(tmp_path: Path) -> None:
    made = CliRunner().invoke(demo.loop.app, ["-o", str(tmp_path / "loop.webp"), "--model", "nowhere"])
    assert made.exit_code == 2
    assert "nowhere" in made.output
    assert not (tmp_path / "loop.webp").exists()


# -- on the page


@pytest.fixture(scope="module")
def page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    engine = FakeEngine(seconds=0.01)
    known = {"words": tuple(WORDS), "kinds": kinds_of(WORDS), "draws": drawn_by(WORDS, True)}
    engine._info = replace(engine.info, **known)  # type: ignore[arg-type]
    stage = Stage(tmp_path_factory.mktemp("shelf"), engine=engine)
    stage.start()
    with context_of(browser) as context:
        made = context.new_page()
        with no_errors(made):
            made.goto(stage.address)
            made.wait_for_selector(".sg[data-state=ready]")
            yield made
    stage.stop()


@pytest.mark.slow
def test_the_first_seconds(page: Page) -> None:
    """Before a start, then words, presets and the figure; in one page, since each costs seconds."""
    tools = "window.streamgen.part.tools.getBoundingClientRect().bottom"
    assert page.evaluate(tools) <= 720, "words by kind leave the tools in sight"
    page.evaluate(WATCH_SHIFT)
    before_a_start(page)
    page.click("[data-part=startButton]")
    shown(page, 4)
    assert not page.is_visible("[data-part=opening]")
    unknown_words(page)
    chips(page)
    presets(page)
    sizes = "performance.getEntriesByType('resource').filter((r) => r.name.includes('/live/static/'))"
    assert 30_000 < page.evaluate(f"{sizes}.reduce((sum, r) => sum + r.transferSize, 0)") <= 150_000
    assert page.evaluate("window.shift") <= 0.05


def before_a_start(page: Page) -> None:
    page.wait_for_selector("[data-part=opening]:not([hidden])")
    said(page, "draws", "Draws 6 shapes in 8 colours")
    said(page, "loopWords", "a medium red circle stays over the snow")
    drawn = """() => {
      const canvas = window.streamgen.part.loopPaint;
      const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      return data.some((value, i) => i % 4 === 3 && value > 100);
    }"""
    page.wait_for_function(drawn)
    said(page, "loopWords", "a medium blue star stays over the snow")
    page.wait_for_function(f"() => !({drawn})()")
    page.click("[data-part=loopHold]")
    settled(page)
    frame = page.evaluate("window.streamgen.opening.frame")
    page.wait_for_timeout(300)
    assert page.evaluate("window.streamgen.opening.frame") == frame
    assert page.text_content("[data-part=loopHold]") == "Play the recording"
    assert "Steps (made for 4)" in (page.text_content("[data-part=sliders]") or "")


def unknown_words(page: Page) -> None:
    page.fill("[data-part=prompt]", "a smal red xylophone stays over the")
    page.press("[data-part=prompt]", "End")
    page.keyboard.type(" sn")
    assert page.locator("[data-part=mirror] mark").all_text_contents() == ["smal", "xylophone"]
    assert "“sn”" not in (page.text_content("[data-part=unknown]") or ""), "it may still become snow"
    page.keyboard.type("q ")
    assert page.locator("[data-part=mirror] mark").all_text_contents() == ["smal", "xylophone", "snq"]
    assert page.locator("[data-part=unknown] button").all_text_contents() == ["small", "snow"]
    page.get_by_role("button", name="Write small in place of smal").click()
    page.get_by_role("button", name="Write snow in place of snq").click()
    assert page.input_value("[data-part=prompt]") == "a small red xylophone stays over the snow "
    assert page.locator("[data-part=mirror] mark").all_text_contents() == ["xylophone"]


def chips(page: Page) -> None:
    chip = lambda kind, name: page.locator(f"[aria-label={kind}] button:text-is('{name}')")  # noqa: E731
    chip("shape", "star").click()
    assert page.input_value("[data-part=prompt]") == "a small red star stays over the snow", (
        "somebody is at it"
    )
    said(page, "now", "a small red circle moves right over the sea")
    page.press("[data-part=prompt]", "Enter")
    said(page, "now", "a small red star stays over the snow")
    chip("colour", "blue").click()
    said(page, "now", "a small blue star stays over the snow")
    assert chip("colour", "blue").get_attribute("aria-pressed") == "true"
    assert chip("colour", "red").get_attribute("aria-pressed") == "false"
    said(page, "appeared", "appeared after ")
    said_last = page.locator(".sg-head").inner_text().split("\n")[-1]
    assert re.fullmatch(r"Your change appeared after \d*\.\d s", said_last)


def presets(page: Page) -> None:
    page.click("[data-preset=in]")
    # this one first: it is there for four seconds
    said(page, "held", "camera: zooms in, 4 s")
    said(page, "log", "camera: zooms in, 4 s")
    page.click("[data-part=advanced] > summary")
    assert "read again under the new words" in page.inner_text("[data-part=advanced]")
    assert not page.is_visible("[data-figure=control]")
    page.click("[data-part=details] > summary")
    assert page.is_visible("[data-figure=control]")
