"""What watchers cost the engine: how long chunks take with a crowd and without, in turns.

The one who steers is a client that plays as the page does; the crowd is a process of its own.
"""

import asyncio
import contextlib
import json
import statistics
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from .messages import FRAME_HEADER

# Chunks may take so much longer with a crowd.
MOST_SHARE = 1.03
_ROUNDS = 4
_SETTLE_SECONDS = 1.5
_ROOT = Path(__file__).resolve().parent.parent


async def measure_crowd(port: int, prompt: str, count: int, seconds: float) -> dict[str, Any]:
    """Chunk times of a stream with and without `count` watchers, `seconds` each, four times in turn.

    Returns:
        medians in milliseconds, their ratio, how many chunks they are of, and `ok`.
    """
    base = f"http://127.0.0.1:{port}/live"
    token = (await _post(f"{base}/session"))["session"]
    alone: list[float] = []
    watched: list[float] = []
    async with connect(f"ws://127.0.0.1:{port}/live/ws/{token}", max_size=None, compression=None) as socket:
        steering = Steering(socket)
        playing = asyncio.create_task(steering.play())
        await socket.send(json.dumps({"type": "start", "prompt": prompt, "seed": 0}))
        await asyncio.sleep(_SETTLE_SECONDS)
        link = (await _post(f"{base}/{token}/watch"))["watch"]
        address = f"ws://127.0.0.1:{port}/live/ws/watch/{link}"
        for _ in range(_ROUNDS):
            alone += await steering.times(seconds)
            async with _crowd(address, count):
                watched += await steering.times(seconds)
        playing.cancel()
    return judged(alone, watched, count)


def judged(alone: list[float], watched: list[float], count: int) -> dict[str, Any]:
    """The figures of two lists of chunk times in milliseconds, and whether they suffice."""
    first, second = statistics.median(alone), statistics.median(watched)
    figures = {
        "case": f"{count} watchers",
        "chunk_ms": {"alone": round(first, 2), "watched": round(second, 2)},
    }
    chunks = {"chunks": [len(alone), len(watched)]}
    return figures | chunks | {"ratio": round(second / first, 4), "ok": second <= MOST_SHARE * first}


class Steering:
    """The one who steers: a playing clock without a picture."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.made: list[float] = []

    async def play(self) -> None:
        """Acknowledge frames as a page does, and note how long chunks take."""
        loop = asyncio.get_running_loop()
        head, end, last, rate, epoch = 0.0, 0, loop.time(), 16.0, 0
        async for message in self.socket:
            now = loop.time()
            head, last = min(head + rate * (now - last), float(max(end, head))), now
            if isinstance(message, str):
                row = json.loads(message)
                if row["type"] == "chunk":
                    end, rate = row["end"], row["rate"]
                    self.made.append(row["gen_ms"])
                elif row["type"] == "place":
                    epoch = row["epoch"]
                continue
            seq = FRAME_HEADER.unpack(message[: FRAME_HEADER.size])[3]
            ack = {"type": "ack", "seq": seq, "epoch": epoch, "shown": int(head), "head": head}
            await self.socket.send(json.dumps(ack))

    async def times(self, seconds: float) -> list[float]:
        """How long the chunks of the next seconds take, in milliseconds."""
        await asyncio.sleep(_SETTLE_SECONDS)
        self.made.clear()
        await asyncio.sleep(seconds)
        return list(self.made)


@contextlib.asynccontextmanager
async def _crowd(address: str, count: int) -> AsyncIterator[None]:
    crowd = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "demo.crowd", address, str(count), cwd=_ROOT,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert crowd.stdout is not None
    assert crowd.stdin is not None
    try:
        await asyncio.wait_for(crowd.stdout.readline(), 120.0)
        yield
    finally:
        crowd.stdin.close()
        await crowd.wait()


async def _post(url: str) -> dict[str, Any]:
    def ask() -> dict[str, Any]:
        with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=30) as answer:
            return dict(json.loads(answer.read()))

    return await asyncio.to_thread(ask)
