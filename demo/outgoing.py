"""Messages on their way to one viewer, bounded: newer figures replace older ones that were not sent yet."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

MAX_WAITING = 256
# Of these only the newest matters.
_REPLACED = ("stats", "queue", "state", "loading", "held")


class Outgoing:
    """What the server says to a viewer. Thread-safe.

    Args:
        wake: called (from any thread) when there is something to send.

    Attributes:
        also: told of every message, too.
    """

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self.wake = wake
        self.also: Callable[[dict[str, Any]], None] = lambda message: None
        self.overflowed = False
        self._waiting: deque[dict[str, Any]] = deque()
        self._lock = threading.Lock()

    def say(self, message: dict[str, Any]) -> None:
        """Queue a message; a viewer who takes none of 256 is marked as overflowed, and gets no more."""
        self.also(message)
        with self._lock:
            if message["type"] in _REPLACED:
                self._waiting = deque(m for m in self._waiting if m["type"] != message["type"])
            if len(self._waiting) >= MAX_WAITING:
                self.overflowed = True
                return
            self._waiting.append(message)
        self.wake()

    def take(self) -> list[dict[str, Any]]:
        """All that waits, in order."""
        with self._lock:
            waiting, self._waiting = list(self._waiting), deque()
            return waiting

    def clear(self) -> None:
        """Forget what waits: it was meant for a connection that is gone."""
        with self._lock:
            self._waiting.clear()
            self.overflowed = False
