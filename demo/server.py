"""What the web application does: sessions over WebSockets, uploads and downloads (`app` has the routes)."""

import asyncio
import contextlib
import json
import math
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import FileResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.background import BackgroundTask

from streamgen.errors import InputError, StreamgenError

from . import exports, pictures, uploads
from .access import Access
from .conducted import Conducted
from .connection import CLOSE_UNKNOWN, Connection
from .drain import SENT_AWAY, Drain
from .editing import Editing
from .engine import Engine
from .limits import Limits
from .live import LiveSession
from .lobby import Full, Lobby, Rules, Seat
from .messages import MAX_MESSAGE_BYTES
from .metrics import DemoMetrics, Totals
from .recording import Lineage, Recording, session_record
from .shelf import Keeper, Shelf
from .watching import CLOSE_FULL, Gallery, WatchLine
from .worker import Worker

_STATS_SECONDS = 0.5
_TICK_SECONDS = 0.25
_TIDY_SECONDS = 60.0
# Until pages have been told why the server goes.
_FAREWELL_SECONDS = 1.0
# Arguments for uvicorn: the protocol's limits, and how soon a silent connection counts as gone.
SERVER_OPTIONS: dict[str, Any] = {
    "ws_max_size": MAX_MESSAGE_BYTES,
    "ws_ping_interval": 5.0,
    "ws_ping_timeout": 10.0,
    "ws_per_message_deflate": False,
    "timeout_graceful_shutdown": 2,
}


@dataclass(frozen=True)
class Options:
    """How the demo is served. `shelf` is the folder where streams outlive the process; None: they do not.
    `max_watchers` is how many may watch at a time, of all streams together. `on_failure` is called once pages
    know that the model could not be loaded, `on_drained` once a server that drains has nobody left.
    """

    rules: Rules = field(default_factory=Rules)
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    root_path: str = ""
    shelf: Path | None = None
    max_watchers: int = 200
    on_failure: Callable[[], None] = lambda: None
    on_drained: Callable[[], None] = lambda: None


class NoSuchSession(InputError):
    """An id that nothing is known of."""


class Demo:
    """Everything behind the page: engine thread, lobby, and the handlers of the web application."""

    def __init__(self, engine: Engine, options: Options, clock: Callable[[], float] = time.monotonic) -> None:
        self.engine, self.options, self.clock = engine, options, clock
        self.worker = Worker(clock)
        self.lobby = Lobby(options.rules, self._open, self._close, clock, self._loading)
        self.totals = Totals()
        self.drain = Drain(lambda: self.lobby.watched, clock)
        self.metrics = DemoMetrics(engine, self.lobby, self.totals, self.drain)
        self.gallery = Gallery(options.max_watchers, self.lobby.find)
        self.editing = Editing(engine, self._conducted, self._heard)
        self._exports = asyncio.Semaphore(2)
        self._writing = ThreadPoolExecutor(1, "streamgen-shelf")
        self._own_shelf = None if options.shelf else tempfile.TemporaryDirectory(prefix="streamgen-demo-")
        self.shelf = Shelf(options.shelf or Path(self._own_shelf.name if self._own_shelf else ""))

    def _loading(self) -> dict[str, Any] | None:
        loading = self.engine.loading
        return None if loading is None else {"type": "loading", "text": loading.text, "share": loading.share}

    def _open(self, seat: Seat) -> LiveSession:
        kept, limits = seat.heritage, self.options.limits
        keeper = Keeper(self.shelf.folder(seat.token), self._writing)
        session = Conducted(self.engine, seat.outgoing, self.clock, self.worker.poke, limits, keeper)
        self.worker.add(session)
        if kept is not None:
            session.reopen(kept)
        return session

    def _close(self, session: LiveSession) -> None:
        self.worker.remove(session)
        session.close()
        self.totals.add(session)

    async def send_away(self, why: str) -> None:
        """End all seats once their streams are on the shelf; their pages are told to ask for another one."""
        seats = [*self.lobby.running, *self.lobby.waiting]
        for seat in seats:
            self.lobby.release(seat)
        await asyncio.wrap_future(self._writing.submit(lambda: None))
        for seat in seats:
            seat.outgoing.say({"type": "moved", "text": why})

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Engine and clock run while the application does."""
        self.worker.start()
        ticking = asyncio.create_task(self._tick())
        try:
            yield
        finally:
            ticking.cancel()
            await asyncio.to_thread(self.worker.stop)
            for seat in [*self.lobby.running, *self.lobby.waiting]:
                self.lobby.end(seat, "the server is going down")
            await asyncio.to_thread(self._writing.shutdown)
            if self._own_shelf is not None:
                self._own_shelf.cleanup()

    async def _tick(self) -> None:
        said, tidied = 0.0, -math.inf
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            if self.engine.failure is not None:
                await self._give_up(self.engine.failure)
                return
            self.lobby.tick()
            if self.drain.over:
                self.options.on_drained()
            if self.clock() - tidied >= _TIDY_SECONDS:
                tidied = self.clock()
                used = [seat.token for seat in (*self.lobby.running, *self.lobby.waiting)]
                await asyncio.to_thread(self.shelf.tidy, used)
            if self.clock() - said >= _STATS_SECONDS:
                said = self.clock()
                for seat in self.lobby.running:
                    if seat.session is not None and seat.connected:
                        seat.outgoing.say(seat.session.stats())

    async def _give_up(self, failure: Exception) -> None:
        seats = [*self.lobby.running, *self.lobby.waiting]
        for seat in seats:
            self.lobby.end(seat, f"the model cannot be loaded: {failure}")
        if seats:
            await asyncio.sleep(_FAREWELL_SECONDS)
        self.options.on_failure()

    # -- requests ------------------------------------------------------------------------------------------

    async def ticket(self, after: str = "") -> Response:
        """A session id for a page; `after` is the id of an earlier one whose stream it would go on with."""
        if self.engine.failure is not None:
            return JSONResponse({"error": f"the model cannot be loaded: {self.engine.failure}"}, 503)
        if self.drain.begun:
            return JSONResponse({"error": SENT_AWAY}, 503)
        kept = self.shelf.find(after) if after and self.lobby.find(after) is None else None
        try:
            token = self.lobby.ticket(kept)
        except Full as full:
            return JSONResponse({"error": str(full)}, 503)
        if kept is not None:
            self.gallery.hand_over(after, token)
        return JSONResponse({"session": token, "kept": kept is not None})

    async def health(self) -> Response:
        """How many are here."""
        here = {"running": len(self.lobby.running), "waiting": len(self.lobby.waiting)}
        return JSONResponse(here | {"watching": self.gallery.watchers})

    async def status(self) -> Response:
        """Whether viewers are taken, for whoever sends them: 200 if so, else 503."""
        status = self.metrics.status
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    async def figures(self) -> Response:
        """Figures for Prometheus."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def back(self, token: str) -> Response:
        """A page is being loaded again and will connect soon."""
        return JSONResponse({"kept": self.lobby.coming_back(token)})

    async def picture(self, token: str, request: Request) -> Response:
        """Take the picture or clip that the next stream of a session starts from."""
        seat = self.lobby.find(token)
        if seat is None or seat.session is None:
            return JSONResponse({"error": "no such session"}, 404)
        session, info = seat.session, self.engine.info
        self.lobby.heard(seat)
        kind = request.headers.get("content-type", "")
        try:
            with tempfile.TemporaryDirectory(prefix="streamgen-demo-") as folder:
                file = await uploads.save(request.stream(), kind, Path(folder))
                async with self._exports:
                    size = (info.height, info.width)
                    frames = await asyncio.to_thread(
                        uploads.decode, file, size, info.fps, uploads.DECODE_SECONDS
                    )
        except StreamgenError as error:
            return JSONResponse({"error": str(error)}, 400)
        session.pictures = frames
        return JSONResponse({"frames": len(frames), "picture": pictures.data_url(frames[0])})

    async def clip(
        self,
        token: str,
        suffix: exports.Format,
        frames: int,
        scale: int = 1,
        way: str = "pixels",
        take: int | None = None,
    ) -> Response:
        """The first `frames` frames of a session, or of a branch that was left, as a file; those of the
        branch that plays also when the session is over.
        """
        folder = tempfile.TemporaryDirectory(prefix="streamgen-demo-")
        path = Path(folder.name, f"streamgen.{suffix}")
        try:
            with self._recorded(token) as recording:
                how = (self.engine.info.fps, path, scale, way, self._branch(token, take))
                async with self._exports:
                    await asyncio.to_thread(exports.write_export, recording, frames, *how)
        except StreamgenError as error:
            folder.cleanup()
            return _not_saved(error, str(path))
        done = BackgroundTask(folder.cleanup)
        return FileResponse(path, media_type=exports.MEDIA[suffix], filename=path.name, background=done)

    async def timeline(self, token: str, frames: int) -> Response:
        """The record of the first `frames` frames, for `streamgen render`, also when the session is over."""
        about = {"model": self.engine.info.name, "device": self.engine.info.device}
        try:
            with self._recorded(token) as recording:
                async with self._exports:
                    timeline = await asyncio.to_thread(self._timeline, token)
                    record = await asyncio.to_thread(session_record, recording, frames, timeline, about)
        except StreamgenError as error:
            return _not_saved(error)
        text = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
        headers = {"content-disposition": 'attachment; filename="streamgen.json"'}
        return Response(text, media_type="application/json", headers=headers)

    async def socket(self, websocket: WebSocket, token: str) -> None:
        """One connection of a page, from beginning to end."""
        await websocket.accept()
        seat = self.lobby.find(token)
        if seat is None:
            await websocket.close(CLOSE_UNKNOWN, "no such session")
            return
        self._inherit(seat)
        connection = Connection(websocket, self.lobby, seat, self.hello())
        await connection.run()

    def _inherit(self, seat: Seat) -> None:
        """What a page goes on with is kept under its new id, also while it waits in the row."""
        if seat.heritage is not None and not seat.visit:
            try:
                seat.heritage = self.shelf.hand_over(seat.heritage, seat.token)
            except OSError:
                seat.heritage = None

    async def watch_link(self, token: str) -> Response:
        """The id under which a session is watched."""
        if self._session(token) is None:
            return JSONResponse({"error": "no such session"}, 404)
        return JSONResponse({"watch": self.gallery.link(token)})

    async def no_watch_link(self, token: str) -> Response:
        """Nobody watches a session from now on."""
        self.gallery.take_back(token)
        return JSONResponse({"watch": None})

    async def watch(self, websocket: WebSocket, key: str) -> None:
        """One connection of a watcher, from beginning to end."""
        await websocket.accept()
        seat = self.gallery.seat(key)
        if seat is None or seat.session is None:
            await websocket.close(CLOSE_UNKNOWN, "nothing plays under this link")
            return
        with self.gallery.place() as there_is_one:
            if not there_is_one:
                await websocket.close(CLOSE_FULL, f"{self.gallery.most} watch already; come back later")
                return
            await WatchLine(websocket, seat.session, self.hello() | {"watching": True}).run()

    def hello(self) -> dict[str, Any]:
        """What a page is told first."""
        info, rules = self.engine.info, self.options.rules
        return {
            "type": "hello",
            "protocol": 1,
            "model": info.name,
            "device": info.device,
            "width": info.width,
            "height": info.height,
            "fps": info.fps,
            "chunk_frames": info.chunk_frames,
            "settings": dict(info.settings),
            "words": list(info.words),
            "tracks": info.tracks,
            "loras": dict(info.loras),
            "sessions": rules.max_sessions,
            "idle_seconds": rules.idle_seconds,
            "upload_bytes": uploads.MAX_BYTES,
        }

    @contextlib.contextmanager
    def _recorded(self, token: str) -> Iterator[Recording]:
        """What was recorded in a session that runs, or in one on the shelf."""
        session = self._session(token)
        if session is not None:
            yield session.recording
            return
        kept = self.shelf.find(token)
        if kept is None:
            raise NoSuchSession("no such session, or nothing was started")
        with contextlib.closing(kept.recording(self.engine)) as recording:
            yield recording

    def _branch(self, token: str, take: int | None) -> Lineage | None:
        """The frames of a branch that was left; None for the one that plays."""
        if take is None:
            return None
        session = self._session(token)
        kept = [] if session is None else [one for one in session.takes if one.id == take]
        if not kept:
            raise NoSuchSession("this branch is not kept any more")
        lineage: Lineage = kept[0].lineage
        return lineage

    def _timeline(self, token: str) -> dict[str, Any]:
        session = self._session(token)
        if session is not None and session.stream is not None:
            return session.stream.timeline()
        kept = self.shelf.find(token) if session is None else None
        if kept is None:
            raise NoSuchSession("no such session, or nothing was started")
        return self.engine.timeline_of(kept.snapshot)

    def _conducted(self, token: str) -> Conducted | None:
        session = self._session(token)
        return session if isinstance(session, Conducted) else None

    def _heard(self, token: str) -> None:
        seat = self.lobby.find(token)
        if seat is not None:
            self.lobby.heard(seat)

    def _session(self, token: str) -> LiveSession | None:
        seat = self.lobby.find(token)
        return None if seat is None else seat.session


def _not_saved(error: StreamgenError, path: str = "") -> Response:
    """Why nothing can be downloaded; a server's path means nothing to a viewer."""
    text = str(error).replace(path, "the clip") if path else str(error)
    return JSONResponse({"error": text}, 404 if isinstance(error, NoSuchSession) else 409)
