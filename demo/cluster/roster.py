"""What a front knows of the workers: where each is, and how much it has to do."""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import httpx

from .addresses import signed
from .fleet import Crew
from .worker import KEY_HEADER, About, Load

LOOK_SECONDS = 1.0
_ASK_SECONDS = 2.0
_ANSWER_SECONDS = 1.5
NOBODY = "no machine is there to make your stream"


@dataclass
class Post:
    """A worker, as it was heard of last; `load` is None while it does not answer."""

    name: str
    about: About | None = None
    load: Load | None = None

    @property
    def status(self) -> str:
        """`ready`, `loading`, `draining`, `failed`, or `gone`."""
        if self.about is not None and self.about.failure:
            return "failed"
        return "gone" if self.load is None else self.load.status

    @property
    def failure(self) -> str:
        """Why it can make no streams."""
        if self.about is not None and self.about.failure:
            return self.about.failure
        return "" if self.load is None else self.load.failure


class Roster:
    """All workers.

    Args:
        crew: who they are.
        clock: seconds, monotonic.
    """

    def __init__(self, crew: Crew, clock: Callable[[], float] = time.monotonic) -> None:
        self.crew, self.clock = crew, clock
        self.posts: dict[str, Post] = {}
        # they are on this network: no proxy of the environment is asked
        self.client = httpx.AsyncClient(timeout=httpx.Timeout(None, connect=_ANSWER_SECONDS), trust_env=False)
        self._placing = asyncio.Lock()
        self._asking: dict[str, asyncio.Task[None]] = {}

    def find(self, name: str) -> Post | None:
        """A worker whose address is known."""
        post = self.posts.get(name)
        return post if post is not None and post.about is not None and post.about.address else None

    async def watch(self, each: Callable[[], Any]) -> None:
        """Look at all of them again and again; `each` is called after every look."""
        while True:
            await self.look()
            each()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self, names: Iterable[str] | None = None) -> None:
        """Ask workers how much they have to do; all of them, or those named."""
        if names is None:
            found = await asyncio.to_thread(self.crew.names)
            self.posts = {name: self.posts.get(name) or Post(name) for name in found}
        wanted = list(self.posts) if names is None else [name for name in names if name in self.posts]
        await asyncio.gather(*(self._look_at(self.posts[name]) for name in wanted))

    async def alive(self, name: str) -> str:
        """Which instance of a worker answers now; "" for none."""
        await self.look([name])
        post = self.posts.get(name)
        return post.load.instance if post is not None and post.load is not None else ""

    def best(self) -> list[Post]:
        """Those that may be asked for a place, the best one first: with room, with the smallest share of its
        places taken, with the most memory.
        """
        able = [post for post in self.posts.values() if post.status in ("ready", "loading")]

        def order(post: Post) -> tuple[bool, bool, float, int]:
            load = post.load
            assert load is not None
            return (
                not load.room,
                load.status == "loading",
                load.seats / max(1, load.places),
                -(load.free or 0),
            )

        return sorted(able, key=order)

    async def place(self, after: str) -> tuple[dict[str, Any], int]:
        """An id for a page, and the status to answer with. `after` is the worker's own id of a session whose
        stream it would go on with.
        """
        # one after the other, or those who come together would all be sent to the same worker
        async with self._placing:
            return await self._place(after)

    async def _place(self, after: str) -> tuple[dict[str, Any], int]:
        await self.look()
        said = self._why_nobody()
        for post in self.best():
            query = {"after": after} if after else {}
            try:
                answer = await self.request(post, "POST", "/live/session", params=query, timeout=_ASK_SECONDS)
                row = answer.json()
            except (httpx.HTTPError, ValueError):
                post.load = None
                continue
            if answer.status_code == 200:
                return {**row, "session": signed(str(row["session"]), post.name)}, 200
            said = str(row.get("error", said))
        return {"error": said}, 503

    async def request(self, post: Post, method: str, path: str, **more: Any) -> httpx.Response:
        """Ask a worker.

        Raises:
            httpx.HTTPError: it does not answer.
        """
        about = post.about
        if about is None:
            raise httpx.ConnectError("nobody knows where it is")
        url = f"http://{about.address}{path}"
        return await self.client.request(method, url, headers={KEY_HEADER: about.key}, **more)

    def _why_nobody(self) -> str:
        failures = [post.failure for post in self.posts.values()]
        if failures and all(failures):
            return f"the model cannot be loaded: {failures[0]}"
        return NOBODY

    async def _look_at(self, post: Post) -> None:
        if post.about is None or not post.about.address:
            self._ask(post)
            return
        try:
            answer = await self.request(post, "GET", "/worker", timeout=_ANSWER_SECONDS)
            post.load = Load(**answer.json())
        except (httpx.HTTPError, ValueError, TypeError):
            post.load = None
            self._ask(post)

    def _ask(self, post: Post) -> None:
        """Have Ray say where a worker is; one that was started again is elsewhere."""
        if post.name not in self._asking:
            task = asyncio.create_task(self._asked(post))
            self._asking[post.name] = task
            task.add_done_callback(lambda _: self._asking.pop(post.name, None))

    async def _asked(self, post: Post) -> None:
        about = await asyncio.to_thread(self.crew.about, post.name, _ASK_SECONDS)
        if about is not None:
            post.about = about
