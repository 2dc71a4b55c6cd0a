"""Leaving without taking anything from anybody: a server that is to go takes no new viewers first."""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import uvicorn

SENT_AWAY = "this server is being renewed and takes nobody new; try again in a moment"


@dataclass
class Drain:
    """Whether a server is on its way out.

    Args:
        anybody: whether a viewer is here.
        clock: seconds, monotonic.
    """

    anybody: Callable[[], bool]
    clock: Callable[[], float]
    _ends: float | None = None

    @property
    def begun(self) -> bool:
        """Whether nobody new is taken."""
        return self._ends is not None

    @property
    def late(self) -> bool:
        """Whether those who are here have had their time."""
        return self._ends is not None and self.clock() >= self._ends

    @property
    def over(self) -> bool:
        """Whether the server may go."""
        return self.late or (self.begun and not self.anybody())

    def begin(self, seconds: float) -> None:
        """Take nobody new; those who are here have so many seconds, the fewest that were ever said."""
        ends = self.clock() + seconds
        self._ends = ends if self._ends is None else min(self._ends, ends)


class DrainingServer(uvicorn.Server):
    """A web server that drains when it is told to go (SIGTERM), and goes when it is told twice (or Ctrl-C).

    Args:
        drain: what begins then.
        seconds: that viewers have; 0: they have none.
    """

    def __init__(self, config: uvicorn.Config, drain: Callable[[float], None], seconds: float) -> None:
        super().__init__(config)
        self._drain, self._seconds = drain, seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come."""
        if sig == signal.SIGTERM and self._seconds > 0:
            seconds, self._seconds = self._seconds, 0.0
            self._drain(seconds)
            return
        super().handle_exit(sig, frame)
