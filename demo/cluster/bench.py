"""`python -m demo.cluster.bench`: two fronts and two workers on a Ray of this machine, four viewers, and a
worker that is killed under them.

The engine is the fake one at 30 frames per second. Viewers have a page's clock and no browser. Told are the
share of offered frames that was shown, and after the kill how long viewers saw no picture and how much of it
was lost. Where a share is too small it is told why: frames that did not come (sent too late, or left out on
the way), seconds in which a viewer had nothing to play (the workers were too slow), else the viewers' own
turns came late; and how many programs wanted a core, which on an idle machine are fewer than there are cores.
"""

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn

from ..fake_engine import FakeEngine
from ..limits import Limits
from ..lobby import Rules
from ..server import SERVER_OPTIONS
from .fleet import Fleet, Share
from .front import Front, FrontOptions, front_app
from .start import first_of
from .viewer import Viewer
from .worker import Order

FPS, LEAST_SHOWN, MOST_SECONDS = 30.0, 0.95, 5.0
_VIEWERS, _WARM_SECONDS, _START_SECONDS = 4, 3.0, 240.0


@dataclass(frozen=True)
class Loss:
    """What a viewer of a killed worker went through: seconds without a picture, seconds of picture lost."""

    dark: float
    lost: float


def shown_share(shown: Sequence[tuple[float, int]], since: float, until: float) -> float:
    """Which share of the frames that a viewer was offered between two times was shown."""
    count = len({frame for moment, frame in shown if since <= moment < until})
    return count / (FPS * (until - since))


def loss_of(shown: Sequence[tuple[float, int]], killed: float) -> Loss | None:
    """What a kill cost; None where no picture has come since that goes on with the stream."""
    before = [row for row in shown if row[0] < killed]
    # the way may hold a few frames yet: the stream has gone on once a frame comes after a pause
    for (last_at, last), (at, frame) in zip(shown[len(before) - 1 :], shown[len(before) :], strict=False):
        if frame <= last or at - last_at > 0.5:
            return Loss(at - last_at, max(0.0, (last + 1 - frame) / FPS))
    return None


async def measure(fleet: Fleet, order: Order, seconds: float) -> dict[str, Any]:
    """Serve, watch, kill, watch on; the figures by name."""
    about = await asyncio.to_thread(first_of, fleet, order, _START_SECONDS)
    assert about.info is not None
    fronts = [Front(fleet, FrontOptions()) for _ in range(2)]
    servers = [
        uvicorn.Server(
            uvicorn.Config(
                front_app(front, about.info), host="127.0.0.1", port=0, log_level="error", **SERVER_OPTIONS
            )
        )
        for front in fronts
    ]
    serving = [asyncio.create_task(server.serve()) for server in servers]
    await _until(lambda: all(server.started for server in servers), "the fronts do not come up")
    await _until(
        lambda: all([post.status for post in f.roster.posts.values()] == ["ready"] * 2 for f in fronts),
        "the workers do not come up",
    )
    ports = [server.servers[0].sockets[0].getsockname()[1] for server in servers]
    viewers = [Viewer(f"127.0.0.1:{ports[i % 2]}") for i in range(_VIEWERS)]
    watching = [asyncio.create_task(viewer.run()) for viewer in viewers]
    try:
        await _until(lambda: all(len(viewer.shown) > 8 for viewer in viewers), "there are no pictures")
        await asyncio.sleep(_WARM_SECONDS)
        began, stood = time.monotonic(), [viewer.stood for viewer in viewers]
        await asyncio.sleep(seconds)
        ended = time.monotonic()
        shares = [shown_share(viewer.shown, began, ended) for viewer in viewers]
        why = {
            "came": [round(shown_share(viewer.came, began, ended), 3) for viewer in viewers],
            "stood_seconds": [
                round(viewer.stood - before, 2) for viewer, before in zip(viewers, stood, strict=True)
            ],
            "load": [round(os.getloadavg()[0], 1), os.cpu_count()],
        }
        losses = await _kill_under(fleet, viewers, viewers[0].worker)
    finally:
        for task in watching:
            task.cancel()
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*serving)
    return judged(shares, losses) | why


def judged(shares: Sequence[float], losses: Sequence[Loss | None]) -> dict[str, Any]:
    """Figures and whether they suffice."""
    back = [loss for loss in losses if loss is not None]
    ok = min(shares) >= LEAST_SHOWN and len(back) == len(losses) > 0
    ok = ok and all(loss.dark <= MOST_SECONDS and loss.lost <= MOST_SECONDS for loss in back)
    return {
        "viewers": len(shares),
        "shown": [round(share, 3) for share in shares],
        "killed_under": len(losses),
        "came_back": len(back),
        "dark_seconds": [round(loss.dark, 2) for loss in back],
        "lost_seconds": [round(loss.lost, 2) for loss in back],
        "ok": ok,
    }


async def _kill_under(fleet: Fleet, viewers: Sequence[Viewer], worker: str) -> list[Loss | None]:
    about = await asyncio.to_thread(fleet.about, worker, 5.0)
    assert about is not None
    hit = [viewer for viewer in viewers if viewer.worker == worker]
    killed = time.monotonic()
    os.kill(about.pid, signal.SIGKILL)
    while time.monotonic() < killed + 4 * MOST_SECONDS:
        await asyncio.sleep(0.1)
        losses = [loss_of(viewer.shown, killed) for viewer in hit]
        if all(loss is not None for loss in losses):
            break
    return losses


async def _until(true: Any, otherwise: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(otherwise)
        await asyncio.sleep(0.05)


def main(
    seconds: Annotated[float, typer.Option(min=1, help="Length of the measurement.")] = 20.0,
    size: Annotated[str, typer.Option(help="Of pictures, WIDTHxHEIGHT.")] = "64x64",
) -> None:
    """Measure; exit code 1 where a figure misses its mark. Needs the extra ray."""
    width, height = (int(part) for part in size.split("x"))
    fleet = Fleet(f"bench-{os.getpid()}")
    with tempfile.TemporaryDirectory() as shelf:
        make = partial(FakeEngine, FPS, (height, width), 4, 0.03)
        rules = Rules(max_sessions=_VIEWERS, idle_seconds=0.0)
        order = Order(make, rules, Limits(), Path(shelf), Path.cwd(), "{}")
        # two actors fit on a machine of any size
        fleet.start(2, Share(cpus=0.5), order)
        try:
            row = asyncio.run(measure(fleet, order, seconds))
        finally:
            fleet.dismiss(fleet.names())
    print(json.dumps(row, indent=1))
    if not row["ok"]:
        print("a figure misses its mark", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
