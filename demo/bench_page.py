"""What the page itself costs: how soon it can be used, whether messages move it, whether a way from words to
words plays in time.

Read in the browser: the time from the end of the page's HTML until its controls work (`interactive_ms`), the
browser's own measure of layout shift over every kind of message (`layout_shift`), and of transitions of two
seconds the chunks that came late and the slowest rate they played at, as a share of the model's.
"""

import asyncio
import statistics
from typing import Any

MOST_INTERACTIVE_MS = 1000.0
MOST_SHIFT = 0.05
OVER_SECONDS = 2.0
_BEHIND_SECONDS = 1.5
_PAIR = ("a large blue star stays over sand", "a large red circle stays over snow")

# In place before the page's own scripts: when its controls first work.
WATCH_FOR_READY = """
addEventListener("DOMContentLoaded", () => {
  const look = () => {
    const ready = document.querySelector(".sg[data-state=ready] [data-part=startButton]:not(:disabled)");
    if (ready) window.interactiveAt = performance.now(); else requestAnimationFrame(look);
  };
  look();
});
"""
INTERACTIVE = """() => window.interactiveAt === undefined ? null :
  window.interactiveAt - performance.getEntriesByType("navigation")[0].responseEnd"""
# From here on the browser adds up what moves by itself.
WATCH_SHIFT = """() => {
  window.shift = 0;
  const add = (list) => { for (const entry of list.getEntries()) window.shift += entry.value; };
  new PerformanceObserver(add).observe({ type: "layout-shift", buffered: false });
}"""
# Everything that comes and goes by itself, one after the other.
MESSAGES = """() => {
  const { notices, prompts, cover, strip, lane, part } = window.streamgen;
  const later = (what) => new Promise((done) => setTimeout(() => { what(); done(); }, 60));
  return [
    () => notices.tell("A line at the top. ".repeat(9)), () => notices.tell(""),
    () => notices.chip("a", "on the picture"), () => notices.chip("a", ""),
    () => prompts.note({ unknown: ["one", "two", "three"], dropped: 3 }), () => prompts.say("Said."),
    () => prompts.say(""), () => cover.show("retry", "The connection is lost. Trying again …", ""),
    () => { cover.show("ready", "x", "Start"); part.cover.hidden = true; },
    () => strip.choose(1), () => strip.cancel(),
    () => { strip.takes = [{ id: 1, frame: 1, picture: "", prompt: "x", seed: 0 }]; },
    () => strip.drawTakes(), () => lane.say("A line under the lane. ".repeat(4)), () => lane.say(""),
  ].reduce((sofar, what) => sofar.then(() => later(what)), Promise.resolve());
}"""
_STEER = """([words, seconds]) => {
  const { part, prompts, player } = window.streamgen;
  part.over.value = String(seconds);
  window.slowest = Infinity;
  prompts.apply(words);
  return player.counts.stalls;
}"""
_RATES = """() => {
  window.slowest = Infinity;
  window.streamgen.on("chunk", (chunk) => { window.slowest = Math.min(window.slowest, chunk.rate); });
}"""


async def measure_page(browser: Any, address: str, loads: int, transitions: int) -> dict[str, Any]:
    """The three figures of a page that is served at an address, and whether they suffice.

    Args:
        loads: how often the page is loaded anew, each time without what the browser kept; the median counts.
        transitions: how many are played, one after the other.
    """
    times = [await _load(browser, address) for _ in range(loads)]
    page = await browser.new_page(viewport={"width": 1280, "height": 720})
    await page.goto(address)
    await page.wait_for_selector(".sg[data-state=ready]", timeout=120_000)
    await page.evaluate(WATCH_SHIFT)
    await page.click("[data-part=startButton]")
    await page.wait_for_function("window.streamgen.player.shown > 40", timeout=120_000)
    await page.evaluate(MESSAGES)
    await page.evaluate(_RATES)
    late, slowest = 0, 1.0
    fps = await page.evaluate("window.streamgen.hello.fps")
    for turn in range(transitions):
        before = await page.evaluate(_STEER, [_PAIR[turn % 2], OVER_SECONDS])
        await asyncio.sleep(OVER_SECONDS + _BEHIND_SECONDS)
        after, rate = await page.evaluate("[window.streamgen.player.counts.stalls, window.slowest]")
        late, slowest = late + after - before, min(slowest, rate / fps)
    shift = await page.evaluate("window.shift")
    await page.close()
    return judged(times, shift, late, slowest, transitions)


def judged(times: list[float], shift: float, late: int, slowest: float, transitions: int) -> dict[str, Any]:
    """The figures by name; `ok` says whether all suffice."""
    interactive = statistics.median(times)
    ok = interactive <= MOST_INTERACTIVE_MS and shift <= MOST_SHIFT and late == 0 and slowest >= 1.0
    return {
        "case": "the page",
        "interactive_ms": {"p50": round(interactive), "worst": round(max(times)), "loads": len(times)},
        "layout_shift": round(shift, 4),
        "transitions": {"played": transitions, "late_chunks": late, "slowest_rate": round(slowest, 3)},
        "ok": ok,
    }


async def _load(browser: Any, address: str) -> float:
    """Milliseconds from the end of the HTML until Start can be pressed."""
    context = await browser.new_context(viewport={"width": 1280, "height": 720})
    await context.add_init_script(WATCH_FOR_READY)
    page = await context.new_page()
    await page.goto(address)
    await page.wait_for_function("window.interactiveAt !== undefined", timeout=120_000)
    found = await page.evaluate(INTERACTIVE)
    await context.close()
    return float(found)
