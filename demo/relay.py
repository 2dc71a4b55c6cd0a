"""What a session shows, for those who only watch it: said once, packed once, sent to each of them as it is.

A watcher costs the engine nothing: no chunk is made for them, nothing waits for them, and a picture is
encoded once for all. What they are told lies in one row of about two seconds; each reads it at their own
pace, and whoever falls behind it is shown where the stream is now.
"""

import asyncio
import contextlib
import json
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .messages import pack_frame
from .pictures import OutFrame, is_small

# Seconds of the stream that are kept for watchers who are not as far yet.
REACH_SECONDS = 2.0
# Beyond this a bundle of frames is ended and the next one begun.
_BUNDLE_BYTES = 96 * 1024
# Of a session's messages those that say what is to be seen; of receipts those that took effect.
_TOLD = ("state", "chunk", "place", "receipt", "held", "relabelled", "ended")
BUNDLE_HEADER = struct.Struct("<BBHI")
BUNDLE_VERSION = 2
_LENGTH = struct.Struct("<I")


def for_watchers(message: dict[str, Any]) -> dict[str, Any] | None:
    """A session's message as watchers get it; None for what is not theirs."""
    kind = message["type"]
    if kind not in _TOLD or (kind == "receipt" and message["status"] != "applied"):
        return None
    if kind == "receipt":
        return message | {"id": 0}
    if kind == "place":
        # nobody goes back or takes up a branch here
        return message | {"marks": [], "takes": [], "no_rewind": ""}
    if kind == "ended":
        return {"type": "ended", "text": "the stream that you watched is over"}
    return message


@dataclass(eq=False)
class Item:
    """One thing that watchers get: a text, the `last` one perhaps, or frames that are packed when the first
    watcher takes them.
    """

    at: float
    text: str = ""
    last: bool = False
    frames: tuple[OutFrame, ...] = ()
    _packed: "asyncio.Task[list[bytes]] | None" = field(default=None, repr=False)

    async def bundles(self, number: int) -> list[bytes]:
        """The frames as binary messages; packed once, whoever asks."""
        if self._packed is None:
            self._packed = asyncio.create_task(self._pack(number))
        return await asyncio.shield(self._packed)

    async def _pack(self, number: int) -> list[bytes]:
        if all(is_small(frame.pixels) for frame in self.frames):
            return pack(self.frames, number)
        return await asyncio.to_thread(pack, self.frames, number)


def pack(frames: Sequence[OutFrame], number: int) -> list[bytes]:
    """Frames in as few binary messages as lie within about 96 KiB each.

    Each is a header of 8 bytes (version 2, how many frames, 0, `number`), and for each frame its length
    (u32) and the frame as `pack_frame` makes it, `number` in place of its sequence number.
    """
    made: list[bytes] = []
    held: list[bytes] = []
    for index, frame in enumerate(frames):
        encoding, data = frame.encoded()
        one = pack_frame(data, encoding, number, frame.epoch, frame.frame, frame.chunk, frame.made)
        held.append(_LENGTH.pack(len(one)) + one)
        last = index == len(frames) - 1
        if last or len(held) == 255 or sum(map(len, held)) >= _BUNDLE_BYTES:
            made.append(BUNDLE_HEADER.pack(BUNDLE_VERSION, len(held), 0, number) + b"".join(held))
            held = []
    return made


class Relay:
    """One session's row of things to tell its watchers. Written from any thread, read from the web loop.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._items: deque[Item] = deque()
        self._end = 0
        self._watchers = 0
        self._lock = threading.Lock()
        self._news: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._poked = False

    @property
    def watchers(self) -> int:
        """How many watch."""
        return self._watchers

    @property
    def end(self) -> int:
        """The number of the next thing that will be said."""
        return self._end

    def hear(self, message: dict[str, Any]) -> None:
        """The session says something to its viewer."""
        if self._watchers:
            told = for_watchers(message)
            if told is not None:
                self.say(told)

    def say(self, message: dict[str, Any]) -> None:
        """Tell all watchers."""
        if self._watchers:
            text = json.dumps(message, ensure_ascii=False)
            self._add(Item(self.clock(), text, message["type"] == "ended"))

    def show(self, frames: Sequence[OutFrame]) -> None:
        """The session has new frames."""
        if self._watchers and frames:
            self._add(Item(self.clock(), frames=tuple(frames)))

    @contextlib.contextmanager
    def joined(self) -> Any:
        """One more watches, until this is left; in the web loop."""
        self._loop = asyncio.get_running_loop()
        self._watchers += 1
        try:
            yield
        finally:
            self._watchers -= 1
            if not self._watchers:
                with self._lock:
                    self._items.clear()

    def read(self, number: int) -> Item | None:
        """Thing number `number`; None while it was not said yet.

        Raises:
            LookupError: it is not kept any more.
        """
        with self._lock:
            first = self._end - len(self._items)
            if number < first:
                raise LookupError(number)
            return self._items[number - first] if number < self._end else None

    async def news(self, seconds: float) -> None:
        """Wait until something is said, so long at most."""
        if self._news is None:
            self._news = asyncio.Event()
        # not wait_for: in Python 3.11 it loses a cancellation that comes together with the event
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    def _add(self, item: Item) -> None:
        with self._lock:
            self._items.append(item)
            self._end += 1
            while item.at - self._items[0].at > REACH_SECONDS:
                self._items.popleft()
            poked, self._poked = self._poked, True
        if not poked and self._loop is not None:
            # the loop may be gone while the engine's thread still ends a chunk
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        with self._lock:
            self._poked = False
        news, self._news = self._news, None
        if news is not None:
            news.set()
