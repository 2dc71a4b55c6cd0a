"""A TCP proxy that makes localhost a real link: a delay each way, and so many bits per second down."""

import asyncio
import contextlib
import time
from collections import deque
from dataclasses import dataclass

_PIECE = 4096


@dataclass(frozen=True)
class Link:
    """A link of `round_trip` seconds and, towards the viewer, `bits_per_second` (None: no limit)."""

    name: str
    round_trip: float = 0.0
    bits_per_second: float | None = None


class DelayProxy:
    """Forwards connections to `port` on this machine over a link."""

    def __init__(self, port: int, link: Link) -> None:
        self.target, self.link = port, link
        self.port = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "DelayProxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # a connection is opened by a round trip
        await asyncio.sleep(self.link.round_trip)
        near, far = await asyncio.open_connection("127.0.0.1", self.target)
        await asyncio.gather(
            self._carry(reader, far, None),
            self._carry(near, writer, self.link.bits_per_second),
            return_exceptions=True,
        )

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate: float | None
    ) -> None:
        """Pieces leave one after the other at the link's rate and arrive half a round trip later."""
        way: deque[tuple[float, bytes]] = deque()
        ready = asyncio.Event()
        delivering = asyncio.create_task(self._deliver(way, ready, writer))
        free = 0.0
        try:
            while data := await reader.read(_PIECE):
                free = max(free, time.monotonic()) + (8 * len(data) / rate if rate else 0.0)
                way.append((free + self.link.round_trip / 2, data))
                ready.set()
                # the link takes nothing more while it is busy: senders feel their own queue
                await asyncio.sleep(max(0.0, free - time.monotonic()))
        finally:
            way.append((time.monotonic(), b""))
            ready.set()
            with contextlib.suppress(OSError):
                await delivering

    async def _deliver(
        self, way: deque[tuple[float, bytes]], ready: asyncio.Event, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            while not way:
                ready.clear()
                await ready.wait()
            when, data = way.popleft()
            await asyncio.sleep(max(0.0, when - time.monotonic()))
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()
