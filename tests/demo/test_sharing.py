"""Sharing in a real browser over a fake engine: links, watchers, exports, full screen."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.demo_pages import Stage, context_of, frame_now, open_page, said, served, shown, words


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with served(tmp_path_factory.mktemp("shelf"), closed_seconds=2.0) as made:
        yield made


def link_of(page: Page, what: str) -> str:
    """The link that a button of the dialog makes."""
    page.evaluate("window.streamgen.part.shareLink.value = ''")
    page.click("[data-do=share]")
    page.click(f"[data-do={what}]")
    page.wait_for_function("window.streamgen.part.shareLink.value")
    link = page.input_value("[data-part=shareLink]")
    page.click("[data-do=shareClose]")
    return link


def begin_again(begun: Page, link: str, stage: Stage) -> None:
    """The same words, seed and settings in another's page, which begins nothing by itself."""
    begun.goto(link)
    begun.wait_for_selector(".sg[data-state=ready]")
    assert begun.input_value("[data-part=prompt]") == "a red ball"
    assert begun.input_value("[data-part=seed]") == "41"
    assert begun.input_value("[data-setting=steps]") == "7"
    begun.click("[data-part=startButton]")
    shown(begun, 2)
    stream = stage.engine.opened[-1]
    assert (stream.prompt, stream.seed, stream.settings["steps"]) == ("a red ball", 41, 7)
    assert "#" not in begun.url
    begun.close()


@pytest.mark.slow
def test_a_stream_is_watched_exported_and_begun_again_by_links(browser: Browser, stage: Stage) -> None:
    with context_of(browser) as context, context_of(browser) as others:
        page = open_page(context, stage)
        page.fill("[data-part=seed]", "41")
        page.click("[data-part=restart]")
        page.wait_for_function("window.streamgen.epoch === 2")
        words(page, "a blue ball & a <b>green</b> one")
        page.evaluate("window.streamgen.settings.inputs.steps.input.value = 7")

        # who watches sees the picture and has nothing to steer with
        watcher = others.new_page()
        errors: list[str] = []
        watcher.on("pageerror", lambda error: errors.append(str(error)))
        watcher.goto(link_of(page, "linkWatch"))
        watcher.wait_for_selector(".sg[data-watching][data-state=playing]")
        shown(watcher, frame_now(page))
        said(watcher, "now", "a blue ball & a <b>green</b> one")
        said(page, "watchers", "1 watch")
        words(page, "a red ball")
        said(watcher, "now", "a red ball")
        watcher.wait_for_selector("[data-part=log] li[data-kind=prompt]")
        assert watcher.locator(".sg-controls").is_hidden()
        assert watcher.locator("[data-needs]:enabled").count() == 0
        for key in (" ", "r", "c", "a"):
            watcher.keyboard.press(key)
        watcher.evaluate("window.streamgen.connection.socket.send(JSON.stringify({ type: 'pause' }))")
        said(watcher, "noticeText", "only watches")
        page.click("[data-part=play]")
        watcher.wait_for_selector(".sg[data-state=paused]")
        assert page.evaluate("window.streamgen.epoch") == 2

        begin_again(others.new_page(), link_of(page, "linkSettings"), stage)

        # exports of the dialog
        page.click("[data-do=share]")
        assert page.locator("[data-part=scale] option:checked").text_content() == "512×512"
        page.select_option("[data-part=scale]", index=0)
        for suffix in ("webm", "gif"):
            page.select_option("[data-part=format]", suffix)
            with page.expect_download() as saved:
                page.click("[data-do=export]")
            assert saved.value.suggested_filename == f"streamgen.{suffix}"
            assert saved.value.path().stat().st_size > 1000
        page.click("[data-do=unwatch]")
        watcher.wait_for_selector(".sg[data-state=lost]")
        said(watcher, "coverText", "The link to watch was taken back.")
        watcher.click("[data-part=startButton]")
        said(watcher, "coverText", "Nothing plays under this link")
        assert not errors


# Controls that say how a change is made, or what this browser shows, rather than what a stream begins with.
NOT_IN_LINKS = {
    "file": "pictures are with the server, and are too large for a link",
    "timelineFile": "a timeline has a link of its own",
    **dict.fromkeys(("hold", "over", "way", "cache", "sink"), "how the next change of words is made"),
    **dict.fromkeys(("shape", "gridSize", "gridSpacing", "boxName", "boxSeconds"), "of what is drawn next"),
    "sg-tool": "what the pointer does",
    **dict.fromkeys(("laneWords", "laneSetting", "laneValue"), "of a block of the timeline"),
    **dict.fromkeys(("laneAt", "laneLong", "laneKind"), "of a block of the timeline"),
    "pixelated": "how this browser enlarges",
    **dict.fromkeys(("scrub", "compareAt"), "moments of what has played"),
    **dict.fromkeys(("format", "scale"), "of a file that is saved"),
    "shareLink": "the link itself",
}
IN_LINKS = {
    "prompt": "a red ball",
    "seed": "41",
    "inputPrompt": "a desk",
    "strength": "0.6",
    "steps": "7",
    "text_guidance": "4.5",
    "motion_guidance": "0.5",
    "style": "0.25",
    "pace": "-0.5",
}
CONTROLS = """() => [...document.querySelectorAll(".sg input, .sg select, .sg textarea")].map(
  ({ dataset: { part, setting, lora }, name }) => part || setting || lora || name)"""
ANSWERED = """() => {
  const { waiting, asked } = window.streamgen.settings;
  return !Object.keys(waiting).length && !asked.size;
}"""
FIELD = "[data-part={0}], [data-setting={0}], [data-lora={0}]"


@pytest.fixture
def tuned(tmp_path: Path) -> Iterator[Stage]:
    """A model with LoRAs whose strengths may change."""
    with served(tmp_path) as stage:
        settings = dict(stage.engine.info.settings) | {"strength": 0.75}
        loras = {"style": 1.0, "pace": 0.5}
        stage.engine._info = replace(stage.engine.info, settings=settings, loras=loras)
        yield stage


@pytest.mark.slow
def test_a_link_says_what_every_control_holds_and_a_refusal_puts_it_back(
    browser: Browser, tuned: Stage
) -> None:
    """The camera's strength was not in links, the LoRAs' neither, and both stayed where a refused change had
    put them.
    """
    with context_of(browser) as context:
        page = open_page(context, tuned, begin=False)
        assert {*page.evaluate(CONTROLS)} == {*NOT_IN_LINKS, *IN_LINKS}
        page.evaluate("location.hash = '#lora=mood:1,style:0.5,pace:1e30'")
        for part in ("mood:1", "pace:1e30"):
            said(page, "noticeText", f"lora: expected NAME:STRENGTH of style, pace, found “{part}”")
        before = {name: page.input_value(FIELD.format(name)) for name in IN_LINKS}
        assert (before["style"], before["pace"]) == ("0.5", "0.5")
        page.evaluate("for (const box of document.querySelectorAll('details')) box.open = true")
        for name, value in IN_LINKS.items():
            page.fill(FIELD.format(name), value)
        link = link_of(page, "linkSettings")
        page.close()

        page = context.new_page()
        page.goto(link)
        page.wait_for_selector(".sg[data-state=ready]")
        assert {name: page.input_value(FIELD.format(name)) for name in IN_LINKS} == IN_LINKS
        assert all(before[name] != value for name, value in IN_LINKS.items())
        page.click("[data-part=startButton]")
        shown(page, 2)
        stream = tuned.engine.opened[-1]
        begun = {"strength": 0.6, "steps": 7, "text_guidance": 4.5, "motion_guidance": 0.5}
        assert stream.settings == begun | {"input_prompt": "a desk", "lora": "style:0.25,pace:-0.5"}

        tuned.engine.refuses = "not now"
        page.evaluate("for (const box of document.querySelectorAll('details')) box.open = true")
        # words are left alone: they may be what somebody writes
        sliders = [name for name in IN_LINKS if name not in ("prompt", "seed", "inputPrompt")]
        for name in sliders:
            page.fill(FIELD.format(name), "1")
            page.wait_for_function(ANSWERED)
            assert page.input_value(FIELD.format(name)) == IN_LINKS[name]
        said(page, "noticeText", "not now")


HOSTILE = (
    "#prompt=%3Cimg%20src%3Dx%20onerror%3D%22window.bad%3D1%22%3E&seed=-1&steps=9000&text_guidance=NaN&evil=1"
)


@pytest.mark.slow
def test_hostile_and_outdated_links_change_nothing_but_fields(browser: Browser, stage: Stage) -> None:
    with context_of(browser) as context:
        page = context.new_page()
        begun = len(stage.engine.opened)
        page.goto(stage.address + HOSTILE)
        page.wait_for_selector(".sg[data-state=ready]")
        notice = page.locator("[data-part=noticeText]").text_content() or ""
        for part in ("seed: expected 0 to 2147483647, found “-1”", "steps: expected 1 to 16", "“evil”"):
            assert part in notice
        assert page.input_value("[data-part=prompt]").startswith("<img src=x")
        assert page.evaluate("window.bad === undefined && document.querySelector('.sg img[src=x]') === null")
        assert page.input_value("[data-part=seed]") == "0"
        assert page.input_value("[data-setting=steps]") == "4"
        for hash_, told in (
            ("#prompt=" + "o" * 10_001, "prompt: 10000 characters are taken, found 10001"),
            ("#prompt=%20", "prompt: it has no words"),
            ("#model=other&seed=5", "made with the model “other”; here it is fake"),
        ):
            page.evaluate("hash => { location.hash = hash; }", hash_)
            said(page, "noticeText", told)
        assert page.input_value("[data-part=seed]") == "5"
        page.goto("about:blank")
        page.goto(stage.address + "#watch=" + "x" * 43)
        page.wait_for_selector(".sg[data-watching][data-state=lost]")
        said(page, "coverText", "Nothing plays under this link")
        assert len(stage.engine.opened) == begun


@pytest.mark.slow
def test_the_picture_fills_the_screen_and_keeps_its_shape(browser: Browser, stage: Stage) -> None:
    with context_of(browser) as context:
        page = open_page(context, stage)
        page.locator("[data-part=paint]").focus()
        page.keyboard.press("v")
        page.wait_for_function("document.fullscreenElement === window.streamgen.part.screen")
        # the window may be given its size a moment later
        page.wait_for_function("""() => {
          const { width, height } = window.streamgen.part.paint.getBoundingClientRect();
          const room = Math.min(innerWidth, innerHeight);
          return Math.abs(width - height) <= 2 && width <= room + 1 && width > 0.8 * room;
        }""")
        page.keyboard.press("v")
        page.wait_for_function("document.fullscreenElement === null")


@pytest.mark.slow
def test_a_watcher_is_told_when_the_one_who_steers_is_gone(browser: Browser, tmp_path: Path) -> None:
    with served(tmp_path) as stage, context_of(browser) as context:
        page = open_page(context, stage)
        watcher = context.new_page()
        watcher.goto(link_of(page, "linkWatch"))
        watcher.wait_for_selector(".sg[data-watching][data-state=playing]")
        shown(watcher, 4)
        page.evaluate("window.streamgen.connection.open = () => {}")
        page.evaluate("window.streamgen.connection.socket.close(3000)")
        said(watcher, "chip", "has lost the connection")
        page.evaluate("delete window.streamgen.connection.open; window.streamgen.connection.open()")
        watcher.wait_for_function("!window.streamgen.part.chip.textContent.includes('has lost')")
        shown(watcher, frame_now(watcher) + 4)


def lane(page: Page) -> list[tuple[str, int, bool]]:
    """Words on the lane as the page has them, where they begin, and whether they are yet to come."""
    return [
        (block["label"], block["frame"], block["planned"])
        for block in page.evaluate("window.streamgen.lane.now()")
        if block["kind"] == "prompt" and block["frame"]
    ]


def wait_lane(page: Page, words: list[str]) -> None:
    page.wait_for_function(
        """words => !window.streamgen.lane.changes.size && JSON.stringify(words) ===
          JSON.stringify(window.streamgen.lane.blocks.slice(1).map((block) => block.label))""",
        arg=words,
    )


def edit_by_hand(page: Page, blue: int, green: int) -> None:
    """By keyboard and by pointer; nothing is played before it is said so."""
    page.focus("[data-part=laneBlocks] button >> nth=2")
    page.keyboard.press("ArrowRight")
    assert lane(page)[1][1] == green + 4
    page.click("[data-do=laneUndo]")
    assert lane(page)[1][1] == green
    # the lane goes along with what plays unless a hand is on it, and is drawn anew when it hears of something
    page.hover(".sg-lanes", position={"x": 5, "y": 80})
    box = page.evaluate(
        """() => {
          const block = document.querySelectorAll("[data-part=laneBlocks] button")[1];
          block.scrollIntoView({ block: "nearest" });
          return block.getBoundingClientRect().toJSON();
        }"""
    )
    page.mouse.move(box["x"] + 25, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 25 - 26, box["y"] + 10)
    page.mouse.up()
    assert lane(page)[0][1] == blue - 16
    page.fill("[data-part=laneWords]", "a red ball")
    page.fill("[data-part=prompt]", "a blue ball at last")
    page.click("[data-do=laneAdd]")
    said(page, "laneText", "2 edits. Plays again from 0:")


def open_elsewhere(page: Page, link: str, file: Path) -> None:
    """A timeline in another page, by a link and by the file."""
    page.goto(link)
    page.wait_for_selector(".sg[data-state=ready]")
    said(page, "noticeText", "and 3 changes. Start plays it.")
    page.click("[data-part=startButton]")
    page.wait_for_selector(".sg[data-state=playing]")
    # in the log, where it stays when the next words take its place
    said(page, "log", "words: a red ball")
    bad = file.with_name("bad.json")
    bad.write_text("{}")
    page.set_input_files("[data-part=timelineFile]", bad)
    said(page, "noticeText", "Not opened: timeline: expected an object")
    epoch = page.evaluate("window.streamgen.epoch")
    page.set_input_files("[data-part=timelineFile]", file)
    page.wait_for_function("epoch => window.streamgen.epoch === epoch + 1", arg=epoch)
    said(page, "noticeText", "The timeline plays: 3 changes")
    for packed in ("%00", "AAAA", "x" * 3000):
        page.evaluate("hash => { location.hash = hash; }", f"#timeline={packed}")
        said(page, "noticeText", "damaged or cut off")
        page.evaluate("window.streamgen.notices.tell('')")


@pytest.mark.slow
def test_a_timeline_is_edited_compared_and_opened_elsewhere(
    browser: Browser, stage: Stage, tmp_path: Path
) -> None:
    with context_of(browser) as context:
        page = open_page(context, stage)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.click("[data-part=lane] summary")
        shown(page, 40)
        words(page, "a blue ball")
        shown(page, frame_now(page) + 24)
        words(page, "a green ball")
        wait_lane(page, ["a blue ball", "a green ball"])
        (_, blue, _), (_, green, _) = lane(page)
        edit_by_hand(page, blue, green)
        page.evaluate("window.streamgen.on('place', (place) => { window.placed = place; })")
        epoch = page.evaluate("window.streamgen.epoch")
        page.click("[data-part=lanePlay]")
        page.wait_for_function("epoch => window.placed?.epoch === epoch + 1", arg=epoch)
        assert page.evaluate("window.placed.frame") <= blue - 16
        wait_lane(page, ["a red ball", "a green ball", "a blue ball at last"])
        said(page, "now", "a blue ball at last")
        wait_lane(page, ["a red ball", "a green ball", "a blue ball at last"])
        assert [frame for _, frame, _ in lane(page)][1] == green

        # what was left lies beside what plays, in step
        page.click("[data-part=takes] .sg-beside")
        said(page, "compareText", "B was left at")
        page.fill("[data-part=compareAt]", "40")
        page.fill("[data-part=compareAt]", "30")  # while the other frame may still be sought
        said(page, "comparePlay", "Play")
        page.wait_for_function(
            """() => [window.streamgen.part.videoA, window.streamgen.part.videoB]
              .every((video) => !video.seeking && Math.abs(video.currentTime - 30.5 / 16) < 0.02)"""
        )
        page.click("[data-do=compareClose]")

        link = link_of(page, "linkTimeline")
        with page.expect_download() as saved:
            page.click("[data-part=timeline]")
        saved.value.save_as(tmp_path / "a.json")
        page.close()
        open_elsewhere(context.new_page(), link, tmp_path / "a.json")
        assert not errors
