"""`python -m demo.shots -o docs/media`: the pictures of the page in the docs, from a real browser.

Draws a stream of the shipped model whose thing is in a box on its way and whose words were changed, on a desk
in the light and on a phone in the dark.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import typer

from .bench import served
from .engine import PipelineEngine

# Name, size of the window, scheme.
SHOTS = (("demo-light", (1280, 900), "light"), ("demo-phone", (375, 1180), "dark"))
_FIRST, _SECOND = "a medium red circle stays over the snow", "a medium blue star stays over the snow"
_SEED = 3
_PATIENCE_MS = 120_000


async def draw(page: Any, address: str) -> None:
    """Steer a stream until there is something to see."""
    await page.goto(address)
    await page.wait_for_selector(".sg[data-state=ready]", timeout=_PATIENCE_MS)
    await page.fill("[data-part=prompt]", _FIRST)
    await page.fill("[data-part=seed]", str(_SEED))
    await page.click("[data-part=startButton]")
    await _shown(page, 30)
    await page.fill("[data-part=prompt]", _SECOND)
    await page.press("[data-part=prompt]", "Enter")
    await page.wait_for_function("() => window.streamgen.part.words.textContent.includes('In effect')")
    await _shown(page, 64)
    await page.keyboard.press("Escape")
    await page.keyboard.press("Space")
    await page.wait_for_selector(".sg[data-state=paused]")
    await page.evaluate(_PLACE)
    await page.wait_for_function("() => window.streamgen.held.rows.length === 1")
    await page.keyboard.press("Space")
    await page.wait_for_function("() => window.streamgen.held.rows[0]?.start > 0")
    start = await page.evaluate("window.streamgen.held.rows[0].start")
    await _shown(page, start + 14)
    await page.keyboard.press("Space")
    await page.wait_for_selector(".sg[data-state=paused]")
    await page.wait_for_timeout(500)


async def _shown(page: Any, frame: int) -> None:
    await page.wait_for_function(
        "frame => window.streamgen.player.shown >= frame", arg=frame, timeout=_PATIENCE_MS
    )


@contextlib.asynccontextmanager
async def _browser() -> AsyncIterator[Any]:
    from playwright.async_api import async_playwright

    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        await browser.close()


async def run(out: Path) -> list[Path]:
    """All pictures, in a folder."""
    from streamgen import load_pipeline

    made = []
    engine = PipelineEngine(load_pipeline("tiny"))
    async with served(engine) as port, _browser() as browser:
        for name, (width, height), scheme in SHOTS:
            size = {"width": width, "height": height}
            page = await browser.new_page(viewport=size, color_scheme=scheme)
            await draw(page, f"http://127.0.0.1:{port}/")
            made.append(out / f"{name}.png")
            await page.screenshot(path=made[-1])
            await page.close()
    return made


def main(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the pictures.")] = Path("docs/media"),
) -> None:
    """Draw the pictures of the page in the docs. Needs Chromium."""
    for path in asyncio.run(run(out)):
        print(path)


# A box of the blue thing's place, to the other side and half as large again, named.
_PLACE = """() => {
  const live = window.streamgen, canvas = live.part.video;
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let count = 0, x = 0, y = 0;
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 2] < 120 || data[i + 2] < 1.6 * data[i] || data[i + 2] < 1.4 * data[i + 1]) continue;
    count += 1;
    x += (i / 4) % canvas.width;
    y += Math.floor(i / 4 / canvas.width);
  }
  [x, y] = count ? [x / count / canvas.width, y / count / canvas.height] : [0.5, 0.5];
  const right = x < 0.5 ? 0.45 : -0.45, down = y < 0.5 ? 0.25 : -0.25;
  live.paint.choose("box");
  live.boxes.draft = {
    from: { x, y, w: 0.34, h: 0.34 }, to: { x: x + right, y: y + down, w: 0.46, h: 0.46 },
    way: [], frame: live.player.shown, epoch: live.epoch,
  };
  live.part.boxName.value = "the star";
  live.boxes.send();
}"""


if __name__ == "__main__":
    typer.run(main)
