"""The demo's bench without a browser: its link is as slow as it says, and its verdicts are its marks."""

import asyncio
import time
from typing import Any

import pytest

import demo.bench
from demo import bench_page
from demo.bench import FAR, LOCAL, THIN, Case, served, share_of
from demo.bench_watchers import judged, measure_crowd
from demo.delay_proxy import DelayProxy, Link
from demo.fake_engine import FakeEngine
from tests.tiny_models import assert_needs


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def _trip(link: Link, size: int) -> float:
    """Seconds until `size` bytes have gone over the link and come back."""
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    async with server, DelayProxy(server.sockets[0].getsockname()[1], link) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"x")
        await reader.readexactly(1)
        began = time.monotonic()
        writer.write(b"x" * size)
        await reader.readexactly(size)
        took = time.monotonic() - began
        writer.close()
        return took


@pytest.mark.timed
def test_a_link_delays_and_narrows(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        assert asyncio.run(_trip(Link("far", 0.2), 100)) >= 0.2
        assert asyncio.run(_trip(Link("thin", 0.0, 1e6), 50_000)) >= 0.35

    async def at_once(self: DelayProxy, way: Any, ready: Any, writer: Any) -> None:
        while True:
            while not way:
                ready.clear()
                await ready.wait()
            data = way.popleft()[1]
            if not data:
                writer.close()
                return
            writer.write(data)

    assert_needs(check, monkeypatch, DelayProxy, "_deliver", at_once)


FOUND = {
    "shown": 29.5,
    "latencies": [0.1] * 90 + [0.3] * 10,
    "controls": [150.0, 240.0],
    "camera": [],
    "generation": [30.0] * 20,
    "first": 300.0,
    "stalls": 0,
}


@pytest.mark.parametrize(
    ("case", "changed", "ok"),
    [
        (Case("a", FakeEngine(30.0), LOCAL, 0.95, control=True), {}, True),
        (Case("a", FakeEngine(30.0), LOCAL, 0.95, control=True), {"shown": 28.0}, False),
        (Case("a", FakeEngine(30.0), LOCAL, 0.95, control=True), {"controls": [150.0, 270.0]}, False),
        (Case("a", FakeEngine(30.0), THIN, most_latency_ms=400.0), {"shown": 12.0, "controls": []}, True),
        (Case("a", FakeEngine(30.0), THIN, most_latency_ms=200.0), {}, False),
        # two chunks of .133 s, 30 ms to make one, and 100
        (Case("a", FakeEngine(30.0), LOCAL, camera=True), {"camera": [200.0, 390.0]}, True),
        (Case("a", FakeEngine(30.0), LOCAL, camera=True), {"camera": [200.0, 400.0]}, False),
        (Case("a", FakeEngine(30.0), LOCAL, camera=True), {"controls": []}, False),
    ],
)
def test_verdicts_follow_the_marks(case: Case, changed: dict[str, Any], ok: bool) -> None:
    assert demo.bench._judge(case, FOUND | changed)["ok"] is ok


def test_cases_are_those_that_were_promised() -> None:
    named = {(case.engine.info.fps, case.link.name): case for case in demo.bench.cases(real=False)}
    assert {(16.0, LOCAL.name), (30.0, LOCAL.name), (30.0, FAR.name), (30.0, THIN.name)} == set(named)
    assert named[30.0, LOCAL.name].least_shown == 0.95
    assert named[30.0, FAR.name].least_shown == 0.9
    assert named[30.0, THIN.name].most_latency_ms == 400
    assert share_of([], 0.95) == 0
    assert share_of([3.0, 1.0, 2.0], 0.5) == 2.0


@pytest.mark.parametrize(("watched", "ok"), [([100.0, 102.0, 103.0], True), ([100.0, 104.0, 120.0], False)])
def test_watchers_may_cost_three_percent(watched: list[float], ok: bool) -> None:
    row = judged([99.0, 100.0, 101.0], watched, 200)
    assert (row["ok"], row["case"], row["chunks"]) == (ok, "200 watchers", [3, 3])


def test_the_page_has_its_marks() -> None:
    good, slow = [900.0, 950.0, 2000.0], [1001.0] * 3
    assert bench_page.judged(good, 0.05, 0, 1.0, 20)["ok"]
    for row in ((slow, 0.0, 0, 1.0), (good, 0.06, 0, 1.0), (good, 0.0, 1, 1.0), (good, 0.0, 0, 0.9)):
        assert not bench_page.judged(*row, 20)["ok"]


@pytest.mark.slow
def test_the_page_is_measured(chromium: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One load and one transition of the fake engine: figures that can be."""
    monkeypatch.setenv("CHROMIUM", chromium)
    monkeypatch.setattr(demo.bench, "_one_engine", lambda real: FakeEngine(16.0, (64, 64), 4, 0.02))
    row = asyncio.run(demo.bench.page_row(False, 1, 1))
    assert 0 < row["interactive_ms"]["p50"] == row["interactive_ms"]["worst"]
    assert 0 <= row["layout_shift"] <= 0.05
    assert 0 < row["transitions"]["slowest_rate"] <= 1.0


@pytest.mark.slow
def test_a_crowd_is_measured() -> None:
    """Some chunks of the fake engine, with a real server and a crowd of three."""

    async def run() -> dict[str, Any]:
        async with served(FakeEngine(16.0, (64, 64), 4, 0.02)) as port:
            return await measure_crowd(port, "a red ball", 3, 1.0)

    row = asyncio.run(run())
    assert min(row["chunks"]) >= 4
    assert row["chunk_ms"]["alone"] >= 20
