"""What a session does between chunks, one after the other."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

MAX_COMMANDS = 8


@dataclass(frozen=True)
class _Command:
    run: Callable[[], None]
    waits: tuple[Future[Any], ...]

    @property
    def ready(self) -> bool:
        return all(future.done() for future in self.waits)


class Commands:
    """Commands that wait, in order; at most eight."""

    def __init__(self) -> None:
        self._waiting: deque[_Command] = deque()

    @property
    def due(self) -> bool:
        """Whether the first one can be done."""
        return bool(self._waiting) and self._waiting[0].ready

    @property
    def waits(self) -> bool:
        """Whether any of them waits for something."""
        return not all(command.ready for command in self._waiting)

    def add(self, run: Callable[[], None], waits: tuple[Future[Any], ...] = ()) -> bool:
        """Do something once those before are done and `waits` are there. False where too many wait."""
        if len(self._waiting) >= MAX_COMMANDS:
            return False
        self._waiting.append(_Command(run, waits))
        return True

    def take(self) -> Callable[[], None] | None:
        """The first one, if it can be done."""
        return self._waiting.popleft().run if self.due else None

    def clear(self) -> None:
        """Forget all of them."""
        self._waiting.clear()
