"""A viewer's connection through a front: messages and frames pass on as they are, both ways."""

import asyncio
import contextlib
import json
import time
from typing import Protocol

from fastapi import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from ..connection import CLOSE_LEFT, CLOSE_UNKNOWN
from .addresses import routed
from .roster import Roster
from .worker import KEY_HEADER

DIED = "The machine that made your stream is gone."
# What says that the way is lost and the session is not; pages try again at once.
_RESTART, _LOST = 1012, 1011
# Codes with which a worker ends a connection for reasons of its own; anything else is an accident.
_ENDED = (1000, 1008, 1013)
_OPEN_SECONDS, _PING_SECONDS, _PONG_SECONDS = 3.0, 2.0, 4.0


class Switchboard(Protocol):
    """What a connection needs of its front."""

    roster: Roster
    connections: set["Connection"]
    moved: int


class Connection:
    """One viewer's connection.

    Attributes:
        waits_since: since when its viewer has waited in the row of `worker`; None: they do not.
    """

    def __init__(self, front: Switchboard, websocket: WebSocket, path: str) -> None:
        self.front, self.websocket = front, websocket
        self.path, self.worker = routed(path)
        self.waits_since: float | None = None
        self._place_elsewhere = asyncio.Event()

    def change(self) -> None:
        """There is a place at another worker: the page is to ask for it."""
        self._place_elsewhere.set()

    async def run(self) -> None:
        """Serve until either side goes."""
        await self.websocket.accept()
        post = self.front.roster.find(self.worker)
        if post is None or post.about is None:
            await self.websocket.close(CLOSE_UNKNOWN, "no such session")
            return
        instance = post.load.instance if post.load is not None else ""
        try:
            upstream = await connect(
                f"ws://{post.about.address}/{self.path}",
                additional_headers={KEY_HEADER: post.about.key},
                open_timeout=_OPEN_SECONDS,
                ping_interval=_PING_SECONDS,
                ping_timeout=_PONG_SECONDS,
                compression=None,
                max_size=None,
                proxy=None,
            )
        except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed):
            await self._worker_lost(instance)
            return
        self.front.connections.add(self)
        try:
            await self._pass_on(upstream, instance)
        finally:
            self.front.connections.discard(self)

    async def _pass_on(self, upstream: ClientConnection, instance: str) -> None:
        up = asyncio.create_task(self._up(upstream))
        down = asyncio.create_task(self._down(upstream))
        elsewhere = asyncio.create_task(self._place_elsewhere.wait())
        code = _LOST
        try:
            await asyncio.wait((up, down, elsewhere), return_when=asyncio.FIRST_COMPLETED)
            error = down.exception() if down.done() else None
            if error is not None and not isinstance(error, WebSocketDisconnect | RuntimeError | OSError):
                raise error
            if down.done() and error is None:
                await self._worker_closed(upstream, instance)
            elif up.done() and up.exception() is None:
                code = up.result()
            elif elsewhere.done():
                code = CLOSE_LEFT[0]
                await self.websocket.close(CLOSE_UNKNOWN, "a place is free at another machine")
        finally:
            for task in (up, down, elsewhere):
                task.cancel()
            # what the worker is told decides how long it keeps the place
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1.0):
                    await upstream.close(code)

    async def _up(self, upstream: ClientConnection) -> int:
        """Pass the viewer's messages on; returns the code for the worker when they go."""
        while True:
            event = await self.websocket.receive()
            if event["type"] == "websocket.disconnect":
                return int(event["code"]) if event.get("code") in CLOSE_LEFT else _LOST
            data = event.get("text")
            try:
                await upstream.send(event["bytes"] if data is None else data)
            except ConnectionClosed:
                # the other direction finds out why
                await asyncio.sleep(3600)

    async def _down(self, upstream: ClientConnection) -> None:
        """Pass the worker's messages and frames on, until it closes."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                data = await upstream.recv()
                if isinstance(data, bytes):
                    await self.websocket.send_bytes(data)
                else:
                    self._overhear(data)
                    await self.websocket.send_text(data)

    def _overhear(self, text: str) -> None:
        """Whether the viewer waits in a row: the server writes a message's type first."""
        if text.startswith('{"type": "queue"'):
            self.waits_since = self.waits_since or time.monotonic()
        elif text.startswith('{"type": "state"'):
            self.waits_since = None

    async def _worker_closed(self, upstream: ClientConnection, instance: str) -> None:
        code, reason = upstream.close_code or 0, upstream.close_reason or ""
        if code in _ENDED or 4000 <= code < 5000:
            await self.websocket.close(code, reason)
        else:
            await self._worker_lost(instance)

    async def _worker_lost(self, instance: str) -> None:
        """The way to the worker is gone, or the worker with what it held."""
        found = await self.front.roster.alive(self.worker)
        if found and (found == instance or not instance):
            await self.websocket.close(_RESTART, "the way to your stream was lost")
            return
        self.front.moved += 1
        await self.websocket.send_text(json.dumps({"type": "moved", "text": DIED}))
        await self.websocket.close(CLOSE_UNKNOWN, "the machine is gone")
