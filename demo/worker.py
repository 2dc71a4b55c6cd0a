"""The engine's thread: makes chunks for all running sessions, the one that is due first before the others."""

import math
import threading
import time
from collections.abc import Callable

from .live import LiveSession
from .pacing import playing_rate

_LONGEST_WAIT = 0.5


class Worker:
    """One thread beside the web loop; `run_once` is what it repeats."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._sessions: list[LiveSession] = []
        self._changed = threading.Condition()
        self._poked = False
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin the thread."""
        self._thread = threading.Thread(target=self._run, name="streamgen-engine", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """End the thread after the chunk in work."""
        self._stopping = True
        self.poke()
        if self._thread is not None:
            self._thread.join(timeout)

    def poke(self) -> None:
        """Something may have become due."""
        with self._changed:
            self._poked = True
            self._changed.notify()

    def add(self, session: LiveSession) -> None:
        """Work for a session from now on."""
        with self._changed:
            self._sessions = [*self._sessions, session]
        self.poke()

    def remove(self, session: LiveSession) -> None:
        """Work for it no more."""
        with self._changed:
            self._sessions = [other for other in self._sessions if other is not session]

    def run_once(self, now: float) -> float:
        """Do the most urgent work, if any is due; returns the seconds until the next."""
        with self._changed:
            sessions = self._sessions
        playing = [session for session in sessions if session.state == "playing"]
        expected = sum(session.times.expected for session in playing)
        urgent, when = None, math.inf
        for session in sessions:
            due = session.due(now, expected - session.times.expected if session in playing else 0.0)
            if due < when:
                urgent, when = session, due
        if urgent is None or when > now:
            return min(when - now, _LONGEST_WAIT)
        urgent.work()
        self._share(playing)
        return 0.0

    def _share(self, playing: list[LiveSession]) -> None:
        """Have all play at the rate that the engine keeps up with."""
        load = sum(s.times.mean * s.engine.info.fps / s.engine.info.chunk_frames for s in playing)
        for session in playing:
            session.slow_to(playing_rate(session.engine.info.fps, load))

    def _run(self) -> None:
        while not self._stopping:
            wait = self.run_once(self.clock())
            with self._changed:
                if wait > 0 and not self._poked:
                    self._changed.wait(wait)
                self._poked = False
