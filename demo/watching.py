"""Watchers: links that see a running stream without steering it.

A link has an id of its own, which opens nothing but the view; whoever steers makes it, and may take it back.
"""

import asyncio
import contextlib
import json
import secrets
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import WebSocket

from .live import LiveSession
from .lobby import Seat
from .messages import Ack, BadMessage, parse
from .relay import Item, Relay

CLOSE_UNKNOWN, CLOSE_ENDED, CLOSE_FULL = 4404, 4003, 4429
# Links that are kept, those of sessions that are over included, which may come back.
_MOST_LINKS = 4096
_TICK_SECONDS = 0.5
_SEND_SECONDS = 10.0
# Frames are left out for a watcher who has not taken those that were sent so long ago.
_UNSEEN_SECONDS = 2.0
# Messages of a watcher: what made no sense, and how many a second are taken.
MAX_BAD = 20
MAX_RATE = 20


class Gallery:
    """Links to watch, and how many use them. Used from the web loop alone.

    Args:
        most: watchers at a time, of all streams together.
        find: the seat of a session id.
    """

    def __init__(self, most: int, find: Callable[[str], Seat | None]) -> None:
        self.most, self._find = most, find
        self._tokens: dict[str, str] = {}
        self.watchers = 0

    def link(self, token: str) -> str:
        """The id under which a session is watched; made if there is none."""
        found = next((key for key, of in self._tokens.items() if of == token), None)
        if found is None:
            found = secrets.token_urlsafe(32)
            self._tokens[found] = token
            while len(self._tokens) > _MOST_LINKS:
                del self._tokens[next(iter(self._tokens))]
        return found

    def seat(self, key: str) -> Seat | None:
        """The seat that a link shows, while it has a session."""
        token = self._tokens.get(key)
        seat = None if token is None else self._find(token)
        return None if seat is None or seat.session is None else seat

    def take_back(self, token: str) -> None:
        """No link shows this session any more; who watches is told."""
        self._tokens = {key: of for key, of in self._tokens.items() if of != token}
        seat = self._find(token)
        if seat is not None and seat.session is not None:
            seat.session.relay.say({"type": "ended", "text": "the link to watch was taken back"})

    def hand_over(self, before: str, token: str) -> None:
        """A stream goes on in another session: its link shows that one."""
        self._tokens = {key: token if of == before else of for key, of in self._tokens.items()}

    @contextlib.contextmanager
    def place(self) -> Iterator[bool]:
        """A place to watch from, while this is entered; False where there is none."""
        if self.watchers >= self.most:
            yield False
            return
        self.watchers += 1
        try:
            yield True
        finally:
            self.watchers -= 1


class WatchLine:
    """One watcher's connection: what the session shows goes out, and nothing that steers comes in."""

    def __init__(self, websocket: WebSocket, session: LiveSession, hello: dict[str, Any]) -> None:
        self.websocket, self.session, self.hello = websocket, session, hello
        self.relay: Relay = session.relay
        # numbers of what was sent and not acknowledged, and when that was
        self._under_way: deque[tuple[int, float]] = deque()
        self._allowance, self._bad = float(MAX_RATE), 0
        self._counted = session.clock()

    async def run(self) -> None:
        """Serve until either side goes."""
        with self.relay.joined():
            tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._send())]
            for task in tasks:
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()

    async def _receive(self) -> None:
        while True:
            event = await self.websocket.receive()
            if event["type"] == "websocket.disconnect":
                return
            if not self._within_rate():
                await self.websocket.close(1008, "too many messages")
                return
            try:
                self._take(event.get("text"))
            except BadMessage as error:
                self._bad += 1
                await self._text(json.dumps({"type": "error", "code": "bad_message", "text": str(error)}))
                if self._bad > MAX_BAD:
                    await self.websocket.close(1008, "messages that make no sense")
                    return

    def _take(self, text: str | None) -> None:
        message = parse(text if text is not None else b"")
        if not isinstance(message, Ack):
            raise BadMessage("this link only watches: the page that shared it steers the stream")
        while self._under_way and self._under_way[0][0] <= message.seq:
            self._under_way.popleft()

    async def _send(self) -> None:
        await self._text(json.dumps(self.hello, ensure_ascii=False))
        number = await self._place()
        while True:
            try:
                item = self.relay.read(number)
            except LookupError:
                # too slow for what is kept
                number = await self._place()
                continue
            if item is None:
                if self.session.state == "ended":
                    await self._ended(json.dumps({"type": "ended", "text": "the stream is over"}))
                    return
                await self.relay.news(_TICK_SECONDS)
            elif item.text:
                if item.last:
                    await self._ended(item.text)
                    return
                await self._text(item.text)
                number += 1
            else:
                await self._frames(item, number)
                number += 1

    async def _place(self) -> int:
        """Say where the stream is; returns the number of what comes next."""
        rows, number = self.session.standing()
        for row in rows:
            await self._text(json.dumps(row, ensure_ascii=False))
        return number

    async def _frames(self, item: Item, number: int) -> None:
        """Frames are left out for whoever has not taken those of the last seconds."""
        now = self.session.clock()
        if self._under_way and now - self._under_way[0][1] > _UNSEEN_SECONDS:
            return
        self._under_way.append((number, now))
        for bundle in await item.bundles(number):
            async with asyncio.timeout(_SEND_SECONDS):
                await self.websocket.send_bytes(bundle)

    async def _ended(self, text: str) -> None:
        await self._text(text)
        await self.websocket.close(CLOSE_ENDED, json.loads(text)["text"])

    async def _text(self, text: str) -> None:
        async with asyncio.timeout(_SEND_SECONDS):
            await self.websocket.send_text(text)

    def _within_rate(self) -> bool:
        now = self.session.clock()
        self._allowance = min(MAX_RATE, self._allowance + (now - self._counted) * MAX_RATE) - 1
        self._counted = now
        return self._allowance >= 0
