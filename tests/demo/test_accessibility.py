"""The page by WCAG 2.2 AA: axe in every state of the page, light and dark, and what axe cannot see."""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from tests.demo_pages import Stage, context_of, open_page, said, shown, words

RULES = {
    "light": {
        "type": "tag",
        "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    },
    # all that another scheme may change
    "dark": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]},
}
KINDS = ("prompt", "settings", "cache", "drag", "path", "box", "camera", "pins", "release")


def offences(page: Page, scheme: str = "light") -> list[str]:
    """What axe finds, a line each."""
    found = Axe().run(page, options={"runOnly": RULES[scheme]}).response["violations"]
    return [f"{v['id']}: {node['target']} {node['failureSummary']}" for v in found for node in v["nodes"]]


def luminance(colour: str) -> float:
    parts = [float(x) / 255 for x in re.findall(r"[\d.]+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours as `rgb(r, g, b)`."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, stage: Stage, scheme: str) -> None:
    with context_of(browser, color_scheme=scheme) as context:
        page = open_page(context, stage, begin=False)
        assert offences(page, scheme) == []
        page.click("[data-part=startButton]")
        shown(page, 20)
        words(page, "a blue xball")
        page.fill("[data-part=prompt]", "a red ball")
        page.click("[data-do=queue]")
        page.click("[data-part=restart]")
        page.wait_for_selector("[data-part=takes] button")
        page.evaluate("window.streamgen.notices.tell('Not taken: no.', { label: 'Go on' })")
        page.evaluate("for (const more of document.querySelectorAll('details')) more.open = true")
        shown(page, 20)
        page.click("[data-part=play]")
        page.focus("[data-part=scrub]")
        page.keyboard.press("ArrowLeft")
        assert offences(page, scheme) == []
        for dialog in ("share", "compare"):
            page.evaluate("name => window.streamgen.part[name].showModal()", dialog)
            assert offences(page, scheme) == [], dialog
            page.evaluate("name => window.streamgen.part[name].close()", dialog)
        page.set_viewport_size({"width": 375, "height": 740})
        assert offences(page, scheme) == []
        page.evaluate("window.streamgen.part.seed.parentElement.replaceWith(window.streamgen.part.seed)")
        page.add_style_tag(content=".sg-prompt label, .sg button { color: rgb(128 128 128) !important }")
        assert offences(page, scheme), "what looks for them finds them"


def test_there_is_one_main_and_axe_finds_nothing_at_first(browser: Browser, stage: Stage) -> None:
    with context_of(browser) as context:
        page = open_page(context, stage, begin=False)
        assert offences(page) == []
        assert page.locator("main, [role=main]").count() == 1
        assert page.locator("main .sg").count() == 1
        arrows = "nodes => nodes.map((node) => getComputedStyle(node).backgroundImage)"
        assert all(arrow.startswith("url(") for arrow in page.eval_on_selector_all(".sg select", arrows))


@pytest.mark.slow
def test_receipts_are_announced(browser: Browser, stage: Stage) -> None:
    with context_of(browser) as context:
        page = open_page(context, stage)
        assert page.get_attribute("[data-part=spoken]", "aria-live") == "polite"
        words(page, "a blue ball")
        said(page, "spoken", "words: a blue ball")
        page.evaluate("window.streamgen.paint.pin({ x: 0.5, y: 0.5 })")
        said(page, "spoken", "pins")
        page.evaluate("window.streamgen.send({ type: 'event', id: 9, epoch: 99, settings: { steps: 2 } })")
        said(page, "spoken", "Not taken: the stream went elsewhere")


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_marks_on_the_strip_have_shapes_a_legend_and_contrast(
    browser: Browser, stage: Stage, scheme: str
) -> None:
    with context_of(browser, color_scheme=scheme) as context:
        page = open_page(context, stage, begin=False)
        look = """kinds => kinds.map((kind) => {
          const node = document.querySelector(`[data-part=legend] span[data-kind=${kind}]`);
          const style = getComputedStyle(node), probe = document.createElement("i");
          probe.style.color = style.getPropertyValue("--shape");
          node.append(probe);
          const colour = getComputedStyle(probe).color;
          probe.remove();
          const shape = [style.clipPath, style.borderRadius, style.borderTopWidth].join(" ");
          return [shape, colour, node.parentElement.textContent];
        })"""
        found = page.evaluate(look, list(KINDS))
        assert len({shape for shape, _, _ in found}) == len(KINDS)
        assert all(name for _, _, name in found)
        ground = page.evaluate("getComputedStyle(document.querySelector('.sg-track')).backgroundColor")
        for (_, colour, name), kind in zip(found, KINDS, strict=True):
            assert contrast(colour, ground) >= 3, (scheme, kind, name)
        select = page.evaluate("getComputedStyle(window.streamgen.part.cache).backgroundImage")
        assert "svg" in select, "a list that opens says so"
