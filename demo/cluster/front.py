"""A front: serves the page and passes all else on to the workers. It holds no model and no session, so any
number of them may stand behind a proxy, and any may go.
"""

import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import httpx
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from .. import assets
from ..access import Access, Gate
from ..app import with_page
from ..drain import SENT_AWAY, Drain
from ..engine import ModelInfo
from .addresses import parted, routed, signed
from .connection import Connection
from .fleet import Crew
from .roster import NOBODY, Post, Roster
from .worker import KEY_HEADER

_STATUSES = ("ready", "loading", "draining", "failed", "gone")
_FAREWELL_SECONDS = 1.0
# What is between a front and a browser is not the worker's to say.
_OWN_HEADERS = (
    "host",
    "connection",
    "transfer-encoding",
    "keep-alive",
    "upgrade",
    KEY_HEADER,
    "authorization",
)


@dataclass(frozen=True)
class FrontOptions:
    """How a front is served. `on_failure` is called once pages know that no worker can load the model,
    `on_drained` once a front that drains has nobody left.
    """

    access: Access = field(default_factory=Access)
    root_path: str = ""
    on_failure: Callable[[], None] = lambda: None
    on_drained: Callable[[], None] = lambda: None


class Front(Collector):
    """Everything behind the page of a front.

    Args:
        crew: the workers.
        options: how it is served.
        clock: seconds, monotonic.
    """

    def __init__(
        self, crew: Crew, options: FrontOptions, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.options, self.roster = options, Roster(crew, clock)
        self.connections: set[Connection] = set()
        self.moved, self.failure = 0, ""
        self.drain = Drain(lambda: bool(self.connections), clock)
        self._told: set[str] = set()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """It looks after the workers while the application runs."""
        watching = asyncio.create_task(self.roster.watch(self._look))
        try:
            yield
        finally:
            watching.cancel()
            await self.roster.client.aclose()

    def _look(self) -> None:
        """What is to be done now and then."""
        if self.drain.over:
            self.options.on_drained()
        posts = self.roster.posts.values()
        for post in posts:
            if post.failure and post.name not in self._told:
                self._told.add(post.name)
                print(f"note: worker {post.name}: {post.failure}", file=sys.stderr, flush=True)
        if posts and all(post.failure for post in posts) and not self.failure:
            self.failure = next(iter(posts)).failure
            asyncio.get_running_loop().call_later(_FAREWELL_SECONDS, self.options.on_failure)
        self._use_free_places()

    def _use_free_places(self) -> None:
        """Viewers in the row of one worker take what is free at another, whoever waits longest first."""
        waiting = sorted(
            (one for one in self.connections if one.waits_since is not None),
            key=lambda one: one.waits_since or 0,
        )
        free = {post.name: post.load.room for post in self.roster.best() if post.load is not None}
        for one in waiting:
            elsewhere = next((name for name, room in free.items() if room and name != one.worker), None)
            if elsewhere is not None and not free.get(one.worker):
                free[elsewhere] -= 1
                one.waits_since = None
                one.change()

    @property
    def status(self) -> str:
        """`ready`, `loading`, `draining`, `failed`, or `no workers`."""
        if self.failure:
            return "failed"
        if self.drain.begun:
            return "draining"
        statuses = {post.status for post in self.roster.posts.values()}
        return next((status for status in ("ready", "loading") if status in statuses), "no workers")

    # -- requests ------------------------------------------------------------------------------------------

    async def health(self) -> Response:
        """Whether viewers are taken: 200 if so, else 503."""
        status = self.status
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    async def figures(self) -> Response:
        """Figures of this front and of all workers, by `worker`, for Prometheus."""
        posts = [post for post in self.roster.posts.values() if post.load is not None]
        texts = await asyncio.gather(*(self._figures_of(post) for post in posts))
        named = {"": generate_latest(self._registry).decode()}
        named |= {post.name: text for post, text in zip(posts, texts, strict=True)}
        return Response(merged(named), media_type=CONTENT_TYPE_LATEST)

    def collect(self) -> Iterator[Metric]:
        """What a front itself has to tell."""
        statuses = Counter(post.status for post in self.roster.posts.values())
        family = GaugeMetricFamily("streamgen_workers", "Workers by status.", labels=["status"])
        for status in _STATUSES:
            family.add_metric([status], statuses[status])
        yield family
        yield GaugeMetricFamily(
            "streamgen_front_viewers", "Viewers of this front.", value=len(self.connections)
        )
        about = "Viewers whose worker died under them."
        yield CounterMetricFamily("streamgen_front_moved", about, value=self.moved)

    async def here(self) -> Response:
        """How many workers there are, and pages with them."""
        loads = [post.load for post in self.roster.posts.values() if post.load is not None]
        return JSONResponse({"workers": len(loads), "seats": sum(load.seats for load in loads)})

    async def ticket(self, after: str = "") -> Response:
        """A session id for a page; `after` is the id of an earlier one whose stream it would go on with."""
        if self.drain.begun:
            return JSONResponse({"error": SENT_AWAY}, 503)
        own, worker = parted(after)
        if own and await self._still_runs(own, worker):
            own = ""
        row, status = await self.roster.place(own)
        return JSONResponse(row, status)

    async def pass_on(self, path: str, request: Request) -> Response:
        """Anything about a session goes to its worker, and its answer back."""
        path, worker = routed(f"live/{path}")
        post = self.roster.find(worker)
        if post is None or post.about is None:
            return JSONResponse({"error": "no such session"}, 404)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _OWN_HEADERS}
        url = httpx.URL(f"http://{post.about.address}/{path}", query=request.url.query.encode())
        sends = request.method in ("POST", "PUT", "PATCH")
        asked = self.roster.client.build_request(
            request.method,
            url,
            headers={**headers, KEY_HEADER: post.about.key},
            content=request.stream() if sends else None,
        )
        try:
            answer = await self.roster.client.send(asked, stream=True)
        except httpx.HTTPError:
            return JSONResponse({"error": NOBODY}, 503)
        kept = {k: v for k, v in answer.headers.items() if k.lower() not in _OWN_HEADERS}
        if path.endswith("/watch") and answer.status_code == 200:
            return await _signed_watch(answer, worker)
        return StreamingResponse(_body(answer), answer.status_code, kept)

    async def socket(self, websocket: WebSocket, path: str) -> None:
        """One connection of a page, from beginning to end."""
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await Connection(self, websocket, f"live/ws/{path}").run()

    async def _still_runs(self, token: str, worker: str) -> bool:
        """Whether a worker has this session still; then it is not for another page."""
        post = self.roster.find(worker)
        if post is None:
            return False
        try:
            answer = await self.roster.request(post, "POST", f"/live/{token}/back", timeout=1.0)
            return bool(answer.json()["kept"])
        except (httpx.HTTPError, ValueError, KeyError):
            return False

    async def _figures_of(self, post: Post) -> str:
        try:
            return (await self.roster.request(post, "GET", "/metrics", timeout=1.0)).text
        except httpx.HTTPError:
            return ""


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    """What a worker answers, as it comes; let go of when the viewer has gone, too."""
    try:
        async for part in answer.aiter_raw():
            yield part
    finally:
        await answer.aclose()


async def _signed_watch(answer: httpx.Response, worker: str) -> Response:
    """A link to watch a session, which names its worker, too."""
    await answer.aread()
    row = answer.json()
    if isinstance(row.get("watch"), str):
        row["watch"] = signed(row["watch"], worker)
    return JSONResponse(row, answer.status_code)


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterator[Metric]:
        yield from self.families


def merged(texts: dict[str, str]) -> str:
    """Figures of several processes as those of one, each sample with the `worker` that it is of."""
    families: dict[str, Metric] = {}
    for worker, text in texts.items():
        for family in text_string_to_metric_families(text):
            one = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                labels = {**sample.labels, **({"worker": worker} if worker else {})}
                one.add_sample(sample.name, labels, sample.value)
    registry = CollectorRegistry()
    registry.register(_Families(list(families.values())))
    return generate_latest(registry).decode()


def front_routes(front: Front) -> FastAPI:
    """What a front passes on, and what it says of itself."""
    app = FastAPI(lifespan=front.lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/health", front.health, methods=["GET"])
    app.add_api_route("/metrics", front.figures, methods=["GET"])
    app.add_api_route("/live/session", front.ticket, methods=["POST"])
    app.add_api_route("/live/health", front.here, methods=["GET"])
    # before what takes every path
    app.mount("/live/static", assets.served())
    app.add_api_websocket_route("/live/ws/{path:path}", front.socket)
    app.add_api_route("/live/{path:path}", front.pass_on, methods=["GET", "POST", "PUT", "DELETE"])
    app.state.front = front
    return app


def front_app(front: Front, info: ModelInfo) -> Gate:
    """The application of a front, page included."""
    return with_page(front_routes(front), info, front.options.root_path, front.options.access)
