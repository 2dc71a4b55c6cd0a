"""Workers of the demo without Ray, in the tests' own process."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx

from demo.cluster.worker import KEY_HEADER, About, Order, Worker
from demo.fake_engine import FakeEngine
from demo.limits import Limits
from demo.lobby import Rules
from demo.server import Demo

PATIENCE = 180.0
RULES = Rules(max_sessions=2, max_waiting=4, closed_seconds=0.2)


class Hall:
    """Workers without Ray, in this process."""

    def __init__(self, shelf: Path, rules: Rules = RULES) -> None:
        self.shelf, self.rules = shelf, rules
        self.workers: dict[str, Worker] = {}
        self.engines: dict[str, FakeEngine] = {}
        self.dismissed: list[str] = []

    def add(self, name: str, make: Callable[[], Any] | None = None) -> None:
        engine = FakeEngine(seconds=0.01)
        order = Order(make or (lambda: engine), self.rules, Limits(), self.shelf, self.shelf, "{}")
        self.engines[name], self.workers[name] = engine, Worker(order)

    def kill(self, name: str) -> None:
        """End a worker's web server at once; nothing is written to the shelf any more."""
        for seat in self.demo(name).lobby.running:
            assert seat.session is not None
            seat.session.keeper = None
        # it may answer for a moment yet over connections that are open
        self.demo(name).lobby._seats.clear()
        server = self.workers.pop(name)._server
        server.force_exit = server.should_exit = True
        end = time.monotonic() + PATIENCE
        while server.servers and any(one.is_serving() for one in server.servers) and time.monotonic() < end:
            time.sleep(0.01)

    def demo(self, name: str) -> Demo:
        app: Any = self.workers[name]._server.config.app
        found: Demo = app.app.state.demo
        return found

    def ask(self, name: str, method: str, path: str, key: str | None = None) -> httpx.Response:
        about = self.workers[name].about()
        return httpx.request(method, f"http://{about.address}{path}", headers={KEY_HEADER: key or about.key})

    # -- as fronts see it

    def names(self) -> list[str]:
        return sorted(self.workers)

    def about(self, name: str, timeout: float) -> About | None:
        worker = self.workers.get(name)
        return None if worker is None else worker.about()

    def dismiss(self, names: Iterable[str]) -> None:
        self.dismissed += names

    def restart(self, name: str) -> None:
        """End a worker's process; it is started again, as Ray does."""
        self.kill(name)
        self.add(name)
