"""A viewer without a browser: a page's clock and acknowledgements, in a few lines, for measurements."""

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from ..connection import CLOSE_UNKNOWN
from ..messages import FRAME_HEADER

# A display's turn.
_TURN_SECONDS = 1 / 60
_LONGEST_WAIT_SECONDS = 5.0


@dataclass
class Viewer:
    """Watches one stream, through a front, and through all that happens to it.

    Args:
        base: address of the front, `host:port`.
        prompt: what to watch.

    Attributes:
        shown: when each frame was shown, and which one it was.
        came: when each frame came, and which one it was.
        stood: seconds in which everything that was announced had been played.
        heard: messages that are about the connection, in order: `reopened`, `moved`, `queue`, `error`.
    """

    base: str
    prompt: str = "a red ball"
    shown: list[tuple[float, int]] = field(default_factory=list)
    came: list[tuple[float, int]] = field(default_factory=list)
    stood: float = 0.0
    heard: list[dict[str, Any]] = field(default_factory=list)
    token: str = ""
    before: str = ""
    _epoch: int = 0
    _end: int = 0
    _rate: float = 0.0
    _head: float = 0.0
    _seq: int = 0
    _playing: bool = False
    _started: bool = False
    _arrived: set[int] = field(default_factory=set)
    _last: float = field(default_factory=time.monotonic)

    @property
    def worker(self) -> str:
        """The worker that has the session."""
        return self.token.rpartition(".")[2]

    async def run(self) -> None:
        """Watch until cancelled; a lost connection is tried again as a page does."""
        tries = 0
        while True:
            code = await self._visit()
            if code == 0:
                tries += 1
            elif code == CLOSE_UNKNOWN:
                self.before, self.token = self.token or self.before, ""
                tries = 0
            else:
                tries = 1
            if tries:
                await asyncio.sleep(min(_LONGEST_WAIT_SECONDS, 0.25 * 2 ** (tries - 1)))

    async def _visit(self) -> int:
        """One connection; the code it was closed with, 0 where there was none."""
        try:
            if not self.token:
                await self._ticket()
            # frames are numbered anew for each session, and acknowledged once they have come
            self._seq = 0
            async with connect(f"ws://{self.base}/live/ws/{self.token}", proxy=None, max_size=None) as socket:
                turns = asyncio.create_task(self._turns(socket))
                try:
                    async for data in socket:
                        await self._hear(socket, data)
                finally:
                    turns.cancel()
                    with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                        await turns
                return socket.close_code or 1006
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd is not None else 1006
        except (OSError, TimeoutError, InvalidHandshake, httpx.HTTPError, ValueError):
            return 0

    async def _ticket(self) -> None:
        query = {"after": self.before} if self.before else {}
        async with httpx.AsyncClient(trust_env=False, timeout=10.0) as client:
            answer = await client.post(f"http://{self.base}/live/session", params=query)
        row = answer.json()
        if answer.status_code != 200:
            self.heard.append({"type": "error", "text": str(row.get("error"))})
            raise ValueError(f"no place: {row}")
        self.token = row["session"]
        if row["kept"]:
            self.before = ""

    async def _hear(self, socket: ClientConnection, data: str | bytes) -> None:
        if isinstance(data, bytes):
            _, _, _, self._seq, epoch, frame, _, _ = FRAME_HEADER.unpack(data[: FRAME_HEADER.size])
            if epoch == self._epoch:
                self._arrived.add(frame)
                self.came.append((time.monotonic(), frame))
            await self._acknowledge(socket)
            return
        message = json.loads(data)
        kind = message["type"]
        if kind == "state":
            self._playing, self._epoch = message["state"] == "playing", message["epoch"]
            if message["state"] == "ready" and not self._started:
                self._started = True
                await socket.send(json.dumps({"type": "start", "prompt": self.prompt, "seed": 1}))
        elif kind == "place":
            self._epoch, self._end, self._head = message["epoch"], message["frame"], float(message["frame"])
            self._arrived.clear()
        elif kind == "chunk" and message["epoch"] == self._epoch:
            self._end, self._rate = message["end"], message["rate"]
        if kind in ("reopened", "moved", "queue", "error"):
            self.heard.append(message)

    async def _turns(self, socket: ClientConnection) -> None:
        """What a display does: show the newest frame that is due."""
        while True:
            await asyncio.sleep(_TURN_SECONDS)
            now = time.monotonic()
            elapsed, self._last = now - self._last, now
            if self._playing and self._rate:
                self.stood += max(0.0, self._head + elapsed * self._rate - self._end) / self._rate
                self._head = min(self._head + elapsed * self._rate, max(float(self._end), self._head))
            due = [frame for frame in self._arrived if frame <= self._head]
            if due:
                self.shown.append((now, max(due)))
                self._arrived = {frame for frame in self._arrived if frame > max(due)}
                await self._acknowledge(socket)

    async def _acknowledge(self, socket: ClientConnection) -> None:
        if not self._seq:
            return
        shown = self.shown[-1][1] if self.shown else 0
        row = {"type": "ack", "seq": self._seq, "epoch": self._epoch, "shown": shown, "head": self._head}
        await socket.send(json.dumps(row))
