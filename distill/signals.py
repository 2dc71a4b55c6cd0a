"""SIGINT and SIGTERM as a wish to stop after the step, seen by the training loop."""

import signal
import time
from types import FrameType, TracebackType
from typing import Any

# Seconds in which further signals count as the same wish to stop.
SIGNAL_PATIENCE = 3.0
SIGNAL_EXIT = {signal.SIGINT: 130, signal.SIGTERM: 143}


class StopSignals:
    """Within the context `received` is the number of the signal that asked for a stop, 0 before.

    Another signal some seconds later acts as usual.
    """

    def __init__(self) -> None:
        self.received = 0
        self._asked = float("inf")
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in SIGNAL_EXIT:
            self._previous[int(number)] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        # Ctrl-C reaches a process twice when a launcher passes on what the terminal has already sent.
        if time.monotonic() - self._asked > SIGNAL_PATIENCE:
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)
        self.received = number
        self._asked = min(self._asked, time.monotonic())
