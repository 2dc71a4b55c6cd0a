"""`python -m demo.bench`: what a viewer gets, measured in a real browser over links of several kinds.

A fake engine offers textured pictures of 832 x 480 in chunks of four at 16 and 30 frames per second; the real
one streams the shipped model. The page is the demo's own in headless Chromium. Every figure is read in the
page: frames shown per second, time from a frame's generation to its showing (one clock: same machine), time
from a change of words to the first picture made under it, and with the made camera of the browser the time
from a picture of it to the first one of the stream that is made from it. What watchers cost the engine is
measured apart, by how long its chunks take with a crowd of them and without; so is what the page itself
costs (`bench_page`). `--no-viewers`, `--no-page` and `--watchers 0` leave a part out, `--only camera` all
other cases.
"""

import asyncio
import contextlib
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer
import uvicorn

from .app import build_app
from .bench_page import measure_page
from .bench_watchers import measure_crowd
from .delay_proxy import DelayProxy, Link
from .engine import Engine, PipelineEngine
from .fake_engine import FakeEngine
from .loading import warm_up
from .lobby import Rules
from .server import SERVER_OPTIONS, Options

LOCAL = Link("localhost")
FAR = Link("80 ms, 20 Mbit/s", 0.08, 20e6)
THIN = Link("80 ms, 8 Mbit/s", 0.08, 8e6)
_MADE_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
_WARM_SECONDS = 3.0
# Changes of words come at random phases; these are multiples of the golden ratio.
_PHASES = [0.3 + (0.618034 * i) % 1 * 0.5 for i in range(200)]


@dataclass(frozen=True)
class Case:
    """One measurement and what it has to reach: share of offered frames shown, 95th percentile of latency;
    `control` changes words all the while, `camera` has one on.
    """

    name: str
    engine: Engine
    link: Link
    least_shown: float | None = None
    most_latency_ms: float | None = None
    control: bool = False
    camera: bool = False


def cases(real: bool) -> list[Case]:
    """All measurements, in order."""
    size = (480, 832)
    sixteen, thirty = FakeEngine(16.0, size, 4, 0.05), FakeEngine(30.0, size, 4, 0.03)
    out = [
        Case("fake, 16 fps", sixteen, LOCAL, 0.95, control=True),
        Case("fake, 30 fps", thirty, LOCAL, 0.95, control=True),
        Case("fake, 30 fps", thirty, FAR, 0.90),
        Case("fake, 30 fps", thirty, THIN, most_latency_ms=400.0),
        Case("fake, 16 fps, camera", sixteen, LOCAL, camera=True),
    ]
    if real:
        from streamgen import load_pipeline

        tiny = PipelineEngine(load_pipeline("tiny"))
        out.append(Case("tiny", tiny, LOCAL, control=True))
        out.append(Case("tiny, camera", tiny, LOCAL, camera=True))
    return out


async def measure(case: Case, seconds: float, browser: Any) -> dict[str, Any]:
    """Serve, watch and steer for `seconds`; the figures by name, `ok` says whether they suffice."""
    async with served(case.engine) as port, DelayProxy(port, case.link) as proxy:
        page = await browser.new_page(viewport={"width": 1200, "height": 900})
        address = f"http://127.0.0.1:{port if case.link is LOCAL else proxy.port}/"
        await page.goto(address)
        await page.wait_for_selector(".sg[data-state=ready]", timeout=120_000)
        await page.click("[data-part=startButton]")
        await page.wait_for_function("window.streamgen.player.shown > 8", timeout=120_000)
        if case.camera:
            await page.evaluate("window.streamgen.webcam.on()")
            await page.wait_for_function("window.streamgen.webcam.delays.length > 2", timeout=60_000)
        await asyncio.sleep(_WARM_SECONDS)
        began = await page.evaluate(_BEGIN)
        if case.control:
            await _steer(page, seconds)
        else:
            await asyncio.sleep(seconds)
        found = await page.evaluate(_END, began)
        await page.close()
    return _judge(case, found)


def _judge(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    fps, chunk = case.engine.info.fps, case.engine.info.chunk_frames / case.engine.info.fps
    shown, latency, controls = found["shown"], found["latencies"], found["controls"]
    row: dict[str, Any] = {
        "case": case.name,
        "link": case.link.name,
        "offered_fps": fps,
        "shown_fps": round(shown, 2),
        "latency_ms": {
            "p50": round(1000 * share_of(latency, 0.5)),
            "p95": round(1000 * share_of(latency, 0.95)),
        },
        "first_picture_ms": round(found["first"]),
        "stalls": found["stalls"],
        "generation_p95_ms": round(share_of(found["generation"], 0.95)),
    }
    ok = case.least_shown is None or shown >= case.least_shown * fps
    ok = ok and (case.most_latency_ms is None or row["latency_ms"]["p95"] <= case.most_latency_ms)
    for name, chunks, values in (("control", 1, controls), ("camera", 2, found["camera"])):
        if values:
            most = 1000 * chunks * chunk + share_of(found["generation"], 0.95) + 100
            row[f"{name}_ms"] = {"p50": round(share_of(values, 0.5)), "p95": round(share_of(values, 0.95))}
            row[f"{name}_limit_ms"] = round(most)
            ok = ok and share_of(values, 0.95) <= most
    return row | {"ok": ok and (bool(found["camera"]) or not case.camera)}


def share_of(values: list[float], share: float) -> float:
    """The value that this share of all values does not exceed; 0 without any."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


async def _steer(page: Any, seconds: float) -> None:
    colours = ("a large blue star stays over sand", "a large red circle stays over sand")
    loop = asyncio.get_running_loop()
    end, turn = loop.time() + seconds, 0
    while loop.time() < end:
        await asyncio.sleep(_PHASES[turn % len(_PHASES)] + 0.5)
        await page.evaluate("words => window.streamgen.prompts.apply(words)", colours[turn % 2])
        turn += 1


@contextlib.asynccontextmanager
async def served(engine: Engine) -> AsyncIterator[int]:
    """Serve the demo on this machine; its port."""
    warm_up(engine)
    app = build_app(engine, Options(rules=replace(Rules(), closed_seconds=0.5, idle_seconds=0.0)))
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", **SERVER_OPTIONS)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.05)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


def _one_engine(real: bool) -> Engine:
    """The shipped model's engine, or the fake one at 832 x 480."""
    if not real:
        return FakeEngine(16.0, (480, 832), 4, 0.05)
    from streamgen import load_pipeline

    return PipelineEngine(load_pipeline("tiny"))


async def crowd_row(real: bool, watchers: int, seconds: float) -> dict[str, Any]:
    """What watchers cost the engine."""
    engine = _one_engine(real)
    async with served(engine) as port:
        return await measure_crowd(port, engine.info.examples[0], watchers, seconds)


async def page_row(real: bool, loads: int, transitions: int) -> dict[str, Any]:
    """What the page itself costs, and whether transitions play in time."""
    async with served(_one_engine(real)) as port, _chromium() as browser:
        return await measure_page(browser, f"http://127.0.0.1:{port}/", loads, transitions)


@contextlib.asynccontextmanager
async def _chromium() -> AsyncIterator[Any]:
    from playwright.async_api import async_playwright

    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", *_MADE_CAMERA]
        )
        try:
            yield browser
        finally:
            await browser.close()


async def run_all(chosen: list[Case], seconds: float) -> list[dict[str, Any]]:
    """Every measurement, one after the other, in one browser."""
    rows = []
    async with _chromium() as browser:
        for case in chosen:
            rows.append(await measure(case, seconds, browser))
            print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def main(
    seconds: Annotated[float, typer.Option(min=1, help="Length of each measurement.")] = 20.0,
    real: Annotated[bool, typer.Option(help="Measure the shipped model, too.")] = True,
    watchers: Annotated[int, typer.Option(min=0, help="Measure what so many watchers cost; 0: not.")] = 200,
    viewers: Annotated[bool, typer.Option(help="Measure what a viewer gets.")] = True,
    page: Annotated[bool, typer.Option(help="Measure what the page costs, and transitions of 2 s.")] = True,
    loads: Annotated[int, typer.Option(min=1, help="How often the page is loaded for that.")] = 9,
    transitions: Annotated[int, typer.Option(min=1, help="How many are played for that.")] = 20,
    only: Annotated[str, typer.Option(help="Of these the cases that have this in their name.")] = "",
) -> None:
    """Measure what a viewer gets; exit code 1 where a figure misses its mark. Needs Chromium."""
    chosen = [case for case in cases(real) if only in case.name] if viewers else []
    rows = asyncio.run(run_all(chosen, seconds)) if chosen else []
    if page:
        rows.append(asyncio.run(page_row(real, loads, transitions)))
        print(json.dumps(rows[-1]), file=sys.stderr)
    if watchers:
        rows.append(asyncio.run(crowd_row(real, watchers, seconds)))
        print(json.dumps(rows[-1]), file=sys.stderr)
    print(json.dumps(rows, indent=1))
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


_BEGIN = """() => {
  const live = window.streamgen;
  live.player.latencies = [];
  live.status.controls = [];
  live.webcam.delays = [];
  live.generation = [];
  live.on("chunk", (chunk) => live.generation.push(chunk.gen_ms));
  return { shown: live.player.counts.shown, stalls: live.player.counts.stalls, at: performance.now() };
}"""
_END = """(began) => {
  const { player, status, webcam, generation, firstMs } = window.streamgen;
  const seconds = (performance.now() - began.at) / 1000;
  return {
    shown: (player.counts.shown - began.shown) / seconds, stalls: player.counts.stalls - began.stalls,
    latencies: player.latencies, controls: status.controls, generation, first: firstMs,
    camera: webcam.delays.map((seconds) => 1000 * seconds),
  };
}"""


if __name__ == "__main__":
    typer.run(main)
