"""`python -m demo.crowd WS_ADDRESS COUNT`: so many watchers of one stream, for measurements.

They are in a process of their own, so that what they take is not the server's. Says `here` once all have had
a picture, and ends when its input does.
"""

import asyncio
import json
import struct
import sys
from typing import Any

from websockets.asyncio.client import connect

# As `relay` packs it, whose imports would take longer than a measurement.
_HEADER = struct.Struct("<BBHI")
_ACK_SECONDS = 0.4


async def watch(address: str, here: "asyncio.Queue[int]") -> None:
    """One watcher: takes everything, shows nothing."""
    async with connect(address, compression=None, max_size=None) as socket:
        told, first = 0.0, True
        loop = asyncio.get_running_loop()
        async for message in socket:
            if isinstance(message, str):
                continue
            number = _HEADER.unpack(message[: _HEADER.size])[3]
            if first:
                first = False
                here.put_nowait(1)
            if loop.time() - told >= _ACK_SECONDS:
                told = loop.time()
                row: dict[str, Any] = {"type": "ack", "seq": number, "epoch": 1, "shown": 0, "head": 0}
                await socket.send(json.dumps(row))


async def run(address: str, count: int) -> None:
    """All of them, until the input ends."""
    here: asyncio.Queue[int] = asyncio.Queue()
    watchers = [asyncio.create_task(watch(address, here)) for _ in range(count)]
    for _ in range(count):
        await here.get()
    print("here", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for watcher in watchers:
        watcher.cancel()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], int(sys.argv[2])))
