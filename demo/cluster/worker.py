"""A worker: an actor of Ray, in whose process sessions live, behind a web server for fronts alone."""

import asyncio
import contextlib
import hmac
import math
import os
import secrets
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from streamgen.errors import StreamgenError
from streamgen.suggest import shorten

from ..access import App, Receive, Scope, Send
from ..app import live_app
from ..engine import Engine, ModelInfo
from ..limits import Limits
from ..lobby import Rules
from ..metrics import free_memory
from ..server import SERVER_OPTIONS, Demo, Options

KEY_HEADER = "x-streamgen-key"
MOVING = "The machine that made your stream is being renewed."
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Order:
    """What a worker is to do.

    Attributes:
        make: gives the engine, whose model may still be on its way.
        rules, limits: for its sessions.
        shelf: folder where streams outlive it; all workers' own.
        folder: what relative paths are relative to, where it is there.
        about: what was asked for, in words; fronts of one fleet ask for the same.
        max_watchers: who may watch streams of others, on each worker.
        key: what a front has to know.
    """

    make: Callable[[], Engine]
    rules: Rules
    limits: Limits
    shelf: Path
    folder: Path
    about: str
    max_watchers: int = 200
    key: str = ""


@dataclass(frozen=True)
class About:
    """Where a worker is, what it has, and why it has nothing: `failure`."""

    address: str
    key: str
    info: ModelInfo | None
    failure: str
    about: str
    pid: int


@dataclass(frozen=True)
class Load:
    """How much a worker has to do.

    Attributes:
        instance: another one for each start of its process.
        status: `ready`, `loading`, `draining` or `failed`.
        seats, places, most: pages that have an id, sessions that may run, and ids that may be given.
        free: bytes that streams may still take, None where nobody knows.
        stream: bytes that the largest of its streams takes.
        failure: why its model cannot be loaded.
    """

    instance: str
    status: str
    seats: int
    places: int
    most: int
    free: int | None
    stream: int
    failure: str = ""

    @property
    def room(self) -> int:
        """How many more sessions could begin now, none where memory is short."""
        if self.status not in ("ready", "loading") or (self.free is not None and self.free < self.stream):
            return 0
        return max(0, self.places - self.seats)


class Worker:
    """What Ray starts. Its web server runs in a thread of its own; actor calls are few and short."""

    def __init__(self, order: Order) -> None:
        self._order = replace(order, key=order.key or secrets.token_urlsafe(32))
        self._info: ModelInfo | None = None
        self._failure, self._address = "", ""
        if order.folder.is_dir():
            os.chdir(order.folder)
        try:
            engine = order.make()
        except StreamgenError as error:
            self._failure = str(error)
            return
        except Exception as error:  # a package that this node lacks, for instance: fronts are told
            traceback.print_exc()
            self._failure = f"{type(error).__name__}: {error}"
            return
        self._info = engine.info
        self._address = self._serve(Room(engine, order))

    def about(self) -> About:
        """Where it is and what it has."""
        order = self._order
        return About(self._address, order.key, self._info, self._failure, order.about, os.getpid())

    def _serve(self, room: "Room") -> str:
        host = _own_address()
        listener = socket.create_server((host, 0))
        app = Keyed(room.app(), self._order.key)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", **SERVER_OPTIONS))
        self._server = server
        threading.Thread(target=server.run, args=([listener],), name="streamgen-web", daemon=True).start()
        end = time.monotonic() + _START_SECONDS
        while not server.started and time.monotonic() < end:
            time.sleep(0.02)
        return f"{host}:{listener.getsockname()[1]}"


class Room:
    """The sessions of a worker, and what fronts ask of it."""

    def __init__(self, engine: Engine, order: Order) -> None:
        self.engine, self.instance = engine, secrets.token_hex(8)
        self.demo = Demo(
            engine, Options(order.rules, order.limits, shelf=order.shelf, max_watchers=order.max_watchers)
        )
        self._leaving: set[asyncio.Task[None]] = set()

    def app(self) -> FastAPI:
        """Its routes: those of sessions, and its own."""
        app = live_app(self.demo)
        app.add_api_route("/worker", self.look, methods=["GET"])
        app.add_api_route("/worker/drain", self.drain, methods=["POST"])
        return app

    def load(self) -> Load:
        """How much there is to do."""
        lobby, rules = self.demo.lobby, self.demo.options.rules
        streams = [seat.session.stream for seat in lobby.running if seat.session is not None]
        sizes = [stream.snapshot_bytes for stream in streams if stream is not None]
        most = rules.max_sessions + rules.max_waiting
        place = (lobby.seats, rules.max_sessions, most, free_memory(), max(sizes, default=0))
        failure = self.engine.failure
        told = "" if failure is None else str(failure)
        return Load(self.instance, self.demo.metrics.status, *place, told)

    async def look(self) -> Response:
        """How much there is to do, for a front that is to place somebody."""
        return JSONResponse(asdict(self.load()))

    async def drain(self, request: Request) -> Response:
        """Take nobody new; after `seconds` send those who are here to other workers."""
        given = request.query_params.get("seconds", "0")
        try:
            seconds = float(given)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds < math.inf:
            told = f"seconds: expected a number >= 0, found {shorten(given)}"
            return Response(told, 400, media_type="text/plain")
        self.demo.drain.begin(seconds)
        task = asyncio.create_task(self._send_away())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return JSONResponse(asdict(self.load()))

    async def _send_away(self) -> None:
        while not self.demo.drain.over:
            await asyncio.sleep(0.05)
        await self.demo.send_away(MOVING)


class Keyed:
    """Answers who knows the key alone."""

    def __init__(self, app: App, key: str) -> None:
        self.app, self.key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] in ("http", "websocket"):
            given = dict(scope["headers"]).get(KEY_HEADER.encode(), b"")
            if not hmac.compare_digest(given, self.key):
                await _refuse(scope, send)
                return
        await self.app(scope, receive, send)


async def _refuse(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": "for fronts alone"})
        return
    await send({"type": "http.response.start", "status": 403, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def _own_address() -> str:
    """Under which other nodes reach this one; this machine's own name for itself without Ray."""
    with contextlib.suppress(ImportError):
        import ray

        if ray.is_initialized():
            return str(ray.util.get_node_ip_address())
    return "127.0.0.1"
