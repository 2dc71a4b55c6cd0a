"""The page in a real browser over a fake engine: nothing is lost, nothing silent, all in reach."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route

from demo.bench_page import MESSAGES, WATCH_SHIFT
from streamgen.stream.prompts import MAX_PROMPT
from tests.demo_pages import Stage, context_of, frame_now, open_page, said, served, shown, words

LONG = "x" + "o" * 1500
SIZES = {
    "desk": (1280, 720),
    "tablet": (768, 1024),
    "phone": (375, 740),
    "small phone": (320, 640),
    "phone on its side": (740, 375),
}
# Everything of ours that reaches beyond the window, but for what scrolls inside something that does not.
BEYOND = """() => [...document.querySelectorAll(".sg, .sg *, #card")].filter((node) => {
  const box = node.getBoundingClientRect();
  // what is folded away keeps the size that it had when it was shown
  if (!box.width || !node.checkVisibility() || node.closest("[data-part=spoken]")) return false;
  for (let up = node.parentElement; up; up = up.parentElement) {
    if (up.matches(".sg, #card")) break;
    const cut = ["auto", "scroll", "hidden"].includes(getComputedStyle(up).overflowX);
    if (cut && up.getBoundingClientRect().right <= innerWidth + 1) return false;
  }
  return box.right > innerWidth + 1 || box.left < -1;
}).map((node) => node.className || node.tagName)"""


def takes(page: Page) -> int:
    return page.locator("[data-part=takes] button:not(.sg-beside)").count()


# -- the layout


def test_long_words_break_no_layout(page: Page) -> None:
    """A word without end, wherever words are shown, at every width."""
    words(page, LONG)
    page.click("[data-part=restart]")
    page.wait_for_selector("[data-part=takes] button")
    page.fill("[data-part=prompt]", LONG)
    page.click("[data-do=queue]")
    page.evaluate("text => window.streamgen.notices.tell(text)", LONG)
    page.evaluate("text => window.streamgen.notices.chip('test', text)", LONG)
    page.evaluate("text => window.streamgen.cover.show('ready', text, text)", LONG)
    for name, (width, height) in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert page.evaluate(BEYOND) == [], name
    page.set_viewport_size({"width": 320, "height": 640})
    page.add_style_tag(content=".sg-prompt, .sg-controls { display: block } .sg-now { white-space: nowrap }")
    page.add_style_tag(content=".sg-now { overflow: visible !important; width: max-content }")
    assert page.evaluate(BEYOND), "what looks for it finds it"


def test_what_plays_and_saves_is_in_sight(page: Page) -> None:
    bottoms = "parts => parts.map((part) => window.streamgen.part[part].getBoundingClientRect().bottom)"
    page.set_viewport_size({"width": 1280, "height": 720})
    parts = ["screen", "play", "seed", "scrub", "log", "prompt", "tools"]
    assert max(page.evaluate(bottoms, parts)) <= 720
    for save in ("clip", "timeline"):
        box = page.locator(f"[data-do={save}]").bounding_box()
        assert box
        assert box["y"] + box["height"] <= 720
    page.set_viewport_size({"width": 740, "height": 375})
    assert max(page.evaluate(bottoms, ["screen", "play", "prompt"])) <= 375
    apply = page.locator("[data-part=apply]").bounding_box()
    assert apply
    assert apply["y"] + apply["height"] <= 375


@pytest.mark.slow
def test_messages_move_nothing(page: Page) -> None:
    """The browser's own measure of layout shift over everything that comes and goes by itself."""
    page.evaluate(WATCH_SHIFT)
    page.evaluate(MESSAGES)
    page.wait_for_timeout(200)
    assert page.evaluate("window.shift") <= 0.05


# -- nothing is lost


@pytest.mark.parametrize(
    "way", ["button", *(pytest.param(way, marks=pytest.mark.slow) for way in ("key", "dice"))]
)
def test_restarting_keeps_what_played_as_a_branch(page: Page, way: str) -> None:
    words(page, "a green ball")
    at, epoch = frame_now(page), page.evaluate("window.streamgen.epoch")
    page.fill("[data-part=seed]", "7")
    if way == "button":
        page.click("[data-part=restart]")
    elif way == "key":
        page.locator("[data-part=paint]").focus()
        page.keyboard.press("r")
    else:
        page.click("[data-do=dice]")
    page.wait_for_function("epoch => window.streamgen.epoch > epoch", arg=epoch)
    shown(page, 2)
    assert takes(page) == 1
    page.click("[data-part=takes] button")
    page.wait_for_function("epoch => window.streamgen.epoch > epoch + 1", arg=epoch)
    shown(page, at)
    said(page, "now", "a green ball")
    assert page.input_value("[data-part=seed]") == "0", "the branch has its own seed"
    assert takes(page) == 1, "and what was left for it is a branch, too"


@pytest.mark.slow
def test_a_page_that_is_loaded_again_has_everything_it_had(browser: Browser, tmp_path: Path) -> None:
    """Pins that hold, prompts that wait, text that is being typed, the theme that was chosen."""
    # a browser on a busy machine takes its time to come back
    with served(tmp_path, closed_seconds=20.0) as stage, context_of(browser) as context:
        page = open_page(context, stage)
        page.check("[data-part=tools] input[value=pin]")
        page.click("[data-part=paint]", position={"x": 60, "y": 60})
        page.wait_for_selector("[data-part=log] li[data-kind=pins]")
        pins = page.evaluate("window.streamgen.paint.pins.map((pin) => pin.x)")
        page.fill("[data-part=prompt]", "a blue ball")
        page.fill("[data-part=hold]", "500")
        page.click("[data-do=queue]")
        page.fill("[data-part=prompt]", "half a sent")
        dark = page.evaluate("document.body.classList.contains('dark')")
        page.click("[data-do=theme]")
        at = frame_now(page)
        page.reload()
        page.wait_for_selector(".sg[data-state=playing]")
        shown(page, at)
        assert page.evaluate("window.streamgen.paint.pins.map((pin) => pin.x)") == pytest.approx(pins)
        assert page.locator("[data-part=queue] li span").text_content() == "a blue ball"
        assert page.input_value("[data-part=prompt]") == "half a sent"
        assert page.evaluate("document.body.classList.contains('dark')") is not dark
        page.keyboard.press("c")
        page.wait_for_selector("[data-part=log] li[data-kind=release]")
        page.reload()
        page.wait_for_selector(".sg[data-state=playing]")
        shown(page, 1)
        assert page.evaluate("window.streamgen.paint.pins.length") == 0


@pytest.mark.slow
def test_text_that_is_being_typed_is_left_alone(page: Page) -> None:
    page.wait_for_function("window.streamgen.strip.marks.length > 0")
    page.fill("[data-part=prompt]", "half a sent")
    page.click("[data-part=examples] button >> nth=1")
    said(page, "now", "a large blue star")
    page.focus("[data-part=scrub]")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.wait_for_function("window.streamgen.epoch === 2")
    page.evaluate("window.streamgen.queue.items.push({ words: 'a red ball', seconds: 0 })")
    said(page, "now", "a red ball")
    assert page.input_value("[data-part=prompt]") == "half a sent"
    page.fill("[data-part=prompt]", "")
    page.click("[data-part=examples] button >> nth=0")
    assert page.input_value("[data-part=prompt]") == "a small red circle moves right over the sea"


@pytest.mark.slow
def test_the_twenty_first_prompt_is_told_and_kept(page: Page) -> None:
    page.fill("[data-part=hold]", "600")
    for number in range(21):
        page.fill("[data-part=prompt]", f"prompt {number}")
        page.click("[data-do=queue]")
    said(page, "words", "The queue is full")
    assert page.input_value("[data-part=prompt]") == "prompt 20"
    assert page.locator("[data-part=queue] li").count() == 20


@pytest.mark.slow
def test_times_that_count_do_count(page: Page) -> None:
    """Until the next prompt of the queue, and since the moment that one may go back to."""
    part = "window.streamgen.part"
    page.fill("[data-part=hold]", "600")
    page.fill("[data-part=prompt]", "a green ball")
    page.click("[data-do=queue]")
    left = f"Number(({part}.queue.querySelector('small').textContent.match(/in ([0-9]+) s/) || [0, 0])[1])"
    page.wait_for_function(f"{left} > 0")
    before = page.evaluate(left)
    page.wait_for_function(f"before => {left} < before", arg=before)
    page.wait_for_function("window.streamgen.strip.marks.length > 0")
    page.evaluate("window.streamgen.strip.choose(window.streamgen.strip.marks[0].frame)")
    ago = f"Number(({part}.rewind.textContent.match(/[(]([0-9]+) s ago/) || [0, -1])[1])"
    first = page.evaluate(ago)
    assert first >= 0
    page.wait_for_function(f"first => {ago} > first", arg=first)


@pytest.mark.slow
def test_a_start_before_the_page_is_ready_counts(browser: Browser, stage: Stage) -> None:
    with context_of(browser) as context:
        page = context.new_page()
        asked: list[Route] = []
        page.route("**/live/session", lambda route: asked.insert(0, route))
        page.goto(stage.address)
        page.click("[data-part=startButton]")
        while not asked:
            page.wait_for_timeout(10)
        assert page.evaluate("window.streamgen.state") == "loading"
        said(page, "coverText", "Starts as soon as the page is ready")
        asked[0].continue_()
        shown(page, 2)


# -- nothing is silent


def test_what_is_not_taken_is_told(page: Page) -> None:
    page.fill("[data-part=prompt]", "o" * (MAX_PROMPT + 3))
    page.press("[data-part=prompt]", "Enter")
    said(page, "words", f"{MAX_PROMPT} characters are taken, these are 3 more. Nothing has been sent.")
    words(page, "a blue xball with xyz")
    said(page, "words", "“xball”, “xyz” mean nothing")
    words(page, " ".join(["ball"] * 14))
    said(page, "words", "2 tokens more than the model reads")


@pytest.mark.slow
def test_refused_settings_leave_the_sliders_and_their_notice_goes(page: Page) -> None:
    slide = """([name, value]) => {
      const { input } = window.streamgen.settings.inputs[name];
      input.value = value;
      input.dispatchEvent(new Event("input", { bubbles: true }));
    }"""
    page.evaluate(slide, ["steps", 13])
    said(page, "noticeText", "unlucky")
    assert page.input_value("[data-setting=steps]") == "4"
    page.evaluate(slide, ["steps", 5])
    page.wait_for_selector("[data-part=notice][hidden]", state="attached")
    page.wait_for_selector("[data-part=log] li[data-kind=settings]")
    assert page.input_value("[data-setting=steps]") == "5"


def test_a_tap_is_no_drag_and_says_so(page: Page) -> None:
    # on a slow machine a tap may last long enough to be taken for a hold
    page.evaluate("window.streamgen.paint.flush = () => {}")
    for tool in ("drag", "path"):
        page.check(f"[data-part=tools] input[value={tool}]")
        page.click("[data-part=paint]", position={"x": 80, "y": 80})
        said(page, "chip", "That was a tap")
        page.evaluate("window.streamgen.notices.chip('tap', '')")
    page.locator("[data-part=paint]").focus()
    page.keyboard.press("d")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    said(page, "chip", "That was a tap")
    page.evaluate("delete window.streamgen.paint.flush")
    page.keyboard.press("Enter")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-part=log] li[data-kind=drag]")
    assert page.locator("[data-part=log] li[data-kind=drag]").count() == 1
    assert page.locator("[data-part=log] li[data-kind=path]").count() == 0


@pytest.mark.slow
def test_camera_keys_while_nothing_plays_say_why(page: Page) -> None:
    page.click("[data-part=play]")
    page.wait_for_selector(".sg[data-state=paused]")
    for press in ("a", "+", "e"):
        page.keyboard.press(press)
        said(page, "chip", "The camera moves while the stream plays")
        page.evaluate("window.streamgen.notices.chip('camera', '')")
    page.dispatch_event("[data-camera=left]", "keydown", {"key": "Enter", "bubbles": True})
    said(page, "chip", "The camera moves while the stream plays")


@pytest.mark.slow
def test_control_to_picture_knows_all_controls_and_no_pauses(page: Page) -> None:
    count = "() => window.streamgen.status.controls.length"

    def grows(what: str) -> None:
        before = page.evaluate(count)
        page.evaluate(what)
        page.wait_for_function(f"before => ({count})() > before", arg=before)

    grows("window.streamgen.prompts.apply('a blue ball', true)")
    grows("window.streamgen.paint.pin({ x: 0.5, y: 0.5 })")
    grows("window.streamgen.camera.press('left')")
    grows("window.streamgen.paint.clear()")
    page.click("[data-part=play]")
    page.wait_for_selector(".sg[data-state=paused]")
    # from when it plays again, noted before the page's own clock goes on, until the picture is on screen
    page.evaluate("""() => {
      const { listeners, status } = window.streamgen;
      listeners.turned.unshift(() => { window.resumed = performance.now(); });
      const before = status.controls.length;
      listeners.shown.push(() => {
        if (!window.took && status.controls.length > before) window.took = performance.now() - window.resumed;
      });
    }""")
    page.evaluate("window.streamgen.prompts.apply('a red ball', true)")
    page.wait_for_timeout(500)
    grows("window.streamgen.transport.play()")
    assert 0 < page.evaluate("window.streamgen.status.controls.at(-1)") <= page.evaluate("window.took")


@pytest.mark.slow
def test_slow_motion_is_said_when_it_lasts_and_not_for_a_moment(page: Page) -> None:
    told = page.evaluate(
        """(steps) => {
          const { status, player } = window.streamgen, real = performance.now.bind(performance);
          let ahead = 0;
          performance.now = () => real() + ahead;
          const after = ([ms, rate]) => {
            player.rate = rate;
            status.slowMotion();
            ahead += ms;
            return status.slowMotion();
          };
          // at once, so that nothing comes in between
          return steps.map(after);
        }""",
        [[0, 16], [1000, 10], [1000, 16], [3500, 10], [1000, 16], [1000, 10], [3500, 16]],
    )
    assert told == [False, False, False, True, True, True, False]


# -- in reach


@pytest.mark.slow
def test_a_click_gives_the_focus_back_and_a_key_does_not(page: Page) -> None:
    """Space pauses after a click on any control, and is the control's own once it was reached by keyboard."""
    paint = "document.activeElement === window.streamgen.part.paint"
    others = "".join(f":not([data-do={what}])" for what in ("restart", "dice", "share", "full"))
    buttons = page.locator(f".sg button:visible:enabled{others}")
    for number in range(buttons.count()):
        button = buttons.nth(number)
        if not button.is_enabled() or not button.is_visible():
            continue
        button.click()
        assert page.evaluate(paint), button.evaluate("node => node.outerHTML")
    page.click("[data-part=advanced] > summary")
    for control in ("summary >> nth=0", "[data-part=tools] input[value=path]", "[data-part=pixelated]"):
        page.locator(f".sg {control}").click()
        assert page.evaluate(paint), control
    # one of the buttons was Pause, and Step leaves a stream that pauses where it is
    page.wait_for_selector(".sg[data-state=paused]")
    page.keyboard.press("Space")
    page.wait_for_selector(".sg[data-state=playing]")
    page.keyboard.press("Space")
    page.wait_for_selector(".sg[data-state=paused]")
    # by keyboard: it is theirs
    page.focus("[data-part=pixelated]")
    was = page.is_checked("[data-part=pixelated]")
    page.keyboard.press("Space")
    assert page.is_checked("[data-part=pixelated]") is not was
    page.focus(".sg [data-do=theme]")
    dark = page.evaluate("document.body.classList.contains('dark')")
    page.keyboard.press("Space")
    assert page.evaluate("document.body.classList.contains('dark')") is not dark
    assert not page.evaluate(paint)
    assert page.evaluate("window.streamgen.state") == "paused"


@pytest.mark.slow
def test_escape_leaves_every_field(page: Page) -> None:
    fields = page.locator(".sg textarea, .sg input:not([type=file]), .sg select")
    assert fields.count() >= 12
    for number in range(fields.count()):
        one = fields.nth(number)
        if not one.is_enabled():
            continue
        one.focus()
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement === window.streamgen.part.paint"), number


@pytest.mark.slow
def test_radios_go_by_arrow_keys(page: Page) -> None:
    page.focus("[data-part=tools] input[value=drag]")
    for tool in ("path", "box", "pin", "drag"):
        page.keyboard.press("ArrowRight")
        assert page.evaluate("window.streamgen.paint.tool") == tool
        assert page.is_checked(f"[data-part=tools] input[value={tool}]")


# -- words that change over time


@pytest.mark.slow
def test_words_come_over_seconds_and_blends_have_live_weights(page: Page) -> None:
    # whether the picture is neither red nor green, but for its texture
    page.evaluate("""window.streamgen.on("shown", () => {
      const { video } = window.streamgen.part;
      const { data } = video.getContext("2d").getImageData(0, 0, video.width, video.height);
      const sums = [0, 0, 0, 0];
      data.forEach((value, i) => { sums[i % 4] += 4 * value / data.length; });
      window.between ||= Math.min(sums[0], sums[1]) > 100;
    })""")
    assert not page.evaluate("window.between")
    page.fill("[data-part=over]", "4")
    page.click("[data-part=advanced] > summary")
    page.select_option("[data-part=way]", "spherical")
    words(page, "a green ball")
    said(page, "words", "Come from 0:")
    page.wait_for_function("window.between")
    page.fill("[data-part=over]", "0")
    page.evaluate("document.querySelector('[data-part=blend]').open = true")
    page.click("[data-part=blendApply]")
    said(page, "blendHint", "Add some prompts first.")
    page.click("[data-part=blendAdd]")
    page.fill("[data-part=prompt]", "a red ball")
    page.click("[data-part=blendAdd]")
    page.click("[data-part=blendApply]")
    said(page, "now", "50 % a green ball + 50 % a red ball")
    page.evaluate("""() => {
      const input = document.querySelector("[data-part=blendRows] input");
      input.value = 0.25;
      input.dispatchEvent(new Event("input", { bubbles: true }));
    }""")
    said(page, "now", "20 % a green ball + 80 % a red ball")
    page.click("[data-part=blendRows] li:nth-child(1) button")
    said(page, "now", "a red ball")
