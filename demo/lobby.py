"""Who may watch: a fixed number of sessions run, the others wait in a row and see their place.

Used from the web loop alone. Session ids are 256 random bits, given out one per page.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .live import LiveSession
from .outgoing import Outgoing
from .shelf import Kept


@dataclass(frozen=True)
class Rules:
    """Limits of the room.

    Attributes:
        max_sessions: streams at a time.
        max_waiting: viewers in the row.
        grace_seconds: how long a place is kept for a page that lost its connection; its stream waits.
        closed_seconds: the same for a page that was closed, or is being loaded again.
        loading_seconds: how much longer once the reloading page has said that it is on its way.
        idle_seconds: without any input, a session ends after this; 0: never.
        notice_seconds: how long before that the viewer is told.
        ticket_seconds: how long an id is good before its page connects.
    """

    max_sessions: int = 2
    max_waiting: int = 64
    grace_seconds: float = 180.0
    closed_seconds: float = 4.0
    loading_seconds: float = 20.0
    idle_seconds: float = 600.0
    notice_seconds: float = 60.0
    ticket_seconds: float = 30.0


class Full(Exception):
    """No place is left, not even in the row."""


@dataclass(eq=False)
class Seat:
    """One page: its id, what it is told, and its session once it has one.

    `visit` counts its connections, `closed` says that the last one was ended by the page, `heritage` is
    a stream from the shelf to go on with.
    """

    token: str
    outgoing: Outgoing
    arrived: float
    heard: float
    left: float | None
    session: LiveSession | None = None
    visit: int = 0
    warned: bool = False
    over: bool = False
    closed: bool = False
    heritage: Kept | None = None

    @property
    def connected(self) -> bool:
        """Whether a page is there now."""
        return self.left is None


class Lobby:
    """Seats in order of arrival.

    Args:
        open_session: makes a session for a seat.
        close_session: ends one.
        clock: seconds, monotonic.
        loading: what waiting viewers are told while no session can begin; None once sessions can.
    """

    def __init__(
        self,
        rules: Rules,
        open_session: Callable[["Seat"], LiveSession],
        close_session: Callable[[LiveSession], None],
        clock: Callable[[], float],
        loading: Callable[[], dict[str, Any] | None] = lambda: None,
    ) -> None:
        self.rules, self.clock, self.loading = rules, clock, loading
        self.open_session, self.close_session = open_session, close_session
        self._seats: dict[str, Seat] = {}
        self._was_loading = False

    @property
    def running(self) -> list[Seat]:
        """Seats with a session."""
        return [seat for seat in self._seats.values() if seat.session is not None]

    @property
    def waiting(self) -> list[Seat]:
        """Connected seats without one, in order."""
        return [seat for seat in self._seats.values() if seat.session is None and seat.visit]

    @property
    def seats(self) -> int:
        """Pages that have an id: with a session, in the row, or about to connect."""
        return len(self._seats)

    @property
    def watched(self) -> bool:
        """Whether any page is there."""
        return any(seat.connected for seat in self._seats.values())

    def ticket(self, heritage: Kept | None = None) -> str:
        """A new id, for a page that may go on with a stream from the shelf.

        Raises:
            Full: too many pages.
        """
        self.tick()
        if len(self._seats) >= self.rules.max_sessions + self.rules.max_waiting:
            raise Full("too many viewers are here already; come back later")
        now = self.clock()
        seat = Seat(secrets.token_urlsafe(32), Outgoing(), now, now, now, heritage=heritage)
        self._seats[seat.token] = seat
        return seat.token

    def find(self, token: str) -> Seat | None:
        """The seat of an id."""
        return self._seats.get(token)

    def connect(self, token: str) -> Seat | None:
        """A page has connected, perhaps again; an older connection of the same page has to go."""
        seat = self._seats.get(token)
        if seat is None:
            return None
        if not seat.visit:
            # places in the row go by the time of connecting
            self._seats[token] = self._seats.pop(token)
        seat.visit += 1
        seat.left, seat.heard, seat.warned, seat.closed = None, self.clock(), False, False
        seat.outgoing.clear()
        if seat.session is not None:
            seat.session.connected()
        self._promote()
        if seat.session is None:
            self._tell_positions()
        return seat

    def disconnect(self, seat: Seat, visit: int, closed: bool = False) -> None:
        """Connection number `visit` of a page is gone: lost, or `closed` by the page as it was left."""
        if seat.visit == visit and not seat.over:
            seat.left, seat.closed = self.clock(), closed
            if seat.session is not None:
                seat.session.disconnected()

    def coming_back(self, token: str) -> bool:
        """A page that was left is being loaded again; its scripts take a while on a slow machine."""
        seat = self._seats.get(token)
        if seat is None or not seat.visit:
            return False
        if seat.left is not None:
            seat.left = self.clock() + self.rules.loading_seconds
        return True

    def heard(self, seat: Seat) -> None:
        """A viewer has done something."""
        seat.heard = self.clock()
        if seat.warned:
            seat.warned = False
            seat.outgoing.say({"type": "idle", "seconds": None})

    def end(self, seat: Seat, reason: str) -> None:
        """End a seat; its viewer is told why."""
        self.release(seat)
        seat.outgoing.say({"type": "ended", "text": reason})

    def release(self, seat: Seat) -> None:
        """End a seat without a word."""
        self._seats.pop(seat.token, None)
        seat.over = True
        if seat.session is not None:
            self.close_session(seat.session)
            seat.session = None

    def tick(self) -> None:
        """Look at the clock: free the places of pages that are gone, end idle ones, let others in."""
        now, rules = self.clock(), self.rules
        for seat in list(self._seats.values()):
            if seat.left is not None:
                if now - seat.left >= self._patience(seat):
                    self.end(
                        seat, "the page was closed" if seat.closed else "the connection was lost for too long"
                    )
            elif seat.session is not None and rules.idle_seconds:
                left = rules.idle_seconds - (now - seat.heard)
                if left <= 0:
                    self.end(seat, "the session was idle and has been ended to make room for others")
                elif left <= rules.notice_seconds and not seat.warned:
                    seat.warned = True
                    seat.outgoing.say({"type": "idle", "seconds": round(left)})
        self._promote()

    def _patience(self, seat: Seat) -> float:
        if not seat.visit:
            return self.rules.ticket_seconds
        return self.rules.closed_seconds if seat.closed else self.rules.grace_seconds

    def _promote(self) -> None:
        if self.loading() is not None:
            self._tell_positions()
            return
        changed = self._was_loading
        self._was_loading = False
        for seat in self.waiting:
            if len(self.running) >= self.rules.max_sessions:
                break
            if seat.connected:
                seat.session = self.open_session(seat)
                seat.heard = self.clock()
                seat.session.connected()
                changed = True
        if changed:
            self._tell_positions()

    def _tell_positions(self) -> None:
        waiting, loading = self.waiting, self.loading()
        if loading is not None:
            self._was_loading = True
            for seat in waiting:
                seat.outgoing.say(loading)
            return
        for position, seat in enumerate(waiting, 1):
            seat.outgoing.say({"type": "queue", "position": position, "waiting": len(waiting)})
