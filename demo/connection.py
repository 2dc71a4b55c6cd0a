"""The connection of a page that steers: messages in, messages and frames out."""

import asyncio
import contextlib
import json
import traceback
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from . import pictures
from .lobby import Lobby, Seat
from .messages import MAX_MESSAGE_BYTES, BadMessage, Step, pack_frame, parse
from .messages import Ack as AckMessage
from .webcam import read_frame

# Beyond these a connection is closed: messages per second, and messages that made no sense.
MAX_RATE = 300
MAX_BAD = 20
_WAIT_SECONDS = 0.25
_SEND_SECONDS = 10.0
# What clients close with that mean to go: programs, and browsers as a page is closed, loaded again or left.
CLOSE_LEFT = (1000, 1001)
CLOSE_UNKNOWN, CLOSE_REPLACED, CLOSE_ENDED = 4404, 4001, 4003


class Connection:
    """One WebSocket connection: messages in by one task, messages and frames out by another.

    Args:
        lobby: where the seat is.
        hello: what the page is told first.
    """

    def __init__(self, websocket: WebSocket, lobby: Lobby, seat: Seat, hello: dict[str, Any]) -> None:
        self.websocket, self.lobby, self.seat, self.hello = websocket, lobby, seat, hello
        self._awake = asyncio.Event()
        self._bad, self._closed = 0, False
        self._allowance, self._counted = float(MAX_RATE), lobby.clock()

    async def run(self) -> None:
        """Serve until either side goes."""
        lobby, seat = self.lobby, self.seat
        loop = asyncio.get_running_loop()

        def wake() -> None:
            # the loop may be gone while the engine's thread still ends a chunk
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._awake.set)

        seat.outgoing.wake = wake
        await self._send_json(self.hello)
        if lobby.connect(seat.token) is None:
            await self.websocket.close(CLOSE_UNKNOWN, "no such session")
            return
        visit = seat.visit
        self._tell_watchers(True)
        tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._send(visit))]
        for task in tasks:
            task.add_done_callback(_settled)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # nothing is awaited here: this may itself be a cancellation, which another one must not replace
            for task in tasks:
                task.cancel()
            lobby.disconnect(seat, visit, self._closed)
            if not seat.connected:
                self._tell_watchers(False)

    def _tell_watchers(self, here: bool) -> None:
        if self.seat.session is not None:
            self.seat.session.relay.say({"type": "host", "here": here})

    async def _receive(self) -> None:
        while True:
            event = await self.websocket.receive()
            if event["type"] == "websocket.disconnect":
                self._closed = event.get("code") in CLOSE_LEFT
                return
            if not self._within_rate():
                await self.websocket.close(1008, "too many messages")
                return
            try:
                text = event.get("text")
                if text is None:
                    await self._see(event["bytes"])
                else:
                    self._handle(text)
            except BadMessage as error:
                self._bad += 1
                self.seat.outgoing.say({"type": "error", "code": "bad_message", "text": str(error)})
                if self._bad > MAX_BAD or len(text or "") > MAX_MESSAGE_BYTES:
                    await self.websocket.close(1008, "messages that make no sense")
                    return

    async def _see(self, data: bytes) -> None:
        """A picture of the viewer's camera."""
        session = self.seat.session
        frame = await asyncio.to_thread(read_frame, data, self.hello["height"], self.hello["width"])
        if session is None:
            raise BadMessage("camera frame: wait for your turn")
        self.lobby.heard(self.seat)
        session.see(frame)
        self._awake.set()

    def _handle(self, text: str) -> None:
        message = parse(text)
        if not isinstance(message, AckMessage | Step):
            self.lobby.heard(self.seat)
        if self.seat.session is None:
            raise BadMessage("wait for your turn" if not self.seat.over else "the session has ended")
        self.seat.session.handle(message)
        self._awake.set()

    async def _send(self, visit: int) -> None:
        seat, websocket = self.seat, self.websocket
        while True:
            self._awake.clear()
            if seat.visit != visit:
                await websocket.close(CLOSE_REPLACED, "the page has connected again")
                return
            for message in seat.outgoing.take():
                await self._send_json(message)
                if message["type"] == "ended":
                    await websocket.close(CLOSE_ENDED, message["text"])
                    return
                if message["type"] == "moved":
                    await websocket.close(CLOSE_UNKNOWN, message["text"])
                    return
            if seat.outgoing.overflowed:
                await websocket.close(1013, "messages are not taken fast enough")
                return
            session = seat.session
            item = None if session is None else session.next_frame()
            if item is None:
                # not wait_for: in Python 3.11 it loses a cancellation that comes together with the event
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_WAIT_SECONDS):
                        await self._awake.wait()
                continue
            seq, frame = item
            small = pictures.is_small(frame.pixels)
            encoding, data = frame.encoded() if small else await asyncio.to_thread(frame.encoded)
            packed = pack_frame(data, encoding, seq, frame.epoch, frame.frame, frame.chunk, frame.made)
            async with asyncio.timeout(_SEND_SECONDS):
                await websocket.send_bytes(packed)

    async def _send_json(self, message: dict[str, Any]) -> None:
        text = json.dumps(message, ensure_ascii=False)
        async with asyncio.timeout(_SEND_SECONDS):
            await self.websocket.send_text(text)

    def _within_rate(self) -> bool:
        """A bucket of 300 messages that fills by 300 a second."""
        now = self.lobby.clock()
        self._allowance = min(MAX_RATE, self._allowance + (now - self._counted) * MAX_RATE) - 1
        self._counted = now
        return self._allowance >= 0


def _settled(task: asyncio.Task[None]) -> None:
    """Take a task's end: a connection may break at any moment, all else is an error of ours."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(
        error, WebSocketDisconnect | OSError | TimeoutError | RuntimeError
    ):
        traceback.print_exception(error)
